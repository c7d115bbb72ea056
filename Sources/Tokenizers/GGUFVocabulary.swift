package import Platform

/// The tokenizer of a GGUF file: its `tokenizer.*` metadata, filled in by the caller.
package struct GGUFVocabulary: Sendable {
    /// `tokenizer.ggml.model`: "gpt2" (byte-level BPE) or "llama" (SentencePiece BPE).
    package var model: String
    /// `tokenizer.ggml.pre`: which pattern cuts text, "smollm", "llama-bpe", "qwen2"…; only for "gpt2".
    package var pre: String?
    /// Slices, because a file's 50,000 tokens and as many merges lie in one piece of memory (`GGUFStrings.slices`).
    package var tokens: [ArraySlice<UInt8>]
    /// 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte; empty: all normal.
    package var tokenTypes: [Int32] = []
    /// `tokenizer.ggml.scores`: for "llama", the pair with the highest score is joined first.
    package var scores: [Float] = []
    /// `tokenizer.ggml.merges`: "left right", best first; for "gpt2".
    package var merges: [ArraySlice<UInt8>] = []
    package var beginningID: Int?
    package var endID: Int?
    package var paddingID: Int?
    package var unknownID: Int?
    /// `tokenizer.ggml.eot_token_id`
    package var endOfTurnID: Int?
    /// `add_bos_token`, `add_eos_token`, `add_space_prefix`; nil: the model family's habit.
    package var addsBeginning: Bool?
    package var addsEnd: Bool?
    package var addsSpacePrefix: Bool?
    package var chatTemplate: String?

    package init(model: String, pre: String? = nil, tokens: [ArraySlice<UInt8>]) {
        self.model = model
        self.pre = pre
        self.tokens = tokens
    }
}

extension Tokenizer {
    /// Errors: `.unsupported` naming a model or pre-tokenizer this version does not have, `.format` for lists that do not fit.
    package convenience init(_ gguf: GGUFVocabulary) throws(PEFTError) {
        do throws(PEFTError) {
            try self.init(try gguf.parts())
        } catch {
            throw error.within("GGUF tokenizer")
        }
    }
}

extension GGUFVocabulary {
    /// `tokenizer.ggml.token_type`
    enum Kind {
        static let (normal, unknown, control): (Int32, Int32, Int32) = (1, 2, 3)
        static let (userDefined, unused, byte): (Int32, Int32, Int32) = (4, 5, 6)
    }

    fileprivate func parts() throws(PEFTError) -> Tokenizer.Parts {
        guard tokenTypes.isEmpty || tokenTypes.count == tokens.count else {
            throw PEFTError(.format, "\(tokens.count) tokens but \(tokenTypes.count) token types")
        }
        guard scores.isEmpty || scores.count == tokens.count else {
            throw PEFTError(.format, "\(tokens.count) tokens but \(scores.count) scores")
        }
        let vocabulary = try Vocabulary(tokens.enumerated().map { ($1, $0) })
        var parts: Tokenizer.Parts
        switch model {
        case "gpt2": parts = try byteLevel(vocabulary)
        case "llama": parts = try sentencePiece(vocabulary)
        default: throw PEFTError(.unsupported, "model \"\(model)\" is not supported; gpt2 and llama are")
        }
        parts.addedTokens = addedTokens()
        parts.specialTokens = try specialTokens(parts.addedTokens)
        if addsBeginning ?? (model == "llama"), let id = parts.specialTokens.beginning { parts.prefix = [id] }
        if addsEnd ?? false, let id = parts.specialTokens.end { parts.suffix = [id] }
        parts.chatTemplate = chatTemplate
        return parts
    }

    private func byteLevel(_ vocabulary: Vocabulary) throws(PEFTError) -> Tokenizer.Parts {
        guard !merges.isEmpty else { throw PEFTError(.format, "byte-level BPE needs merges, and the list is empty") }
        let family = try ByteLevelFamily(pre: pre)
        let options = BPEModel.Options(symbols: .bytes, ignoresMerges: family.ignoresMerges)
        let table = try MergeTable(merges.count, vocabulary) { (rank) throws(PEFTError) in try MergeTable.pair(merges[rank], rank) }
        let model = BPEModel(vocabulary: vocabulary, merges: table, options: options)
        let pattern = PreTokenizer.byteLevel(
            addsPrefixSpace: addsSpacePrefix ?? false, pattern: try TokenizerPatterns.compile(family.pattern))
        return Tokenizer.Parts(
            model: model, normalizer: family.composes ? .form(.nfc) : nil,
            preTokenizer: family.isolatesDigits ? .sequence([.digits(individual: true), pattern]) : pattern,
            decoder: TokenDecoder(steps: [.byteLevel]), addedTokens: [])
    }

