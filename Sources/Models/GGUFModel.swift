internal import Checkpoints
internal import Glibc
internal import Platform
internal import Tensors

/// A GGUF file as a Hugging Face folder would have it: config.json's keys, transformers' tensor names and row order.
///
/// llama.cpp names tensors its own way (ggml-org/llama.cpp, gguf-py/gguf/constants.py) and, for the "llama" architecture,
/// reorders the rows of queries and keys so that rotated pairs are neighbours; adapters of PEFT know the original order, so
/// those rows are put back (whole rows: their blocks stay as they are).
struct GGUFModel {
    let configuration: ModelConfiguration
    let tensors: TensorSource

    init(_ gguf: GGUF, _ engine: Engine) throws(PEFTError) {
        let architecture = try gguf.string("general.architecture")
        guard let family = GGUFFamily.of(architecture, isMixture: (gguf["\(architecture).expert_count"]?.intValue ?? 0) > 0) else {
            throw PEFTError(.unsupported, "\(gguf.origin): architecture \"\(architecture)\"; from GGUF this version reads \(GGUFFamily.names)")
        }
        let config = try GGUFModel.configuration(gguf, architecture, family, engine)
        configuration = ModelConfiguration(config, origin: gguf.origin)
        var named: [NamedTensor] = []
        for item in gguf.tensors.all where !GGUFModel.isSetting(item.name) {
            let heads = GGUFModel.heads(of: item.name, architecture, config["num_attention_heads"]?.intValue ?? 0, config["num_key_value_heads"]?.intValue ?? 0)
            var tensor = try heads.map { (heads) throws(PEFTError) in try GGUFModel.reordered(item.tensor, heads, engine, item.name, toFile: false) } ?? item.tensor
            if family.addsOne, item.name.hasSuffix("norm.weight") { tensor = try Tensor(engine, try tensor.floats(engine).map { $0 - 1 }, shape: tensor.shape, .weights) }
            named.append(NamedTensor(GGUFModel.huggingFaceName(item.name, family), tensor))
        }
        if family.modelType == "mixtral" { try GGUFModel.join(&named, engine, gguf.origin) }
        tensors = try TensorSource(origin: gguf.origin, named)
    }

    // MARK: Names

    static let rotaryFactors = "rope_freqs.weight"
    static let longFactors = "rope_factors_long.weight", shortFactors = "rope_factors_short.weight"

    private static let globals = ["token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"]

    /// "blk.3.attn_q.weight" → "model.layers.3.self_attn.q_proj.weight"; names that are not known stay, and are reported as unused.
    private static func huggingFaceName(_ name: String, _ family: GGUFFamily) -> String {
        let parts = name.split(separator: ".").map(String.init)
        if parts.count == 2, let global = globals[parts[0]] { return "\(global).\(parts[1])" }
        if parts.count == 4, parts[0] == "blk", let layer = Int(parts[1]), let module = family.modules[parts[2]] { return "model.layers.\(layer).\(module).\(parts[3])" }
        return name
    }

    /// The other way round: two names for a stack of gates and ups; none: it has none.
    static func fileNames(_ name: String, _ family: GGUFFamily) -> [String] {
        let stem = name.lastIndex(of: ".").map { String(name[...$0]) } ?? ""
        if name.hasSuffix(".experts.gate_up_proj") { return ["gate", "up"].compactMap { fileName("\(stem)\($0).weight", family) } }
        return [fileName(name.hasSuffix(".experts.down_proj") ? name + ".weight" : name, family)].compactMap(\.self)
    }

    private static func fileName(_ name: String, _ family: GGUFFamily) -> String? {
        guard let dot = name.lastIndex(of: ".") else { return nil }
        let (module, kind) = (String(name[..<dot]), name[dot...])
        if let global = globals.first(where: { $0.value == module }) { return global.key + kind }
        let parts = module.split(separator: ".", maxSplits: 3).map(String.init)
        guard parts.count == 4, parts[0] == "model", parts[1] == "layers", let found = family.modules.first(where: { $0.value == parts[3] }) else { return nil }
        return "blk.\(parts[2]).\(found.key)\(kind)"
    }

    /// A tensor of the file that is a setting of the model.
    static func isSetting(_ name: String) -> Bool { [rotaryFactors, longFactors, shortFactors].contains(name) }

    // MARK: Configuration

