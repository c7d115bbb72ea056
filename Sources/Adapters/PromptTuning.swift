package import Models
package import Platform

/// Prompt tuning (Lester et al., arXiv:2104.08691): learned embeddings in front of the input.
package struct PromptTuning: PromptMethod {
    package static let peftType = "PROMPT_TUNING"
    package static let defaults: JSONObject = {
        var keys = PromptSettings.defaults
        keys["prompt_tuning_init"] = .string("RANDOM")
        for key in ["prompt_token_ids", "prompt_tuning_init_text", "tokenizer_kwargs", "tokenizer_name_or_path"] { keys[key] = .null }
        return keys
    }()

    package let encoder: PromptEncoder
    package let placed: PlacedPrompt?

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        let settings = try PromptSettings(&configuration, model)
        try settings.checkWidth()
        encoder = try PromptEncoder(
            PromptTuning.peftType, count: settings.count, rows: try settings.rows(), width: settings.width,
            start: isNew ? try PromptTuning.start(configuration, settings.embedding) : .zeros, isNew: isNew, model)
        placed = try PlacedPrompt(configuration, encoder, settings.embedding)
    }

    static func start(_ configuration: AdapterConfiguration, _ embedding: Embedding, choices: [String] = ["RANDOM", "TEXT", "SAMPLE_VOCAB"]) throws(PEFTError) -> PromptStart {
        let start = try configuration.choice("prompt_tuning_init", choices)
        guard start == "TEXT" else {
            guard !configuration.isSet("tokenizer_kwargs") else { throw PEFTError(.argument, "tokenizer_kwargs is for prompt_tuning_init TEXT only") }
            return start == "SAMPLE_VOCAB" ? .vocabulary(embedding) : .random
        }
        guard let text = try configuration.values.text("prompt_tuning_init_text"), !text.isEmpty else {
            throw PEFTError(.argument, "prompt_tuning_init TEXT needs prompt_tuning_init_text, a text that is not empty")
        }
        let options = configuration.values["tokenizer_kwargs"]?.objectValue ?? [:]
        if let other = options.keys.first(where: { $0 != "add_special_tokens" && $0 != "trust_remote_code" }) {
            throw PEFTError(.unsupported, "tokenizer_kwargs with \"\(other)\"; add_special_tokens is possible")
        }
        return .text(
            text, path: try configuration.values.text("tokenizer_name_or_path"), addSpecialTokens: try options.boolean("add_special_tokens") ?? true, embedding)
    }
}
