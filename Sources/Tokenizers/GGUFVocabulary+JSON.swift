package import Platform

extension GGUFVocabulary {
    /// What a GGUF file says of the tokenizer of a tokenizer.json (`definition`), as llama.cpp's converter does it: every row of the
    /// embedding is a token, those that the tokenizer does not know are unused.
    /// - Throws: `.unsupported` for a tokenizer that such files have no word for.
    package init(definition: JSONValue, of tokenizer: Tokenizer, rows: Int) throws(PEFTError) {
        let model = definition["model"] ?? .null
        guard model.typeName == "BPE", let vocabulary = model["vocab"]?.objectValue else {
            throw PEFTError(.unsupported, "a tokenizer \(model.typeName) in a GGUF file; BPE is written")
        }
        let isSentencePiece = try model.flag("byte_fallback", default: false)
        self.init(model: isSentencePiece ? "llama" : "gpt2", tokens: (0..<rows).map { Array("[PAD\($0)]".utf8)[...] })
        tokenTypes = Array(repeating: Kind.unused, count: rows)
        func set(_ id: Int?, _ text: String, _ kind: Int32) throws(PEFTError) {
            guard let id, tokens.indices.contains(id) else {
                throw PEFTError(.format, "the token \"\(text)\" has the id \(id.map(String.init) ?? "?"); the model's embedding has \(rows) rows")
            }
            (tokens[id], tokenTypes[id]) = (Array(text.utf8)[...], kind)
        }
        for (text, id) in vocabulary.pairs { try set(id.intValue, text, isSentencePiece && GGUFVocabulary.isByte(text) ? Kind.byte : Kind.normal) }
        for token in definition["added_tokens"]?.arrayValue ?? [] {
            try set(token["id"]?.intValue, token["content"]?.stringValue ?? "", try token.flag("special", default: false) ? Kind.control : Kind.userDefined)
        }
        let pairs = try (model["merges"]?.arrayValue ?? []).enumerated().map { (index, merge) throws(PEFTError) in
            let parts = merge.arrayValue?.compactMap(\.stringValue) ?? (merge.stringValue ?? "").split(separator: " ", omittingEmptySubsequences: false).map(String.init)
            guard parts.count == 2 else { throw PEFTError(.format, "tokenizer.json: merge \(index) is \(merge.text()); two parts are needed") }
            return (left: parts[0], right: parts[1])
        }
        let roles = tokenizer.specialTokens
        (beginningID, endID, paddingID) = (roles.beginning.map { Int($0) }, roles.end.map { Int($0) }, roles.padding.map { Int($0) })
        unknownID = roles.unknown.map { Int($0) }
        let around = try tokenizer.encode("", addSpecialTokens: true)
        addsBeginning = roles.beginning.map { around.first == $0 } ?? false
        addsEnd = roles.end.map { around.last == $0 && around.count > (addsBeginning == true ? 1 : 0) } ?? false
        chatTemplate = tokenizer.chatTemplate
        guard isSentencePiece else {
            merges = pairs.map { Array("\($0.left) \($0.right)".utf8)[...] }
            pre = try ByteLevelFamily(definition: definition).name
            return
        }
        // SentencePiece joins what has the highest score: that of a piece is the place of the first merge that makes it.
        scores = Array(repeating: -Float(pairs.count), count: rows)
        for (rank, pair) in pairs.enumerated().reversed() {
            if let id = vocabulary[pair.left + pair.right]?.intValue, scores.indices.contains(id) { scores[id] = -Float(rank) }
        }
        if let unknownID, tokenTypes.indices.contains(unknownID) { tokenTypes[unknownID] = Kind.unknown }
        let normalizer = definition["normalizer"] ?? .null
        let prepends = (normalizer["normalizers"]?.arrayValue ?? [normalizer]).contains { $0.typeName == "Prepend" }
        addsSpacePrefix = prepends || definition["pre_tokenizer"]?["prepend_scheme"]?.stringValue.map { $0 != "never" } ?? false
        pre = "default"
    }

    /// "<0x0A>"
    private static func isByte(_ text: String) -> Bool { text.utf8.count == 6 && text.hasPrefix("<0x") && text.hasSuffix(">") }
}

extension ByteLevelFamily {
    private static let names = ["gpt-2", "smollm", "llama-bpe", "smaug-bpe", "qwen2", "stablelm2", "gpt-4o", "tekken"]

    /// What GGUF files call it; nil: they do not.
    private var knownName: String? { ByteLevelFamily.names.first { (try? ByteLevelFamily(pre: $0)) == self } }

    /// How a tokenizer.json treats text.
    /// - Throws: `.unsupported` when it is none of those that GGUF files know by a name.
    fileprivate init(definition: JSONValue) throws(PEFTError) {
        try self.init(pre: "gpt-2")
        let whole = definition["pre_tokenizer"] ?? .null, steps = whole["pretokenizers"]?.arrayValue ?? [whole]
        var isKnown = steps.last?.typeName == "ByteLevel"
        for step in steps {
            switch step.typeName {
            case "ByteLevel": break
            case "Digits": isolatesDigits = try step.flag("individual_digits", default: false)
            case "Split": pattern = step["pattern"]?["Regex"]?.stringValue ?? ""
            default: isKnown = false
            }
        }
        ignoresMerges = try definition["model"]?.flag("ignore_merges", default: false) ?? false
        composes = definition["normalizer"]?["type"]?.stringValue == "NFC"
        guard isKnown, knownName != nil else {
            throw PEFTError(.unsupported, "a GGUF file has no name for this pre-tokenizer: \(whole.text()); it has \(ByteLevelFamily.names.joined(separator: ", "))")
        }
    }

    fileprivate var name: String { knownName ?? "default" }
}