    private static func configuration(_ gguf: GGUF, _ family: String, _ kind: GGUFFamily, _ engine: Engine) throws(PEFTError) -> JSONObject {
        var config: JSONObject = ["model_type": .string(kind.modelType), "architectures": .array([.string(kind.headClass)]), "hidden_act": .string(kind.activation)]
        func integer(_ key: String) throws(PEFTError) -> Int64 { Int64(try gguf.integer("\(family).\(key)")) }
        config["num_hidden_layers"] = .integer(try integer("block_count"))
        config["hidden_size"] = .integer(try integer("embedding_length"))
        config["intermediate_size"] = .integer(try integer("feed_forward_length"))
        config["max_position_embeddings"] = .integer(try integer("context_length"))
        let heads = try integer("attention.head_count")
        config["num_attention_heads"] = .integer(heads)
        config["num_key_value_heads"] = .integer(gguf["\(family).attention.head_count_kv"] == nil ? heads : try integer("attention.head_count_kv"))
        if gguf["\(family).attention.key_length"] != nil { config["head_dim"] = .integer(try integer("attention.key_length")) }
        // Stored as f32: the shortest decimal that means it is what the model's makers wrote.
        config["rms_norm_eps"] = .number(decimal(try gguf.number("\(family).attention.layer_norm_rms_epsilon")))
        config["vocab_size"] = .integer(Int64(gguf.tensors.peek("token_embd.weight")?.rows ?? 0))
        config["tie_word_embeddings"] = .bool(!gguf.tensors.contains("output.weight"))
        config["attention_bias"] = .bool(kind.modelType == "llama" && gguf.tensors.contains("blk.0.attn_q.bias"))
        config["mlp_bias"] = .bool(gguf.tensors.contains("blk.0.ffn_up.bias"))
        if !kind.hasWindows, let window = gguf["\(family).attention.sliding_window"]?.intValue, window > 0 { throw slidingWindow(gguf, window) }
        if kind.modelType != "mixtral", let experts = gguf["\(family).expert_count"]?.intValue, experts > 0 {
            throw PEFTError(.unsupported, "\(gguf.origin): \(family).expert_count is \(experts); of mixtures of experts this version reads Llama's (Mixtral)")
        }
        for (key, name) in [("bos_token_id", "bos_token_id"), ("eos_token_id", "eos_token_id"), ("padding_token_id", "pad_token_id")] {
            if let id = gguf["tokenizer.ggml.\(key)"]?.intValue { config[name] = .integer(Int64(id)) }
        }
        if let length = gguf["\(family).rope.scaling.original_context_length"]?.intValue { config["original_max_position_embeddings"] = .integer(Int64(length)) }
        config = kind.settings(config, rotary: try rotary(gguf, family, config, engine)) { gguf["\(family).\($0)"]?.doubleValue.map { decimal($0) } }
        if let name = gguf["general.name"]?.stringValue { config["_name_or_path"] = .string(name) }
        return config
    }

    private static func slidingWindow(_ gguf: GGUF, _ window: Int) -> PEFTError {
        PEFTError(.unsupported, "\(gguf.origin): a sliding window of \(window) in a GGUF file; open the model's Hugging Face folder instead")
    }

    private static func decimal(_ value: Double) -> Double { Double("\(Float(value))") ?? value }

    private static func rotary(_ gguf: GGUF, _ family: String, _ config: JSONObject, _ engine: Engine) throws(PEFTError) -> JSONObject {
        let base = decimal(gguf["\(family).rope.freq_base"]?.doubleValue ?? 10000)
        let headSize = config["head_dim"]?.intValue ?? (config["hidden_size"]?.intValue ?? 0) / max(config["num_attention_heads"]?.intValue ?? 1, 1)
        let dimension = gguf["\(family).rope.dimension_count"]?.intValue ?? headSize
        let part = JSONValue.number(Double(dimension) / Double(max(headSize, 1)))
        guard dimension == headSize || family == "phi3" else {
            throw PEFTError(.unsupported, "\(gguf.origin): rope.dimension_count is \(dimension); this version rotates whole heads (\(headSize))")
        }
        let kind = gguf["\(family).rope.scaling.type"]?.stringValue ?? "none"
        let factor = gguf["\(family).rope.scaling.factor"]?.doubleValue ?? 1
        if let factors = gguf.tensors.peek(rotaryFactors) { return try llama3(factors, base, headSize, gguf.origin, engine) }
        if let long = gguf.tensors.peek(longFactors), let short = gguf.tensors.peek(shortFactors) {
            func list(_ factors: Tensor) throws(PEFTError) -> JSONValue { .array(try factors.floats(engine).map { .number(decimal(Double($0))) }) }
            var rotary: JSONObject = [
                "rope_type": .string("longrope"), "rope_theta": .number(base), "partial_rotary_factor": part, "short_factor": try list(short), "long_factor": try list(long),
            ]
            rotary["attention_factor"] = gguf["\(family).rope.scaling.attn_factor"]?.doubleValue.map { .number(decimal($0)) }
            return rotary
        }
        switch kind {
        case "none" where family == "phi3": return ["rope_type": .string("default"), "rope_theta": .number(base), "partial_rotary_factor": part]
        case "none": return ["rope_type": .string("default"), "rope_theta": .number(base)]
        case "linear": return ["rope_type": .string("linear"), "rope_theta": .number(base), "factor": .number(decimal(factor))]
        case "yarn":
            for key in ["attn_factor", "yarn_log_multiplier", "yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow"] where gguf["\(family).rope.scaling.\(key)"] != nil {
                throw PEFTError(.unsupported, "\(gguf.origin): rope.scaling.\(key) beside \"yarn\"; this version reads its factor and original_context_length")
            }
            return ["rope_type": .string("yarn"), "rope_theta": .number(base), "partial_rotary_factor": part, "factor": .number(decimal(factor))]
        default: throw PEFTError(.unsupported, "\(gguf.origin): rope.scaling.type is \"\(kind)\"; this version has none, linear, yarn, and Llama 3's factors")
        }
    }

