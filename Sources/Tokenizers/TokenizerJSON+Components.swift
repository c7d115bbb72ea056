internal import Platform

/// Sequences of components may hold sequences; no real file goes deeper than two or three.
private let maximumNesting = 16

extension TokenizerJSON {
    func readNormalizer(_ json: JSONValue) throws(PEFTError) -> Normalizer { try normalizer(json, depth: 0) }
    func readPreTokenizer(_ json: JSONValue) throws(PEFTError) -> PreTokenizer { try preTokenizer(json, depth: 0) }

    private func checkNesting(_ depth: Int) throws(PEFTError) {
        guard depth < maximumNesting else { throw PEFTError(.format, "sequences nested deeper than \(maximumNesting)") }
    }

    private func normalizer(_ json: JSONValue, depth: Int) throws(PEFTError) -> Normalizer {
        try checkNesting(depth)
        switch json.typeName {
        case "NFC": return .form(.nfc)
        case "NFD": return .form(.nfd)
        case "NFKC": return .form(.nfkc)
        case "NFKD": return .form(.nfkd)
        case "Lowercase": return .lowercase
        case "StripAccents": return .stripAccents
        case "Strip":
            return .strip(
                left: try json.flag("strip_left", default: true), right: try json.flag("strip_right", default: true))
        case "Prepend": return .prepend(Array(try json.text("prepend").utf8))
        case "Replace": return .replace(try json.matcher("pattern"), with: Array(try json.text("content").utf8))
        case "Precompiled": return .precompiled(try CharacterMap(base64: try json.text("precompiled_charsmap")))
        case "BertNormalizer":
            return .bert(
                BertNormalizer(
                    cleansText: try json.flag("clean_text", default: true),
                    separatesIdeographs: try json.flag("handle_chinese_chars", default: true),
                    stripsAccents: json["strip_accents"]?.boolValue,
                    lowercases: try json.flag("lowercase", default: true)))
        case "Sequence":
            var steps: [Normalizer] = []
            for step in try json.list("normalizers") { steps.append(try normalizer(step, depth: depth + 1)) }
            return .sequence(steps)
        case let other: throw PEFTError(.unsupported, "normalizer \"\(other)\" is not supported")
        }
    }

    private func preTokenizer(_ json: JSONValue, depth: Int) throws(PEFTError) -> PreTokenizer {
        try checkNesting(depth)
        switch json.typeName {
        case "ByteLevel":
            let pattern =
                try json.flag("use_regex", default: true) ? try TokenizerPatterns.compile(TokenizerPatterns.gpt2) : nil
            return .byteLevel(addsPrefixSpace: try json.flag("add_prefix_space", default: true), pattern: pattern)
        case "Split":
            return .split(
                try json.matcher("pattern"), try behavior(json), inverted: try json.flag("invert", default: false))
        case "Digits": return .digits(individual: try json.flag("individual_digits", default: false))
        case "Punctuation": return .punctuation(json["behavior"] == nil ? .isolated : try behavior(json))
        case "Whitespace": return .whitespace
        case "WhitespaceSplit": return .whitespaceSplit
        case "BertPreTokenizer": return .bert
        case "Metaspace":
            let (replacement, scheme) = try metaspace(json)
            return .metaspace(replacement: replacement, prepend: scheme, splits: try json.flag("split", default: true))
        case "Sequence":
            var steps: [PreTokenizer] = []
            for step in try json.list("pretokenizers") { steps.append(try preTokenizer(step, depth: depth + 1)) }
            return .sequence(steps)
        case let other: throw PEFTError(.unsupported, "pre-tokenizer \"\(other)\" is not supported")
        }
    }

    private func behavior(_ json: JSONValue) throws(PEFTError) -> SplitBehavior {
        let name = try json.text("behavior")
        guard let behavior = SplitBehavior(rawValue: name) else {
            throw PEFTError(.unsupported, "\(json.typeName): behavior \"\(name)\" is not supported")
        }
        return behavior
    }

    private func metaspace(_ json: JSONValue) throws(PEFTError) -> ([UInt8], PreTokenizer.PrependScheme) {
        let replacement = try json.text("replacement")
        guard replacement.unicodeScalars.count == 1 else {
            throw PEFTError(.format, "Metaspace: the replacement must be one character, is \"\(replacement)\"")
        }
        var name = json["prepend_scheme"]?.stringValue ?? "always"
        if json["prepend_scheme"] == nil, !(try json.flag("add_prefix_space", default: true)) { name = "never" }
        guard let scheme = PreTokenizer.PrependScheme(rawValue: name) else {
            throw PEFTError(.format, "Metaspace: prepend_scheme must be always, first or never, is \"\(name)\"")
        }
        return (Array(replacement.utf8), scheme)
    }

