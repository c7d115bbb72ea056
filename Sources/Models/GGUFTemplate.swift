internal import Checkpoints
internal import Platform
internal import Tensors
internal import Tokenizers

/// What a GGUF file says beside its weights: settings and vocabulary, of the GGUF file that a model came from, or made of a Hugging
/// Face folder as llama.cpp's converter makes it.
struct GGUFTemplate {
    /// The architecture, with which the keys begin.
    let name: String
    let family: GGUFFamily
    let layerCount: Int
    private let heads: Int
    private let keyValueHeads: Int
    private(set) var metadata: [(key: String, field: GGUF.Field)]
    /// Settings that are tensors.
    private(set) var settings: [NamedTensor] = []

    init(_ source: GGUF) throws(PEFTError) {
        name = try source.string("general.architecture")
        guard let known = GGUFFamily.of(name, isMixture: source["\(name).expert_count"]?.intValue ?? 0 > 0) else {
            throw PEFTError(.unsupported, "\(source.origin): architecture \"\(name)\"; GGUF files are written of \(GGUFFamily.names)")
        }
        family = known
        layerCount = try source.integer("\(name).block_count")
        heads = try source.integer("\(name).attention.head_count")
        keyValueHeads = source["\(name).attention.head_count_kv"] == nil ? heads : try source.integer("\(name).attention.head_count_kv")
        metadata = source.keys.filter { !["general.alignment", "general.file_type", "general.quantization_version"].contains($0) }
            .map { (key: $0, field: GGUF.Field.copy(of: source, key: $0)) }
        settings = source.tensors.all.filter { GGUFModel.isSetting($0.name) }
    }

    /// - Throws: `.unsupported` for an architecture or a setting that such files do not have.
    init(_ model: Model, folder: String, _ tokenizer: Tokenizer?) throws(PEFTError) {
        let config = ModelConfiguration(model.configuration, origin: folder)
        guard let name = GGUFFamily.architecture(of: config.modelType), let family = GGUFFamily.of(name, isMixture: config.modelType == "mixtral"), let shape = model.network.cacheShape else {
            throw PEFTError(.unsupported, "'\(folder)' is a \(config.modelType) model; GGUF files are written of \(GGUFFamily.modelTypes)")
        }
        guard let tokenizer else { throw PEFTError(.unsupported, "'\(folder)' has no tokenizer.json, whose vocabulary a GGUF file needs") }
        (self.name, self.family, layerCount, keyValueHeads) = (name, family, shape.layerCount, shape.keyValueHeads)
        heads = try config.size("num_attention_heads")
        let (hidden, headSize) = (try config.size("hidden_size"), shape.headSize)
        func size(_ value: Int) -> GGUF.Field { .u32(UInt32(clamping: value)) }
        metadata = [
            ("general.architecture", .string(name)), ("general.type", .string("model")),
            ("general.name", .string(config.json["_name_or_path"]?.stringValue ?? folder.split(separator: "/").last.map(String.init) ?? "model")),
            ("\(name).block_count", size(layerCount)), ("\(name).context_length", size(shape.maximumLength)), ("\(name).embedding_length", size(hidden)),
            ("\(name).feed_forward_length", size(try config.size("intermediate_size"))), ("\(name).attention.head_count", size(heads)),
            ("\(name).attention.head_count_kv", size(keyValueHeads)), ("\(name).attention.layer_norm_rms_epsilon", .f32(Float(try config.number("rms_norm_eps", or: 1e-6)))),
        ]
        if headSize * heads != hidden || name == "qwen3" || family.addsOne {
            metadata += [("\(name).attention.key_length", size(headSize)), ("\(name).attention.value_length", size(headSize))]
        }
        metadata += try family.fields(config, layers: layerCount, heads: heads, headSize: headSize).map { ("\(name).\($0.key)", $0.field) }
        // The factors are those of the layers that see everything.
        let full = try config.object("rope_parameters")?.object("full_attention")
        try addRotary(full.map { config.replacing("rope_parameters", .object($0.json)) } ?? config, headSize, model.engine)
        let rows = try config.size("vocab_size")
        metadata.append(("\(name).vocab_size", size(rows)))
        try addVocabulary(try GGUFVocabulary(definition: try Files.json(at: Files.join(folder, "tokenizer.json"), maximumBytes: 256 << 20), of: tokenizer, rows: rows))
    }

    private mutating func addRotary(_ config: ModelConfiguration, _ headSize: Int, _ engine: Engine) throws(PEFTError) {
        let scaling = try config.object(config.has("rope_parameters") ? "rope_parameters" : "rope_scaling")
        let part = try (scaling.flatMap { $0.has("partial_rotary_factor") ? $0 : nil } ?? config).number("partial_rotary_factor", or: 1)
        guard part == 1 || name == "phi3" else { throw config.unsupported("partial_rotary_factor", "1 in GGUF files") }
        let dimension = Int(Double(headSize) * part)
        metadata.append(("\(name).rope.dimension_count", .u32(UInt32(clamping: dimension))))
        let base = try (scaling.flatMap { $0.has("rope_theta") ? $0 : nil } ?? config).number("rope_theta", or: 10000)
        metadata.append(("\(name).rope.freq_base", .f32(Float(base))))
        guard let scaling else { return }
        let key = scaling.has("rope_type") ? "rope_type" : "type"
        switch try scaling.text(key, or: "default") {
        case "default": break
        case "linear": metadata += [("\(name).rope.scaling.type", .string("linear")), ("\(name).rope.scaling.factor", .f32(Float(try scaling.number("factor"))))]
        case "llama3": try addSetting(GGUFModel.rotaryFactors, Llama3Scaling(scaling).factors(base: base, headSize: headSize), engine)
        case "yarn":
            let rule = try YaRN(scaling, config, base: base, dimension: dimension)
            guard rule.isUsual else { throw scaling.unsupported(key, "yarn with a factor and original_max_position_embeddings alone in GGUF files") }
            metadata += [
                ("\(name).rope.scaling.type", .string("yarn")), ("\(name).rope.scaling.factor", .f32(rule.factor)),
                ("\(name).rope.scaling.original_context_length", .u32(UInt32(clamping: rule.originalLength))),
            ]
        case "longrope", "su":
            guard name == "phi3" else { throw scaling.unsupported(key, "default, linear, llama3 in GGUF files of this family") }
            let rule = try LongRope(scaling, config, count: dimension / 2)
            try addSetting(GGUFModel.longFactors, rule.long, engine)
            try addSetting(GGUFModel.shortFactors, rule.short, engine)
            metadata += [("\(name).rope.scaling.original_context_length", .u32(UInt32(clamping: rule.border))), ("\(name).rope.scaling.attn_factor", .f32(rule.factor))]
        default: throw scaling.unsupported(key, "default, linear, llama3, yarn in GGUF files")
        }
    }

    private mutating func addSetting(_ name: String, _ values: [Float], _ engine: Engine) throws(PEFTError) {
        settings.append(NamedTensor(name, try Tensor(engine, values, shape: [values.count], .scratch)))
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
    func heads(of name: String) -> Int? { GGUFModel.heads(of: name, self.name, heads, keyValueHeads) }
}