    /// llama.cpp stores Llama 3's scaling as what each frequency is divided by; its largest value is the factor, the rest of
    /// the rule has been the same for all published models.
    private static func llama3(_ factors: Tensor, _ base: Double, _ headSize: Int, _ origin: String, _ engine: Engine) throws(PEFTError) -> JSONObject {
        let values = try factors.floats(engine)
        let rule = Llama3Scaling(factor: values.max() ?? 1)
        let isRule = values.count == headSize / 2 && values.enumerated().allSatisfy { index, value in
            let frequency = Float(1 / pow(base, Double(2 * index) / Double(headSize)))
            return abs(frequency / value - rule.scaled(frequency)) <= 1e-4 * frequency / value
        }
        guard isRule else { throw PEFTError(.unsupported, "\(origin): \(rotaryFactors) is not Llama 3's scaling") }
        return rule.json(base: base)
    }

    // MARK: Experts

    /// Gate and up of each expert become one matrix, `[experts, 2·inner, hidden]`: a copy, counted as weights.
    private static func join(_ named: inout [NamedTensor], _ engine: Engine, _ origin: String) throws(PEFTError) {
        let ups = Dictionary(named.filter { $0.name.hasSuffix(".experts.up.weight") }.map { ($0.name, $0.tensor) }) { $1 }
        var result: [NamedTensor] = []
        for item in named where ups[item.name] == nil {
            guard item.name.hasSuffix(".experts.gate.weight") else {
                let isStack = item.name.hasSuffix(".experts.down_proj.weight")
                result.append(NamedTensor(isStack ? String(item.name.dropLast(".weight".count)) : item.name, item.tensor))
                continue
            }
            let (stem, gate) = (item.name.dropLast("gate.weight".count), item.tensor)
            guard let up = ups[stem + "up.weight"], gate.shape.count == 3, up.shape == gate.shape, up.dtype == gate.dtype, !gate.dtype.isCoded else {
                throw PEFTError(.format, "\(origin): '\(item.name)' \(gate.dtype.name) \(gate.shape) has no 'up' like it")
            }
            let (count, inner) = (gate.shape[0], gate.shape[1])
            let both = try Tensor(engine, [count, 2 * inner, gate.shape[2]], gate.dtype, .weights)
            let size = inner * gate.rowBytes
            for expert in 0..<count where both.storage.isReal {
                unsafe (both.pointer + 2 * expert * size).copyMemory(from: gate.pointer + expert * size, byteCount: size)
                unsafe (both.pointer + (2 * expert + 1) * size).copyMemory(from: up.pointer + expert * size, byteCount: size)
            }
            result.append(NamedTensor(stem + "gate_up_proj", both))
        }
        named = result
    }

    // MARK: Row order

    /// How many heads a tensor's rows belong to, whose order is llama.cpp's; nil: they are as they were.
    static func heads(of name: String, _ family: String, _ heads: Int, _ keyValueHeads: Int) -> Int? {
        guard family == "llama" else { return nil }
        if name.hasSuffix(".attn_q.weight") || name.hasSuffix(".attn_q.bias") { return heads }
        return name.hasSuffix(".attn_k.weight") || name.hasSuffix(".attn_k.bias") ? keyValueHeads : nil
    }

    /// llama.cpp's order: within each head, row 2i + j of the file is row i + j·(headSize/2) of the original.
    /// - Parameter toFile: makes it; false: undoes it.
    static func reordered(_ tensor: Tensor, _ heads: Int, _ engine: Engine, _ name: String, toFile: Bool) throws(PEFTError) -> Tensor {
        let isVector = tensor.shape.count == 1
        let rows = isVector ? tensor.count : tensor.rows
        guard heads > 0, rows % (2 * heads) == 0, !isVector || tensor.dtype.isFloat else { throw PEFTError(.format, "'\(name)' \(tensor.shape) does not divide into \(heads) heads") }
        guard !tensor.dtype.isCoded else { return try reordered(try tensor.converted(to: .f32, engine, .scratch), heads, engine, name, toFile: toFile) }
        let half = rows / heads / 2
        let rowBytes = isVector ? tensor.dtype.blockBytes : tensor.rowBytes
        let result = try Tensor(engine, tensor.shape, tensor.dtype, toFile ? .scratch : .weights)
        for head in 0..<heads {
            for index in 0..<2 * half {
                let ofFile = head * 2 * half + index
                let original = head * 2 * half + index / 2 + index % 2 * half
                let (source, target) = toFile ? (original, ofFile) : (ofFile, original)
                unsafe (result.pointer + target * rowBytes).copyMemory(from: tensor.pointer + source * rowBytes, byteCount: rowBytes)
            }
        }
        return result
    }
}