    private func sentencePiece(_ vocabulary: Vocabulary) throws(PEFTError) -> Tokenizer.Parts {
        guard !scores.isEmpty else {
            throw PEFTError(.format, "a SentencePiece vocabulary needs scores, and the list is empty")
        }
        guard scores.allSatisfy(\.isFinite) else { throw PEFTError(.format, "a score is not a finite number") }
        let unknownToken = tokenTypes.firstIndex(of: Kind.unknown) ?? unknownID
        let options = BPEModel.Options(
            symbols: .characters,
            unknownToken: unknownToken.flatMap { tokens.indices.contains($0) ? Int32(clamping: $0) : nil },
            fusesUnknown: true, byteFallback: true)
        let model = BPEModel(
            vocabulary: vocabulary, merges: MergeTable(joining: vocabulary, scores: scores, types: tokenTypes),
            options: options)
        let mark: [UInt8] = [0xE2, 0x96, 0x81]  // ▁
        let escape = Normalizer.replace(.text([0x20]), with: mark)
        let addsSpace = addsSpacePrefix ?? true
        return Tokenizer.Parts(
            model: model, normalizer: addsSpace ? .sequence([.prepend(mark), escape]) : escape, preTokenizer: nil,
            decoder: TokenDecoder(
                steps: [.replace(.text(mark), with: [0x20]), .byteFallback], leadingStrip: addsSpace ? ([0x20], 1) : nil
            ),
            addedTokens: [])
    }

    private func addedTokens() -> [AddedToken] {
        var added: [AddedToken] = []
        for (id, type) in tokenTypes.enumerated()
        where type == Kind.control || type == Kind.userDefined || type == Kind.unknown {
            added.append(
                AddedToken(content: Array(tokens[id]), id: Int32(clamping: id), isSpecial: type != Kind.userDefined))
        }
        return added
    }

    private func specialTokens(_ added: [AddedToken]) throws(PEFTError) -> SpecialTokens {
        func checked(_ id: Int?, _ name: String) throws(PEFTError) -> Int32? {
            guard let id else { return nil }
            guard tokens.indices.contains(id) else {
                throw PEFTError(.format, "\(name) is \(id), but there are \(tokens.count) tokens")
            }
            return Int32(clamping: id)
        }
        var roles = SpecialTokens(
            beginning: try checked(beginningID, "bos_token_id"), end: try checked(endID, "eos_token_id"),
            padding: try checked(paddingID, "padding_token_id"), unknown: try checked(unknownID, "unknown_token_id"))
        let names = SpecialTokens.endOfTurnNames.map { Array($0.utf8) }
        var ends = [roles.end, try checked(endOfTurnID, "eot_token_id")].compactMap(\.self)
        ends += added.filter { names.contains($0.content) }.map(\.id)
        for id in ends where !roles.endOfTurn.contains(id) { roles.endOfTurn.append(id) }
        return roles
    }
}

extension MergeTable {
    /// SentencePiece names no merges: two adjacent pieces may join if their text is a piece, the one with the highest
    /// score first. So every way to cut a piece in two pieces is a merge, ranked by the score of the whole.
    fileprivate init(joining vocabulary: Vocabulary, scores: [Float], types: [Int32]) {
        let normal = (0..<scores.count).filter { types.isEmpty || types[$0] == 1 || types[$0] == 4 || types[$0] == 5 }
        let order = normal.sorted { (scores[$0], $1) > (scores[$1], $0) }
        var found: [(left: Int32, right: Int32, rank: Int32, id: Int32)] = []
        var rank: Int32 = -1
        var previous = Float.nan
        for index in order {
            if scores[index] != previous { rank += 1 }  // equal scores: equal rank, the leftmost pair goes first
            previous = scores[index]
            let id = Int32(clamping: index)
            // The cuts of a token are quadratic in its length; no vocabulary has pieces this long.
            guard let token = vocabulary.token(id), token.count <= 1024 else { continue }
            for cut in token.indices.dropFirst() where token[cut] & 0xC0 != 0x80 {
                if let left = vocabulary.id(of: token[..<cut]), let right = vocabulary.id(of: token[cut...]) {
                    found.append((left, right, rank, id))
                }
            }
        }
        self.init(count: found.count)
        for merge in found { insert(merge.left, merge.right, rank: merge.rank, id: merge.id) }
    }
}
