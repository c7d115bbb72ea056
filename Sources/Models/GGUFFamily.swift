internal import Checkpoints
internal import Platform
internal import Tensors

/// What llama.cpp calls a family of models and its modules (ggml-org/llama.cpp, gguf-py/gguf/constants.py), and what transformers does.
struct GGUFFamily {
    let modelType: String, headClass: String
    var activation = "silu"
    /// Of a block: llama.cpp's name to transformers'.
    var modules = GGUFFamily.usual
    /// Norms have weights 1 + w in the file, which transformers adds itself.
    var addsOne = false
    /// Layers may see a window only.
    var hasWindows = false

    private static let usual = [
        "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    ]
    private static let normedOutputs = usual.merging(
        ["post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm", "post_ffw_norm": "post_feedforward_layernorm"]) { $1 }
    private static let fused = usual.merging(["attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"]) { $1 }
    private static let mixture = usual.merging(
        ["ffn_gate_inp": "mlp.gate", "ffn_gate_exps": "mlp.experts.gate", "ffn_up_exps": "mlp.experts.up", "ffn_down_exps": "mlp.experts.down_proj"]) { $1 }

    /// By `general.architecture`.
    private static let all: [String: GGUFFamily] = [
        "llama": GGUFFamily(modelType: "llama", headClass: "LlamaForCausalLM"), "qwen2": GGUFFamily(modelType: "qwen2", headClass: "Qwen2ForCausalLM"),
        "qwen3": GGUFFamily(modelType: "qwen3", headClass: "Qwen3ForCausalLM"),
        "gemma": GGUFFamily(modelType: "gemma", headClass: "GemmaForCausalLM", activation: "gelu_pytorch_tanh", addsOne: true),
        "gemma2": GGUFFamily(modelType: "gemma2", headClass: "Gemma2ForCausalLM", activation: "gelu_pytorch_tanh", modules: normedOutputs, addsOne: true, hasWindows: true),
        "gemma3": GGUFFamily(modelType: "gemma3_text", headClass: "Gemma3ForCausalLM", activation: "gelu_pytorch_tanh", modules: normedOutputs, addsOne: true, hasWindows: true),
        "phi3": GGUFFamily(modelType: "phi3", headClass: "Phi3ForCausalLM", modules: fused, hasWindows: true),
    ]

    static var names: String { all.keys.sorted().joined(separator: ", ") }
    static var modelTypes: String { (all.values.map(\.modelType) + ["mistral", "mixtral"]).sorted().joined(separator: ", ") }

    /// - Parameter isMixture: llama.cpp has Mixtral as a Llama with experts.
    static func of(_ architecture: String, isMixture: Bool) -> GGUFFamily? {
        isMixture && architecture == "llama" ? GGUFFamily(modelType: "mixtral", headClass: "MixtralForCausalLM", modules: mixture) : all[architecture]
    }

    /// What files of a model type are called; nil: there are none. Mistral is a Llama there.
    static func architecture(of modelType: String) -> String? {
        modelType == "mistral" || modelType == "mixtral" ? "llama" : all.first { $0.value.modelType == modelType }?.key
    }

    /// What the family's configuration says beside what all have.
    /// - Parameters:
    ///   - number: a setting of the file; nil: it has none of that name.
    ///   - rotary: of layers that see everything.
    func settings(_ config: JSONObject, rotary: JSONObject, _ number: (String) -> Double?) -> JSONObject {
        var config = config
        config["rope_parameters"] = .object(rotary)
        if hasWindows, let window = number("attention.sliding_window"), window > 0 { config["sliding_window"] = .integer(Int64(window)) }
        switch modelType {
        case "mixtral":
            config["num_local_experts"] = number("expert_count").map { .integer(Int64($0)) }
            config["num_experts_per_tok"] = number("expert_used_count").map { .integer(Int64($0)) }
        case "gemma", "gemma2", "gemma3_text":
            config["hidden_activation"] = .string(activation)
            guard modelType != "gemma" else { break }
            config["attn_logit_softcapping"] = number("attn_logit_softcapping").map { .number($0) }
            config["final_logit_softcapping"] = number("final_logit_softcapping").map { .number($0) }
            func size(_ key: String) -> Int { config[key]?.intValue ?? 0 }
            config["query_pre_attn_scalar"] = .integer(Int64(scoreSize(size("num_hidden_layers"), size("hidden_size"), heads: size("num_attention_heads"), size("head_dim"))))
            guard modelType == "gemma3_text" else { break }
            let near: JSONObject = ["rope_type": .string("default"), "rope_theta": .number(10000)]
            config["rope_parameters"] = .object(["full_attention": .object(rotary), "sliding_attention": .object(near)])
        case "phi3":
            // Of Phi-3's ids only this one is read, and its default is none of the vocabulary's.
            if config["pad_token_id"] == nil { config["pad_token_id"] = config["eos_token_id"] }
        default: break
        }
        return config
    }

    /// Scores are divided by its root. The largest of each generation of Gemma has the mean share of a head (llama.cpp,
    /// llama-model.cpp); the file does not say.
    private func scoreSize(_ layers: Int, _ hidden: Int, heads: Int, _ headSize: Int) -> Int {
        layers == (modelType == "gemma2" ? 46 : 62) ? hidden / max(heads, 1) : headSize
    }

    /// The other way round: what files of the family say beside what all do, without the architecture in front of the keys.
    /// - Throws: `.unsupported` for settings that such files have no word for.
    func fields(_ config: ModelConfiguration, layers: Int, heads: Int, headSize: Int) throws(PEFTError) -> [(key: String, field: GGUF.Field)] {
        var fields: [(key: String, field: GGUF.Field)] = []
        func add(_ key: String, _ value: Int) { fields.append((key, .u32(UInt32(clamping: value)))) }
        let key = config.has("hidden_activation") ? "hidden_activation" : "hidden_act"
        let activation = try config.text(key, or: activation)
        // The first Gemma says "gelu" and means the approximation.
        guard activation == self.activation || addsOne && activation == "gelu" else { throw config.unsupported(key, "\(self.activation) in GGUF files") }
        let window = try config.optionalSize("sliding_window")
        if hasWindows {
            let all = modelType == "phi3" ? 0 : try config.size("max_position_embeddings")
            add("attention.sliding_window", window ?? all)
        } else if window != nil, try config.flag("use_sliding_window", or: config.modelType.hasPrefix("mi")) {
            throw config.unsupported("sliding_window", "none in GGUF files")
        }
        switch modelType {
        case "mixtral":
            add("expert_count", try config.size("num_local_experts", or: 8))
            add("expert_used_count", try config.size("num_experts_per_tok", or: 2))
        case "gemma": try config.require("attention_bias", .bool(false))
        case "gemma2", "gemma3_text":
            try config.require("attention_bias", .bool(false))
            // Which layers slide is the architecture's.
            let isSecond = modelType == "gemma2", period = isSecond ? 2 : 6
            func types(_ period: Int) -> [String] { (1...layers).map { $0 % period == 0 ? "full_attention" : "sliding_attention" } }
            let stated = isSecond ? 2 : try config.size("sliding_window_pattern", "_sliding_window_pattern", or: 6)
            guard try config.texts("layer_types") ?? types(stated) == types(period) else {
                throw config.unsupported("layer_types", "full_attention for every layer of \(period), sliding_attention for the others, in GGUF files")
            }
            let size = scoreSize(layers, try config.size("hidden_size"), heads: heads, headSize)
            guard try config.number("query_pre_attn_scalar", or: 256) == Double(size) else { throw config.unsupported("query_pre_attn_scalar", "\(size) in GGUF files") }
            for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
                let cap = try config.number(key, or: 0)
                if cap > 0 { fields.append((key, .f32(Float(cap)))) }
                guard cap > 0 || !isSecond, cap == 0 || isSecond || key.hasPrefix("final") else { throw config.unsupported(key, isSecond ? "a number in GGUF files" : "none in GGUF files") }
            }
            let near = try config.object("rope_parameters")?.object("sliding_attention")
            let base = try (near ?? config).number(near == nil ? "rope_local_base_freq" : "rope_theta", or: 10000)
            guard isSecond || base == 10000 else {
                throw config.unsupported(near == nil ? "rope_local_base_freq" : "rope_parameters", "10000 for layers that slide in GGUF files")
            }
        default: break
        }
        return fields
    }
}