    func readDecoder(_ json: JSONValue) throws(PEFTError) -> TokenDecoder {
        var decoder = TokenDecoder(steps: [])
        var isFused = false
        try addDecoder(json, to: &decoder, isFused: &isFused, depth: 0)
        return decoder
    }

    private func addDecoder(_ json: JSONValue, to decoder: inout TokenDecoder, isFused: inout Bool, depth: Int)
        throws(PEFTError)
    {
        try checkNesting(depth)
        let name = json.typeName
        switch name {
        case "Sequence":
            for step in try json.list("decoders") {
                try addDecoder(step, to: &decoder, isFused: &isFused, depth: depth + 1)
            }
        case "Fuse": isFused = true
        case "Strip":
            let content = Array(try json.text("content").utf8)
            guard let start = json["start"]?.intValue, let stop = json["stop"]?.intValue, start >= 0, stop >= 0 else {
                throw PEFTError(.format, "Strip: start and stop must be counts")
            }
            if !isFused {
                decoder.steps.append(.strip(content, start: start, stop: stop))
            } else {
                guard stop == 0, decoder.leadingStrip == nil, !content.isEmpty else {
                    throw PEFTError(
                        .unsupported,
                        "decoder \"Strip\" after \"Fuse\" is only supported once and at the start of the text")
                }
                decoder.leadingStrip = (content, start)
            }
        case _ where isFused: throw PEFTError(.unsupported, "decoder \"\(name)\" after \"Fuse\" is not supported")
        case "ByteLevel": decoder.steps.append(.byteLevel)
        case "ByteFallback": decoder.steps.append(.byteFallback)
        case "Replace":
            decoder.steps.append(.replace(try json.matcher("pattern"), with: Array(try json.text("content").utf8)))
        case "Metaspace":
            let (replacement, scheme) = try metaspace(json)
            decoder.steps.append(.metaspace(replacement: replacement, dropsFirst: scheme != .never))
        case "WordPiece":
            decoder.steps.append(
                .wordPiece(
                    prefix: Array(try json.text("prefix").utf8), cleansUp: try json.flag("cleanup", default: true)))
        default: throw PEFTError(.unsupported, "decoder \"\(name)\" is not supported")
        }
    }

    /// The tokens before and after a single text.
    func readPostProcessor(_ json: JSONValue) throws(PEFTError) -> (prefix: [Int32], suffix: [Int32]) {
        switch json.typeName {
        case "ByteLevel": return ([], [])  // moves offsets only
        case "TemplateProcessing": return try readTemplate(json)
        case "BertProcessing", "RobertaProcessing":
            return ([try tokenID(json["cls"]?.arrayValue?.last)], [try tokenID(json["sep"]?.arrayValue?.last)])
        case "Sequence":
            var (prefix, suffix): ([Int32], [Int32]) = ([], [])
            for step in try json.list("processors") {
                guard step.typeName != "Sequence" else {
                    throw PEFTError(.unsupported, "a sequence of sequences is not supported")
                }
                let (before, after) = try readPostProcessor(step)
                (prefix, suffix) = (before + prefix, suffix + after)
            }
            return (prefix, suffix)
        case let other: throw PEFTError(.unsupported, "post-processor \"\(other)\" is not supported")
        }
    }

    private func readTemplate(_ json: JSONValue) throws(PEFTError) -> (prefix: [Int32], suffix: [Int32]) {
        var around: [[Int32]] = [[]]
        for part in try json.list("single") {
            if part["Sequence"] != nil {
                around.append([])
            } else if let name = part["SpecialToken"]?["id"]?.stringValue,
                let ids = json["special_tokens"]?[name]?["ids"]?.arrayValue
            {
                for id in ids { around[around.count - 1].append(try tokenID(id)) }
            } else {
                throw PEFTError(
                    .format, "TemplateProcessing: \(part.text()) is neither a sequence nor a token of special_tokens")
            }
        }
        guard around.count == 2 else {
            throw PEFTError(.format, "TemplateProcessing: the single template must hold the sequence once")
        }
        return (around[0], around[1])
    }

    private func tokenID(_ json: JSONValue?) throws(PEFTError) -> Int32 {
        guard let id = json?.intValue, (0...Vocabulary.maximumID).contains(id) else {
            throw PEFTError(.format, "a token id must be from 0 to \(Vocabulary.maximumID)")
        }
        return Int32(id)
    }
}

extension PreTokenizer {
    /// Whether pieces end up as bytes of GPT-2's alphabet. What comes after that step would see the alphabet's text.
    func endsInBytes() throws(PEFTError) -> Bool {
        switch self {
        case .byteLevel: return true
        case .sequence(let steps):
            var found = false
            for step in steps {
                if found {
                    throw PEFTError(
                        .unsupported, "tokenizer.json: pre_tokenizer: a step after \"ByteLevel\" is not supported")
                }
                found = try step.endsInBytes()
            }
            return found
        default: return false
        }
    }
}
