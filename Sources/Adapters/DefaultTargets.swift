internal import Platform

/// What null `target_modules` means, by the base model's model_type (methods.md a.4).
enum DefaultTargets {
    private static let families: [(targets: [String], types: [String])] = [
        (["q", "v"], ["t5", "mt5"]),
        (
            ["q_proj", "v_proj"],
            [
                "bart", "opt", "gptj", "gpt_neo", "llama", "llama4", "mistral", "mixtral", "stablelm", "gemma",
                "gemma2", "gemma3_text", "qwen2", "qwen3",
            ]
        ),
        (["c_attn"], ["gpt2", "gpt_bigcode"]),
        (["query_key_value"], ["bloom", "gpt_neox", "chatglm", "RefinedWebModel", "RefinedWeb", "falcon"]),
        (["q", "v", "q_proj", "v_proj"], ["blip-2"]),
        (["query", "value"], ["bert", "roberta", "xlm-roberta", "electra", "layoutlm"]),
        (["query_proj", "value_proj"], ["deberta-v2"]),
        (["in_proj"], ["deberta"]),
        (["Wqkv"], ["mpt"]),
        (["c_proj", "c_attn"], ["btlm"]),
        (["qkv_proj"], ["codegen"]),
        (["q_proj", "v_proj", "fc1", "fc2"], ["phi"]),
        (["q_proj", "k_proj", "v_proj", "o_proj"], ["nemotron_h"]),
        (["key", "value", "receptance", "output"], ["rwkv"]),
        (["r_proj", "k_proj", "v_proj", "o_proj", "key", "value"], ["rwkv7"]),
    ]

    /// LoRA's, which most methods share.
    static let lora: [String: JSONValue] = {
        var table: [String: JSONValue] = ["gemma4": .string(".*language_model\\..*\\.(q_proj|v_proj)")]
        for family in families {
            for type in family.types { table[type] = .array(family.targets.map { .string($0) }) }
        }
        return table
    }()
}
