public import CPEFTSwift
internal import Adapters
internal import Autograd
internal import Merging
internal import Models
internal import Platform
internal import Quantization
internal import Synchronization
internal import Tensors
internal import Training

// Group "adapters of a model": each function is one of `AdapterSet`'s.

/// The adapters of a model, for a function that changes them: one at a time.
private func changing(
    _ model: OpaquePointer?, _ error: UnsafeMutablePointer<peft_error>?, _ body: (ModelObject) throws(PEFTError) -> Void
) -> Int32 {
    unsafe guarded(error) { () throws(PEFTError) -> Void in
        let object = unsafe try handles.model(model)
        try object.use.alone(.model) { () throws(PEFTError) in try body(object) }
    }
}

@_cdecl("peft_adapter_add") @implementation
public func peft_adapter_add(
    _ model: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ config_json: UnsafePointer<CChar>?, _ options_json: UnsafePointer<CChar>?,
    _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe changing(model, error) { (object) throws(PEFTError) in unsafe try add(object, name, config_json, options_json, nil) }
}

@_cdecl("peft_adapter_add_calibrated") @implementation
public func peft_adapter_add_calibrated(
    _ model: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ config_json: UnsafePointer<CChar>?, _ options_json: UnsafePointer<CChar>?,
    _ batches: UnsafePointer<OpaquePointer?>?, _ batch_count: Int, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe changing(model, error) { (object) throws(PEFTError) in
        guard let batches = unsafe batches, batch_count > 0, batch_count <= 1 << 20 else {
            throw PEFTError(.argument, "batch_count is \(batch_count); 1 to \(1 << 20) batches are needed")
        }
        var list: [Batch] = []
        for index in 0..<batch_count { list.append(try Batch(named: unsafe handles.tensors(batches[index]).all, for: object.model)) }
        unsafe try add(object, name, config_json, options_json, try BatchCalibration(list, object.model))
    }
}

private func add(
    _ object: ModelObject, _ name: UnsafePointer<CChar>?, _ config_json: UnsafePointer<CChar>?, _ options_json: UnsafePointer<CChar>?, _ calibration: (any Calibration)?
) throws(PEFTError) {
    let name = unsafe try text(name, "name")
    let config = unsafe try json(config_json, "config_json")
    guard let config = config.objectValue else { throw PEFTError(.argument, "config_json is \(config.kindName), not a JSON object") }
    let options = unsafe try options(options_json, "options_json", allowing: ["seed", "trainable"])
    let seed = try options.integer("seed") ?? 0
    guard seed >= 0 else { throw PEFTError(.argument, "seed is \(seed); 0 or more is accepted") }
    try object.adapters.add(name, config, seed: UInt64(seed), trainable: try options.boolean("trainable") ?? true, calibration: calibration)
}

@_cdecl("peft_adapter_load") @implementation
public func peft_adapter_load(
    _ model: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ path: UnsafePointer<CChar>?, _ trainable: Int32, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe changing(model, error) { (object) throws(PEFTError) in
        unsafe try object.adapters.load(try text(name, "name"), path: try text(path, "path"), trainable: trainable != 0)
    }
}

@_cdecl("peft_adapter_save") @implementation
public func peft_adapter_save(
    _ model: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ path: UnsafePointer<CChar>?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(error) { () throws(PEFTError) -> Void in
        unsafe try handles.model(model).adapters.save(try text(name, "name"), path: try text(path, "path"))
    }
}

@_cdecl("peft_adapter_save_as") @implementation
public func peft_adapter_save_as(
    _ model: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ path: UnsafePointer<CChar>?, _ options_json: UnsafePointer<CChar>?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(error) { () throws(PEFTError) -> Void in
        let format = try AdapterFormat(unsafe try options(options_json, "options_json", allowing: nil))
        unsafe try handles.model(model).adapters.save(try text(name, "name"), path: try text(path, "path"), as: format)
    }
}

@_cdecl("peft_adapter_remove") @implementation
public func peft_adapter_remove(_ model: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ error: UnsafeMutablePointer<peft_error>?) -> Int32 {
    unsafe changing(model, error) { (object) throws(PEFTError) in unsafe try object.adapters.remove(try text(name, "name")) }
}

