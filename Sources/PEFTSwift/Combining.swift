public import CPEFTSwift
internal import Adapters
internal import Merging
internal import Platform
internal import Tensors

// Group "combining adapters": of a model (`AdapterSet`), and in files (`AdapterFolders`).

/// The host's callback, as the merging room calls it.
private func merging(_ progress: peft_progress_fn?, _ user_data: UnsafeMutableRawPointer?) -> MergeProgress? {
    guard let progress = unsafe progress else { return nil }
    return { done, total in unsafe progress(user_data, done, total) == 0 }
}

private func doubles(_ list: [(name: String, weight: Float)]) -> [(name: String, weight: Double)] { list.map { ($0.name, Double($0.weight)) } }

@_cdecl("peft_adapter_combine") @implementation
public func peft_adapter_combine(
    _ report: UnsafeMutablePointer<CChar>?, _ capacity: Int, _ needed: UnsafeMutablePointer<Int>?, _ model: OpaquePointer?, _ new_name: UnsafePointer<CChar>?,
    _ names: UnsafePointer<UnsafePointer<CChar>?>?, _ weights: UnsafePointer<Float>?, _ count: Int64, _ options_json: UnsafePointer<CChar>?,
    _ progress: peft_progress_fn?, _ user_data: UnsafeMutableRawPointer?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(report, capacity, needed, error) { () throws(PEFTError) -> String in
        let object = unsafe try handles.model(model)
        let (name, adapters) = unsafe (try text(new_name, "new_name"), doubles(try weighted(names, weights, count)))
        let options = unsafe try options(options_json, "options_json", allowing: Combination.keys)
        return try object.use.alone(.model) { () throws(PEFTError) in
            JSONValue.object(unsafe try object.adapters.combine(adapters, into: name, options, progress: merging(progress, user_data))).text()
        }
    }
}

@_cdecl("peft_adapter_extract") @implementation
public func peft_adapter_extract(
    _ report: UnsafeMutablePointer<CChar>?, _ capacity: Int, _ needed: UnsafeMutablePointer<Int>?, _ model: OpaquePointer?, _ new_name: UnsafePointer<CChar>?,
    _ tuned: OpaquePointer?, _ options_json: UnsafePointer<CChar>?, _ progress: peft_progress_fn?, _ user_data: UnsafeMutableRawPointer?,
    _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(report, capacity, needed, error) { () throws(PEFTError) -> String in
        let (object, other) = unsafe (try handles.model(model), try handles.model(tuned))
        let name = unsafe try text(new_name, "new_name")
        let options = unsafe try options(options_json, "options_json", allowing: ["svd_rank", "svd_energy", "target_modules"])
        return try object.use.alone(.model) { () throws(PEFTError) in
            JSONValue.object(unsafe try object.adapters.extract(from: other.model, into: name, options, progress: merging(progress, user_data))).text()
        }
    }
}

@_cdecl("peft_adapter_combine_files") @implementation
public func peft_adapter_combine_files(
    _ report: UnsafeMutablePointer<CChar>?, _ capacity: Int, _ needed: UnsafeMutablePointer<Int>?, _ context: OpaquePointer?, _ path: UnsafePointer<CChar>?,
    _ paths: UnsafePointer<UnsafePointer<CChar>?>?, _ weights: UnsafePointer<Float>?, _ count: Int64, _ options_json: UnsafePointer<CChar>?,
    _ progress: peft_progress_fn?, _ user_data: UnsafeMutableRawPointer?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(report, capacity, needed, error) { () throws(PEFTError) -> String in
        let engine = unsafe try handles.context(context).engine
        let (path, adapters) = unsafe (try text(path, "path"), doubles(try weighted(paths, weights, count)))
        let options = unsafe try options(options_json, "options_json", allowing: Combination.keys)
        let files = adapters.map { (path: $0.name, weight: $0.weight) }
        return JSONValue.object(unsafe try AdapterFolders(engine).combine(files, to: path, options, progress: merging(progress, user_data))).text()
    }
}

@_cdecl("peft_adapter_compare_files") @implementation
public func peft_adapter_compare_files(
    _ report: UnsafeMutablePointer<CChar>?, _ capacity: Int, _ needed: UnsafeMutablePointer<Int>?, _ context: OpaquePointer?, _ path: UnsafePointer<CChar>?,
    _ other: UnsafePointer<CChar>?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(report, capacity, needed, error) { () throws(PEFTError) -> String in
        let engine = unsafe try handles.context(context).engine
        return JSONValue.object(unsafe try AdapterFolders(engine).compare(try text(path, "path"), with: try text(other, "other"))).text()
    }
}
