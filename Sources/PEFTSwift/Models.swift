public import CPEFTSwift
internal import Adapters
internal import Autograd
internal import Checkpoints
internal import Models
internal import Platform
internal import Synchronization
internal import Tensors
internal import Tokenizers
internal import Training

/// Behind a `peft_model`: a base model, its tokenizer and its adapters.
final class ModelObject: Sendable {
    let opened: OpenedModel
    let adapters: AdapterSet
    let use = HandleUse()
    /// Of the last merge, while something is merged.
    let mergeReport = Mutex<JSONObject?>(nil)
    private let trains = Atomic<Bool>(false)
    private let passes = Atomic<UInt64>(0)

    init(_ opened: OpenedModel) {
        self.opened = opened
        adapters = AdapterSet(opened.model, baseName: opened.path.isEmpty ? nil : opened.path, tokenizer: opened.tokenizer)
    }

    var model: Model { opened.model }

    var isTraining: Bool {
        get { trains.load(ordering: .relaxed) }
        set { trains.store(newValue, ordering: .relaxed) }
    }

    /// Dropout of the next pass: each has masks of its own.
    func nextRandom() -> RandomStream {
        RandomStream(seed: passes.add(1, ordering: .relaxed).oldValue, purpose: "dropout")
    }

    /// The adapters of a pass: one per sample (`names`), or the active ones.
    func routing(_ options: JSONObject, _ batch: Batch) throws(PEFTError) -> Routing {
        guard let names = try options.strings("adapter_names") else { return try adapters.activeRouting(rows: batch.rows) }
        guard names.count == batch.rows else {
            throw PEFTError(.argument, "adapter_names has \(names.count) names, the batch has \(batch.rows) samples")
        }
        return try adapters.routing(samples: names.map { $0 == "__base__" ? nil : $0 })
    }
}

extension HandleTable {
    func model(_ handle: OpaquePointer?) throws(PEFTError) -> ModelObject {
        unsafe try find(handle, .model, as: ModelObject.self)
    }
}

// MARK: Opening

@_cdecl("peft_model_options_init") @implementation
public func peft_model_options_init(_ options: UnsafeMutablePointer<peft_model_options>?) {
    guard let options = unsafe options else { return }
    unsafe options.pointee = peft_model_options()
    unsafe options.pointee.struct_size = UInt32(MemoryLayout<peft_model_options>.size)
}

/// A host's options, read and checked.
private struct OpenOptions {
    var compute = ComputeChoice.automatic
    var quantization: QuantizationRules?
    var followsCPU = false
    var newHead: JSONObject?
    var progress: LoadProgress?

    init(_ pointer: UnsafePointer<peft_model_options>?) throws(PEFTError) {
        var given = unsafe peft_model_options()
        if let pointer = unsafe pointer { unsafe try copyOptions(pointer, into: &given, "peft_model_options") }
        guard let compute = ComputeChoice(rawValue: unsafe given.compute) else {
            throw PEFTError(.argument, "compute is \(unsafe given.compute); PEFT_COMPUTE_AUTO (0) to PEFT_COMPUTE_INT8 (3) are accepted")
        }
        self.compute = compute
        let json = unsafe try options(given.options_json, "options_json", allowing: ["quantization", "bitsandbytes_cpu", "new_head"])
        followsCPU = try json.boolean("bitsandbytes_cpu") ?? false
        newHead = try json.object("new_head")
        quantization = try json.object("quantization").map { (rules) throws(PEFTError) in try QuantizationRules(rules) }
        if let function = unsafe given.progress {
            let data = unsafe given.user_data
            progress = { done, total in unsafe function(data, done, total) == 0 }
        }
    }
}

@_cdecl("peft_model_open") @implementation
public func peft_model_open(
    _ model: UnsafeMutablePointer<OpaquePointer?>?, _ context: OpaquePointer?, _ path: UnsafePointer<CChar>?, _ options: UnsafePointer<peft_model_options>?,
    _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(model, "model", error) { () throws(PEFTError) -> OpaquePointer? in
        let engine = unsafe try handles.context(context).engine
        let (path, options) = unsafe (try text(path, "path"), try OpenOptions(options))
        return unsafe try handles.add(ModelObject(try OpenedModel.open(path: path, engine, compute: options.compute, quantization: options.quantization, followsCPU: options.followsCPU, newHead: options.newHead, progress: options.progress)), .model)
    }
}