@_cdecl("peft_adapter_rename") @implementation
public func peft_adapter_rename(
    _ model: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ new_name: UnsafePointer<CChar>?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe changing(model, error) { (object) throws(PEFTError) in
        unsafe try object.adapters.rename(try text(name, "name"), to: try text(new_name, "new_name"))
    }
}

@_cdecl("peft_adapter_set_active") @implementation
public func peft_adapter_set_active(
    _ model: OpaquePointer?, _ names: UnsafePointer<UnsafePointer<CChar>?>?, _ weights: UnsafePointer<Float>?, _ count: Int64, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe changing(model, error) { (object) throws(PEFTError) in unsafe try object.adapters.setActive(try weighted(names, weights, count)) }
}

@_cdecl("peft_adapter_set_composition") @implementation
public func peft_adapter_set_composition(_ model: OpaquePointer?, _ composition_json: UnsafePointer<CChar>?, _ error: UnsafeMutablePointer<peft_error>?) -> Int32 {
    unsafe changing(model, error) { (object) throws(PEFTError) in unsafe try object.adapters.setActive(try Composition(try json(composition_json, "composition_json"))) }
}

@_cdecl("peft_adapter_set_enabled") @implementation
public func peft_adapter_set_enabled(_ model: OpaquePointer?, _ is_enabled: Int32, _ error: UnsafeMutablePointer<peft_error>?) -> Int32 {
    unsafe changing(model, error) { (object) throws(PEFTError) in object.adapters.setEnabled(is_enabled != 0) }
}

@_cdecl("peft_adapter_set_scale") @implementation
public func peft_adapter_set_scale(_ model: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ factor: Float, _ error: UnsafeMutablePointer<peft_error>?) -> Int32 {
    unsafe changing(model, error) { (object) throws(PEFTError) in
        guard factor.isFinite else { throw PEFTError(.argument, "factor is \(factor); a finite number is needed") }
        unsafe try object.adapters.setScale(try text(name, "name"), factor)
    }
}

@_cdecl("peft_adapter_set_trainable") @implementation
public func peft_adapter_set_trainable(
    _ model: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ is_trainable: Int32, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe changing(model, error) { (object) throws(PEFTError) in unsafe try object.adapters.setTrainable(try text(name, "name"), is_trainable != 0) }
}

// MARK: Looking

@_cdecl("peft_adapter_list_methods") @implementation
public func peft_adapter_list_methods(
    _ buffer: UnsafeMutablePointer<CChar>?, _ capacity: Int, _ needed: UnsafeMutablePointer<Int>?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(buffer, capacity, needed, error) { () throws(PEFTError) -> String in JSONValue.object(AdapterMethods.description).text() }
}

@_cdecl("peft_adapter_status") @implementation
public func peft_adapter_status(
    _ buffer: UnsafeMutablePointer<CChar>?, _ capacity: Int, _ needed: UnsafeMutablePointer<Int>?, _ model: OpaquePointer?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(buffer, capacity, needed, error) { () throws(PEFTError) -> String in
        let object = unsafe try handles.model(model)
        var status = object.adapters.status()
        status["merge_report"] = object.mergeReport.withLock { $0.map { .object($0) } ?? .null }
        return JSONValue.object(status).text()
    }
}

@_cdecl("peft_adapter_config") @implementation
public func peft_adapter_config(
    _ buffer: UnsafeMutablePointer<CChar>?, _ capacity: Int, _ needed: UnsafeMutablePointer<Int>?, _ model: OpaquePointer?, _ name: UnsafePointer<CChar>?,
    _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(buffer, capacity, needed, error) { () throws(PEFTError) -> String in
        let adapters = unsafe try handles.model(model).adapters
        return JSONValue.object(try adapters.configuration(of: unsafe text(name, "name"))).text(indent: 2, sortKeys: true)
    }
}

