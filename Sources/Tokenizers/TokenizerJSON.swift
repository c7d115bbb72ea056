package import Platform

extension Tokenizer {
    /// Reads HF's `tokenizer.json` (`definition`), `tokenizer_config.json` (roles of tokens, chat template) and
    /// `special_tokens_map.json`; the template of a `chat_template.jinja` file goes before the one of the configuration.
    ///
    /// Errors: `.format` for what is malformed, `.unsupported` naming the component this version does not have.
    package convenience init(
        definition: JSONValue, configuration: JSONValue? = nil, specialTokensMap: JSONValue? = nil,
        chatTemplate: String? = nil
    ) throws(PEFTError) {
        let reader = TokenizerJSON(definition)
        var parts = try reader.parts()
        var added: [[UInt8]: Int32] = [:]
        for token in parts.addedTokens { added[token.content] = token.id }

        func role(_ key: String) -> Int32? {
            for source in [configuration, specialTokensMap] {
                guard let value = source?[key], let name = value.stringValue ?? value["content"]?.stringValue else {
                    continue
                }
                if let id = added[Array(name.utf8)] ?? parts.model.vocabulary.id(of: name) { return id }
            }
            return nil
        }
        var roles = SpecialTokens(
            beginning: role("bos_token"), end: role("eos_token"), padding: role("pad_token"), unknown: role("unk_token")
        )
        let turnEnds = SpecialTokens.endOfTurnNames.compactMap { added[Array($0.utf8)] }
        roles.endOfTurn = (roles.end.map { [$0] } ?? []) + turnEnds.filter { $0 != roles.end }
        parts.specialTokens = roles
        parts.chatTemplate = chatTemplate ?? TokenizerJSON.template(in: configuration)
        try self.init(parts)
    }
}

/// Reads the parts of a tokenizer.json. Each reader names the component in its errors.
struct TokenizerJSON {
    let definition: JSONValue

    init(_ definition: JSONValue) { self.definition = definition }

    func parts() throws(PEFTError) -> Tokenizer.Parts {
        guard case .object = definition else {
            throw PEFTError(.format, "tokenizer.json: expected an object, got \(definition.kindName)")
        }
        let normalizer = try component("normalizer", readNormalizer)
        let preTokenizer = try component("pre_tokenizer", readPreTokenizer)
        let isByteLevel = try preTokenizer?.endsInBytes() ?? false
        let (model, fallback) = try readModel(isByteLevel: isByteLevel)
        var parts = Tokenizer.Parts(
            model: model, normalizer: normalizer, preTokenizer: preTokenizer,
            decoder: try component("decoder", readDecoder) ?? TokenDecoder(steps: [], separator: [0x20]),
            addedTokens: try readAddedTokens())
        (parts.prefix, parts.suffix) = try component("post_processor", readPostProcessor) ?? ([], [])
        parts.specialTokens.unknown = fallback
        return parts
    }

    /// The default one of `chat_template`, which is a text or a list of named texts.
    static func template(in configuration: JSONValue?) -> String? {
        guard let value = configuration?["chat_template"] else { return nil }
        if let text = value.stringValue { return text }
        let named = value.arrayValue ?? []
        return (named.first { $0["name"]?.stringValue == "default" } ?? named.first)?["template"]?.stringValue
    }

    private func component<T>(_ key: String, _ read: (JSONValue) throws(PEFTError) -> T) throws(PEFTError) -> T? {
        guard let value = definition[key], !value.isNull else { return nil }
        do throws(PEFTError) {
            return try read(value)
        } catch {
            throw error.within("tokenizer.json: \(key)")
        }
    }

    private func readAddedTokens() throws(PEFTError) -> [AddedToken] {
        var tokens: [AddedToken] = []
        for (index, value) in (definition["added_tokens"]?.arrayValue ?? []).enumerated() {
            guard let content = value["content"]?.stringValue, let id = value["id"]?.intValue,
                (0...Vocabulary.maximumID).contains(id)
            else {
                throw PEFTError(
                    .format,
                    "tokenizer.json: added token \(index) needs a content and an id from 0 to \(Vocabulary.maximumID)")
            }
            let isSpecial = value["special"]?.boolValue ?? false
            tokens.append(
                AddedToken(
                    content: Array(content.utf8), id: Int32(id), isSpecial: isSpecial,
                    isSingleWord: value["single_word"]?.boolValue ?? false,
                    stripsLeft: value["lstrip"]?.boolValue ?? false, stripsRight: value["rstrip"]?.boolValue ?? false,
                    isNormalized: value["normalized"]?.boolValue ?? !isSpecial))
        }
        return tokens
    }
}

// MARK: Members of components

extension JSONValue {
    var typeName: String { self["type"]?.stringValue ?? "without a type" }

    /// A member that must be there.
    func text(_ key: String) throws(PEFTError) -> String {
        guard let value = self[key]?.stringValue else {
            throw PEFTError(.format, "\(typeName): \"\(key)\" must be a string, is \(self[key]?.kindName ?? "missing")")
        }
        return value
    }

    func list(_ key: String) throws(PEFTError) -> [JSONValue] {
        guard let value = self[key]?.arrayValue else {
            throw PEFTError(.format, "\(typeName): \"\(key)\" must be an array, is \(self[key]?.kindName ?? "missing")")
        }
        return value
    }

    func flag(_ key: String, default other: Bool) throws(PEFTError) -> Bool {
        guard let value = self[key], !value.isNull else { return other }
        guard let flag = value.boolValue else {
            throw PEFTError(.format, "\(typeName): \"\(key)\" must be true or false, is \(value.kindName)")
        }
        return flag
    }

    /// `{"String": "…"}` or `{"Regex": "…"}`.
    func matcher(_ key: String) throws(PEFTError) -> TextMatcher {
        if let text = self[key]?["String"]?.stringValue { return .text(Array(text.utf8)) }
        if let regex = self[key]?["Regex"]?.stringValue { return .pattern(try TokenizerPatterns.compile(regex)) }
        throw PEFTError(.format, "\(typeName): \"\(key)\" must hold a \"String\" or a \"Regex\"")
    }
}