@_cdecl("peft_model_open_memory") @implementation
public func peft_model_open_memory(
    _ model: UnsafeMutablePointer<OpaquePointer?>?, _ context: OpaquePointer?, _ data: UnsafeRawPointer?, _ size: Int, _ options: UnsafePointer<peft_model_options>?,
    _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(model, "model", error) { () throws(PEFTError) -> OpaquePointer? in
        let engine = unsafe try handles.context(context).engine
        let options = unsafe try OpenOptions(options)
        guard let data = unsafe data else { throw PEFTError(.argument, "data is NULL") }
        guard size >= 0 else { throw PEFTError(.argument, "size is \(UInt(bitPattern: size)), larger than memory") }
        let image = unsafe MappedFile(borrowing: UnsafeRawBufferPointer(start: data, count: size), name: "the model in memory")
        return unsafe try handles.add(ModelObject(try OpenedModel.open(image, engine, compute: options.compute, quantization: options.quantization, followsCPU: options.followsCPU, newHead: options.newHead, progress: options.progress)), .model)
    }
}

@_cdecl("peft_model_create") @implementation
public func peft_model_create(
    _ model: UnsafeMutablePointer<OpaquePointer?>?, _ context: OpaquePointer?, _ config_json: UnsafePointer<CChar>?, _ weights: OpaquePointer?,
    _ options: UnsafePointer<peft_model_options>?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(model, "model", error) { () throws(PEFTError) -> OpaquePointer? in
        let engine = unsafe try handles.context(context).engine
        let (json, options) = unsafe (try json(config_json, "config_json"), try OpenOptions(options))
        guard let config = json.objectValue else { throw PEFTError(.argument, "config_json is \(json.kindName), not a JSON object") }
        let tensors = unsafe try handles.tensors(weights).all.map { NamedTensor($0.name, $0.tensor) }
        return unsafe try handles.add(ModelObject(try OpenedModel.make(config, tensors, engine, compute: options.compute, quantization: options.quantization, followsCPU: options.followsCPU, newHead: options.newHead, progress: options.progress)), .model)
    }
}

@_cdecl("peft_model_free") @implementation
public func peft_model_free(_ model: OpaquePointer?) { unsafe handles.remove(model, .model) }

// MARK: Looking

@_cdecl("peft_model_describe") @implementation
public func peft_model_describe(
    _ buffer: UnsafeMutablePointer<CChar>?, _ capacity: Int, _ needed: UnsafeMutablePointer<Int>?, _ model: OpaquePointer?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(buffer, capacity, needed, error) { () throws(PEFTError) -> String in
        JSONValue.object(unsafe try handles.model(model).model.description()).text()
    }
}

@_cdecl("peft_model_state") @implementation
public func peft_model_state(
    _ state: UnsafeMutablePointer<OpaquePointer?>?, _ model: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(state, "state", error) { () throws(PEFTError) -> OpaquePointer? in
        let model = unsafe try handles.model(model).model
        let name = unsafe name == nil ? nil : try text(name, "name")
        return unsafe try handles.add(try model.state(named: name), model.engine)
    }
}

@_cdecl("peft_model_tokenizer") @implementation
public func peft_model_tokenizer(
    _ tokenizer: UnsafeMutablePointer<OpaquePointer?>?, _ model: OpaquePointer?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(tokenizer, "tokenizer", error) { () throws(PEFTError) -> OpaquePointer? in
        let object = unsafe try handles.model(model)
        guard let tokenizer = object.opened.tokenizer else { throw PEFTError(.notFound, "the model came without a tokenizer") }
        return unsafe try handles.add(TokenizerObject(object.model.engine, tokenizer), .tokenizer)
    }
}

@_cdecl("peft_model_export") @implementation
public func peft_model_export(
    _ model: OpaquePointer?, _ folder: UnsafePointer<CChar>?, _ options_json: UnsafePointer<CChar>?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(error) { () throws(PEFTError) -> Void in
        let opened = unsafe try handles.model(model).opened
        let folder = unsafe try text(folder, "folder")
        if folder.hasSuffix(".gguf") {
            return try opened.exportGGUF(to: folder, type: try unsafe options(options_json, "options_json", allowing: ["dtype"]).text("dtype"))
        }
        let types: [String: DType] = ["float32": .f32, "bfloat16": .bf16, "float16": .f16]
        let name = unsafe try options(options_json, "options_json", allowing: ["dtype"]).text("dtype")
        if let name, types[name] == nil {
            throw PEFTError(.argument, "dtype is \"\(name)\"; \"float32\", \"bfloat16\" and \"float16\" are accepted")
        }
        try opened.export(to: folder, dtype: name.flatMap { types[$0] })
    }
}