@_cdecl("peft_adapter_state") @implementation
public func peft_adapter_state(
    _ state: UnsafeMutablePointer<OpaquePointer?>?, _ model: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(state, "state", error) { () throws(PEFTError) -> OpaquePointer? in
        let object = unsafe try handles.model(model)
        return unsafe try handles.add(try object.adapters.state(of: text(name, "name")), object.model.engine)
    }
}

@_cdecl("peft_adapter_parameters") @implementation
public func peft_adapter_parameters(
    _ parameters: UnsafeMutablePointer<OpaquePointer?>?, _ model: OpaquePointer?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(parameters, "parameters", error) { () throws(PEFTError) -> OpaquePointer? in
        let object = unsafe try handles.model(model)
        let present = try object.adapters.trainableParameters()
        // Copies: a trainer writes into the parameters themselves.
        let copies = try object.model.lock.read { () throws(PEFTError) in
            var copies: [(name: String, tensor: Tensor)] = []
            for (key, parameter) in present { copies.append((key, try parameter.value.converted(to: .f32, object.model.engine, .scratch))) }
            return copies
        }
        return unsafe try handles.add(copies, object.model.engine)
    }
}

@_cdecl("peft_adapter_set_state") @implementation
public func peft_adapter_set_state(
    _ model: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ state: OpaquePointer?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe changing(model, error) { (object) throws(PEFTError) in
        let tensors = unsafe try handles.tensors(state).all
        try object.adapters.setState(of: unsafe text(name, "name"), tensors)
    }
}

// MARK: Merging

@_cdecl("peft_model_merge") @implementation
public func peft_model_merge(
    _ report: UnsafeMutablePointer<CChar>?, _ capacity: Int, _ needed: UnsafeMutablePointer<Int>?, _ model: OpaquePointer?,
    _ names: UnsafePointer<UnsafePointer<CChar>?>?, _ count: Int64, _ options_json: UnsafePointer<CChar>?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(report, capacity, needed, error) { () throws(PEFTError) -> String in
        let object = unsafe try handles.model(model)
        let names = unsafe try PEFTSwift.names(names, count, "names")
        let options = unsafe try options(options_json, "options_json", allowing: ["safe", "dtype", "residue", "svd_rank", "svd_energy"])
        let residue = try residue(options)
        let isSafe = try options.boolean("safe") ?? false
        let dtype = try options.text("dtype").map { (name) throws(PEFTError) in try DType.weightFormat(named: name) }
        let merged = try object.use.alone(.model) { () throws(PEFTError) in try object.adapters.merge(count == 0 ? nil : names, safe: isSafe, as: dtype, residue: residue) }
        object.mergeReport.withLock { $0 = merged }
        return JSONValue.object(merged).text()
    }
}

private func residue(_ options: JSONObject) throws(PEFTError) -> (name: String, rank: RankChoice)? {
    let rank = try Combination.rank(options)
    guard let name = try options.text("residue") else {
        guard rank == nil else { throw PEFTError(.argument, "svd_rank and svd_energy are those of a residue; \"residue\" must name it") }
        return nil
    }
    return (name, rank ?? .fixed(8))
}

@_cdecl("peft_model_unmerge") @implementation
public func peft_model_unmerge(_ model: OpaquePointer?, _ error: UnsafeMutablePointer<peft_error>?) -> Int32 {
    unsafe changing(model, error) { (object) throws(PEFTError) in
        try object.adapters.unmerge()
        object.mergeReport.withLock { $0 = nil }
    }
}

@_cdecl("peft_model_merge_and_unload") @implementation
public func peft_model_merge_and_unload(_ model: OpaquePointer?, _ error: UnsafeMutablePointer<peft_error>?) -> Int32 {
    unsafe changing(model, error) { (object) throws(PEFTError) in
        try object.adapters.mergeAndUnload()
        object.mergeReport.withLock { $0 = nil }
    }
}

@_cdecl("peft_adapter_fill") @implementation
public func peft_adapter_fill(
    _ model: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ text: UnsafePointer<CChar>?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe changing(model, error) { (object) throws(PEFTError) in
        let (name, words) = unsafe (try PEFTSwift.text(name, "name"), try PEFTSwift.text(text, "text"))
        try object.adapters.fill(name, with: words)
    }
}
