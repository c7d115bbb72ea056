internal import Checkpoints
internal import Platform
internal import Tensors
internal import Tokenizers

/// What a GGUF file says beside its weights: settings and vocabulary, of the GGUF file that a model came from, or made of a Hugging
/// Face folder as llama.cpp's converter makes it.
struct GGUFTemplate {
    let family: String
    let layerCount: Int
    private let heads: Int
    private let keyValueHeads: Int
    private(set) var metadata: [(key: String, field: GGUF.Field)]
    /// Settings that are tensors.
    private(set) var settings: [NamedTensor] = []

    init(_ source: GGUF) throws(PEFTError) {
        family = try source.string("general.architecture")
        layerCount = try source.integer("\(family).block_count")
        heads = try source.integer("\(family).attention.head_count")
        keyValueHeads = source["\(family).attention.head_count_kv"] == nil ? heads : try source.integer("\(family).attention.head_count_kv")
        metadata = source.keys.filter { !["general.alignment", "general.file_type", "general.quantization_version"].contains($0) }
            .map { (key: $0, field: GGUF.Field.copy(of: source, key: $0)) }
        settings = source.tensors.all.filter { GGUFModel.isSetting($0.name) }
    }

    /// - Throws: `.unsupported` for an architecture or a setting that such files do not have.
    init(_ model: Model, folder: String, _ tokenizer: Tokenizer?) throws(PEFTError) {
        let config = ModelConfiguration(model.configuration, origin: folder)
        guard let family = GGUFModel.family(of: config.modelType), let shape = model.network.cacheShape else {
            throw PEFTError(.unsupported, "'\(folder)' is a \(config.modelType) model; GGUF files are written of \(GGUFModel.modelTypes.joined(separator: ", "))")
        }
        guard let tokenizer else { throw PEFTError(.unsupported, "'\(folder)' has no tokenizer.json, whose vocabulary a GGUF file needs") }
        try config.require("hidden_act", .string("silu"))
        if config.json["sliding_window"]?.intValue ?? 0 > 0, try config.flag("use_sliding_window", or: config.modelType == "mistral") {
            throw config.unsupported("sliding_window", "none in GGUF files")
        }
        (self.family, layerCount, keyValueHeads) = (family, shape.layerCount, shape.keyValueHeads)
        heads = try config.size("num_attention_heads")
        let (hidden, headSize) = (try config.size("hidden_size"), shape.headSize)
        func size(_ value: Int) -> GGUF.Field { .u32(UInt32(clamping: value)) }
        metadata = [
            ("general.architecture", .string(family)), ("general.type", .string("model")),
            ("general.name", .string(config.json["_name_or_path"]?.stringValue ?? folder.split(separator: "/").last.map(String.init) ?? "model")),
            ("\(family).block_count", size(layerCount)), ("\(family).context_length", size(shape.maximumLength)), ("\(family).embedding_length", size(hidden)),
            ("\(family).feed_forward_length", size(try config.size("intermediate_size"))), ("\(family).attention.head_count", size(heads)),
            ("\(family).attention.head_count_kv", size(keyValueHeads)), ("\(family).attention.layer_norm_rms_epsilon", .f32(Float(try config.number("rms_norm_eps", or: 1e-6)))),
            ("\(family).rope.dimension_count", size(headSize)),
        ]
        if headSize * heads != hidden || family == "qwen3" {
            metadata += [("\(family).attention.key_length", size(headSize)), ("\(family).attention.value_length", size(headSize))]
        }
        try addRotary(config, headSize, model.engine)
        let rows = try config.size("vocab_size")
        metadata.append(("\(family).vocab_size", size(rows)))
        try addVocabulary(try GGUFVocabulary(definition: try Files.json(at: Files.join(folder, "tokenizer.json"), maximumBytes: 256 << 20), of: tokenizer, rows: rows))
    }

    private mutating func addRotary(_ config: ModelConfiguration, _ headSize: Int, _ engine: Engine) throws(PEFTError) {
        let scaling = try config.object(config.has("rope_parameters") ? "rope_parameters" : "rope_scaling")
        guard try (scaling.flatMap { $0.has("partial_rotary_factor") ? $0 : nil } ?? config).number("partial_rotary_factor", or: 1) == 1 else {
            throw config.unsupported("partial_rotary_factor", "1 in GGUF files")
        }
        let base = try (scaling.flatMap { $0.has("rope_theta") ? $0 : nil } ?? config).number("rope_theta", or: 10000)
        metadata.append(("\(family).rope.freq_base", .f32(Float(base))))
        guard let scaling else { return }
        let key = scaling.has("rope_type") ? "rope_type" : "type"
        switch try scaling.text(key, or: "default") {
        case "default": break
        case "linear": metadata += [("\(family).rope.scaling.type", .string("linear")), ("\(family).rope.scaling.factor", .f32(Float(try scaling.number("factor"))))]
        case "llama3":
            let factors = try Llama3Scaling(scaling).factors(base: base, headSize: headSize)
            settings.append(NamedTensor(GGUFModel.rotaryFactors, try Tensor(engine, factors, shape: [factors.count], .scratch)))
        default: throw scaling.unsupported(key, "default, linear, llama3 in GGUF files")
        }
    }

    private mutating func addVocabulary(_ vocabulary: GGUFVocabulary) throws(PEFTError) {
        func strings(_ list: [ArraySlice<UInt8>]) -> GGUF.Field { .strings(list.map { String(decoding: $0, as: UTF8.self) }) }
        func add(_ key: String, _ field: GGUF.Field?) {
            if let field { metadata.append(("tokenizer.\(key)", field)) }
        }
        add("ggml.model", .string(vocabulary.model))
        add("ggml.pre", vocabulary.pre.map { .string($0) })
        add("ggml.tokens", strings(vocabulary.tokens))
        add("ggml.token_type", .i32s(vocabulary.tokenTypes))
        if !vocabulary.scores.isEmpty { add("ggml.scores", .f32s(vocabulary.scores)) }
        if !vocabulary.merges.isEmpty { add("ggml.merges", strings(vocabulary.merges)) }
        for (key, id) in [("bos", vocabulary.beginningID), ("eos", vocabulary.endID), ("unknown", vocabulary.unknownID), ("padding", vocabulary.paddingID)] {
            add("ggml.\(key)_token_id", id.map { .u32(UInt32(clamping: $0)) })
        }
        add("ggml.add_bos_token", vocabulary.addsBeginning.map { .bool($0) })
        add("ggml.add_eos_token", vocabulary.addsEnd.map { .bool($0) })
        add("ggml.add_space_prefix", vocabulary.addsSpacePrefix.map { .bool($0) })
        add("chat_template", vocabulary.chatTemplate.map { .string($0) })
    }

    /// How many heads a tensor's rows belong to, whose order is llama.cpp's; nil: they are as they were.
    func heads(of name: String) -> Int? { GGUFModel.heads(of: name, family, heads, keyValueHeads) }
}
