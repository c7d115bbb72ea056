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

    /// - Parameter isMixture: llama.cpp has Mixtral as a Llama with experts.
    static func of(_ architecture: String, isMixture: Bool) -> GGUFFamily? {
        isMixture && architecture == "llama" ? GGUFFamily(modelType: "mixtral", headClass: "MixtralForCausalLM", modules: mixture) : all[architecture]
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
            // The largest of each generation divides by the mean share of a head (llama.cpp, llama-model.cpp); the file does not say.
            let (layers, heads) = (config["num_hidden_layers"]?.intValue ?? 0, max(config["num_attention_heads"]?.intValue ?? 1, 1))
            let isLargest = layers == (modelType == "gemma2" ? 46 : 62)
            config["query_pre_attn_scalar"] = isLargest ? (config["hidden_size"]?.intValue).map { .integer(Int64($0 / heads)) } : config["head_dim"]
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
}
