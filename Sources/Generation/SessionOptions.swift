package import Models
package import Platform

/// What happens when the context is full.
package enum FullContext: String, Sendable, CaseIterable {
    /// The call ends with `.contextFull`.
    case stop
    /// The oldest tokens after the first `keep` are dropped and the rest moves up.
    case shift
}

/// How a session reads and writes.
package struct SessionOptions: Sendable {
    /// Tokens the session can hold; nil: 2048, or the model's own length if that is less.
    package var contextLength: Int?
    package var sampling = SamplingOptions()
    /// Text that ends the answer; it is not part of it.
    package var stop: [String] = []
    package var onFull = FullContext.stop
    /// Tokens at the start that a shift never drops.
    package var keep = 4
    /// Go on after an end-of-sequence token.
    package var ignoresEnd = false
    /// Of an adapter with several: which one the text is of.
    package var task: Int?
    /// Tokens guessed from the text itself and read ahead (`PromptLookup`); 0: none.
    package var promptLookupTokens = 0
    /// Adapters' gates (`use_gating`) are means over what one call reads, and then each token by itself, as the `adapters` library generates
    /// with its cache; else over all of the text, as without a cache: with each token all before it changes, and is read anew.
    package var gatesEachCall = false
    /// Layers of which adapters change everything have copies of their weights with that change in them while it writes.
    package var foldsAdapters = false
    /// How keys and values are kept; nil: as the model computes.
    package var cacheFormat: CacheFormat?

    package init() {}

    /// The keys of the JSON form.
    package static let keys: Set<String> = [
        "context_length", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "stop", "on_full", "keep", "ignore_eos", "task_id", "prompt_lookup_num_tokens", "suppress_tokens",
        "kv_cache_type", "gates", "fold_adapters",
    ]

    /// These options with what `json` says; keys that are not of sampling are ignored (the caller knows them).
    /// - Throws: `.argument` naming the key, the value and what would be right.
    package func updated(from json: JSONObject) throws(PEFTError) -> SessionOptions {
        var options = self
        if let value = try json.integer("context_length") { options.contextLength = value }
        if let value = try json.float("temperature") { options.sampling.temperature = value }
        if let value = try json.integer("top_k") { options.sampling.topK = value }
        if let value = try json.float("top_p") { options.sampling.topP = value }
        if let value = try json.float("min_p") { options.sampling.minP = value }
        if let value = try json.float("repetition_penalty") { options.sampling.repetitionPenalty = value }
        if let value = try json.integer("seed") { options.sampling.seed = UInt64(bitPattern: Int64(value)) }
        if let value = try json.boolean("ignore_eos") { options.ignoresEnd = value }
        if let value = try json.boolean("fold_adapters") { options.foldsAdapters = value }
        if let value = try json.integer("task_id") { options.task = value }
        if let value = try json.integer("prompt_lookup_num_tokens") {
            guard value >= 0, value <= PromptLookup.mostTokens else {
                throw PEFTError(.argument, "prompt_lookup_num_tokens is \(value); 0 (none) to \(PromptLookup.mostTokens) are accepted")
            }
            options.promptLookupTokens = value
        }
        if let value = try json.integer("keep") {
            guard value >= 0 else { throw PEFTError(.argument, "keep is \(value); 0 or more is accepted") }
            options.keep = value
        }
        if let value = try json.list("suppress_tokens") {
            options.sampling.suppressed = value.compactMap(\.intValue)
            guard options.sampling.suppressed.count == value.count else { throw PEFTError(.argument, "suppress_tokens is \(JSONValue.array(value).text()); a list of token ids is accepted") }
        }
        if let value = try json.strings("stop") { options.stop = value }
        if let name = try json.text("on_full") {
            guard let choice = FullContext(rawValue: name) else { throw PEFTError(.argument, "on_full is \"\(name)\"; \"stop\" and \"shift\" are accepted") }
            options.onFull = choice
        }
        if let name = try json.text("gates") {
            guard name == "text" || name == "call" else { throw PEFTError(.argument, "gates is \"\(name)\"; \"text\" and \"call\" are accepted") }
            options.gatesEachCall = name == "call"
        }
        if let name = try json.text("kv_cache_type") {
            guard let format = CacheFormat(rawValue: name) else {
                throw PEFTError(.argument, "kv_cache_type is \"\(name)\"; \(CacheFormat.allCases.map { "\"\($0.rawValue)\"" }.joined(separator: ", ")) are accepted")
            }
            options.cacheFormat = format
        }
        if let length = options.contextLength, length < 1 { throw PEFTError(.argument, "context_length is \(length); it must be at least 1") }
        try options.sampling.validate()
        return options
    }
}