// MARK: Computing

@_cdecl("peft_model_preprocess") @implementation
public func peft_model_preprocess(
    _ inputs: UnsafeMutablePointer<OpaquePointer?>?, _ model: OpaquePointer?, _ raw: OpaquePointer?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(inputs, "inputs", error) { () throws(PEFTError) -> OpaquePointer? in
        let opened = unsafe try handles.model(model).opened
        return unsafe try handles.add([try opened.preprocessed(unsafe handles.tensors(raw).all)], opened.model.engine)
    }
}

@_cdecl("peft_model_forward") @implementation
public func peft_model_forward(
    _ outputs: UnsafeMutablePointer<OpaquePointer?>?, _ model: OpaquePointer?, _ inputs: OpaquePointer?, _ options_json: UnsafePointer<CChar>?,
    _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(outputs, "outputs", error) { () throws(PEFTError) -> OpaquePointer? in
        let object = unsafe try handles.model(model)
        let batch = try Batch(named: unsafe handles.tensors(inputs).all, for: object.model)
        let options = unsafe try options(options_json, "options_json", allowing: ["adapter_names", "outputs"])
        let wanted = try options.strings("outputs") ?? ["logits"]
        if let wrong = wanted.first(where: { !["logits", "last_hidden_state", "sentence_embedding", "scalings"].contains($0) }) {
            throw PEFTError(.argument, "outputs has \"\(wrong)\"; \"logits\", \"last_hidden_state\", \"sentence_embedding\" and \"scalings\" are accepted")
        }
        let result = try object.model.forward(batch, try object.routing(options, batch), isTraining: object.isTraining, random: object.nextRandom())
        let isHeadless = object.model.task == .features
        var named: [(name: String, tensor: Tensor)] = []
        if let loss = result.loss { named.append(("loss", try Tensor(object.model.engine, [Float(loss)], shape: []))) }
        if let (start, end) = try result.answerLogits(object.model) {
            named += [("start_logits", start), ("end_logits", end)]
        } else if wanted.contains("logits"), !isHeadless {
            named.append(("logits", result.logits))
        }
        if isHeadless || wanted.contains("last_hidden_state") { named.append(("last_hidden_state", result.hidden)) }
        if wanted.contains("sentence_embedding") { named.append(("sentence_embedding", try result.sentenceEmbedding(batch, object.model.engine))) }
        if wanted.contains("scalings"), let shares = result.shares { named.append(("scalings", shares)) }
        if let pooled = result.pooled { named.append(("pooler_output", pooled)) }
        return unsafe try handles.add(named, object.model.engine)
    }
}

@_cdecl("peft_model_gradients") @implementation
public func peft_model_gradients(
    _ gradients: UnsafeMutablePointer<OpaquePointer?>?, _ loss: UnsafeMutablePointer<Double>?, _ model: OpaquePointer?, _ inputs: OpaquePointer?,
    _ options_json: UnsafePointer<CChar>?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(gradients, "gradients", error) { () throws(PEFTError) -> OpaquePointer? in
        unsafe loss?.pointee = 0
        let object = unsafe try handles.model(model)
        let batch = try Batch(named: unsafe handles.tensors(inputs).all, for: object.model)
        let options = unsafe try options(options_json, "options_json", allowing: ["adapter_names"])
        let parameters = try object.adapters.trainableTensors()
        guard !parameters.isEmpty else { throw PEFTError(.state, "no active adapter has trainable parameters") }
        let result = try object.model.gradients(batch, try object.routing(options, batch), isTraining: object.isTraining, random: object.nextRandom())
        var named: [(name: String, tensor: Tensor)] = []
        // A parameter that the pass did not reach has the gradient 0.
        for (key, parameter) in parameters { named.append((key, try result.gradients.buffer(for: parameter))) }
        let handle = unsafe try handles.add(named, object.model.engine)
        unsafe loss?.pointee = result.loss
        return unsafe handle
    }
}

@_cdecl("peft_model_set_training") @implementation
public func peft_model_set_training(_ model: OpaquePointer?, _ is_training: Int32, _ error: UnsafeMutablePointer<peft_error>?) -> Int32 {
    unsafe guarded(error) { () throws(PEFTError) -> Void in
        let object = unsafe try handles.model(model)
        try object.use.alone(.model) { object.isTraining = is_training != 0 }
    }
}
