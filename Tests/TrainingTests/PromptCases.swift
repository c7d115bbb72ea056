import Platform

/// Every method that adapts no layer, as it is tested on the little Llama (32 wide).
enum PromptCases {
    static let all: [(name: String, config: JSONObject)] = [
        ("prompt", ["peft_type": .string("PROMPT_TUNING"), "task_type": .string("CAUSAL_LM"), "num_virtual_tokens": .integer(3)]),
        ("ptuning", ["peft_type": .string("P_TUNING"), "num_virtual_tokens": .integer(2), "encoder_hidden_size": .integer(8)]),
        ("mpt", ["peft_type": .string("MULTITASK_PROMPT_TUNING"), "num_virtual_tokens": .integer(4), "num_tasks": .integer(3), "num_ranks": .integer(2)]),
        ("cpt", ["peft_type": .string("CPT"), "task_type": .string("CAUSAL_LM"), "cpt_token_ids": .array([5, 9, 12, 20].map { .integer($0) }), "cpt_tokens_type_mask": .array([1, 2, 3, 4].map { .integer($0) })]),
        ("prefix", ["peft_type": .string("PREFIX_TUNING"), "task_type": .string("CAUSAL_LM"), "num_virtual_tokens": .integer(5)]),
        ("projected", ["peft_type": .string("PREFIX_TUNING"), "num_virtual_tokens": .integer(2), "prefix_projection": .bool(true), "encoder_hidden_size": .integer(8)]),
        ("gated", ["peft_type": .string("PREFIX_TUNING"), "num_virtual_tokens": .integer(3), "use_gating": .bool(true), "shared_gating": .bool(false)]),
        ("cartridge", ["peft_type": .string("CARTRIDGE"), "num_virtual_tokens": .integer(3)]),
        ("beside", ["peft_type": .string("ADAPTION_PROMPT"), "adapter_len": .integer(4), "adapter_layers": .integer(2)]),
    ]

    static let names = all.map(\.name)

    static func config(_ name: String) -> JSONObject { all.first { $0.name == name }?.config ?? [:] }
}
