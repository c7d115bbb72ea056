package import Platform

/// Text to token ids and back, as the model was trained with them: the pipeline of HF `tokenizers`
/// (added tokens → normalizer → pre-tokenizer → model → template), read from tokenizer.json or GGUF metadata.
///
/// Immutable: any number of threads may use one at the same time.
package final class Tokenizer: Sendable {
    /// The tokens with a role, as far as the model names them.
    package let specialTokens: SpecialTokens
    /// The model's chat template (Jinja), if it has one.
    package let chatTemplate: String?
    /// One more than the largest token id. A model's embedding may have more rows.
    package let vocabularySize: Int

    private let model: any TokenModel
    private let normalizer: Normalizer?
    private let preTokenizer: PreTokenizer?
    private let decoder: TokenDecoder
    /// What `addSpecialTokens` puts around a text.
    private let prefix: [Int32]
    private let suffix: [Int32]
    private let addedTokens: [Int32: AddedToken]
    private let addedIDs: [[UInt8]: Int32]
    private let rawMatcher: AddedTokenMatcher
    private let normalizedMatcher: AddedTokenMatcher

    /// A tokenizer's parts, as the readers of tokenizer.json and GGUF find them.
    struct Parts {
        var model: any TokenModel
        var normalizer: Normalizer?
        var preTokenizer: PreTokenizer?
        var decoder: TokenDecoder
        var prefix: [Int32] = []
        var suffix: [Int32] = []
        var addedTokens: [AddedToken]
        var specialTokens = SpecialTokens()
        var chatTemplate: String?
    }

    init(_ parts: Parts) throws(PEFTError) {
        model = parts.model
        normalizer = parts.normalizer
        preTokenizer = parts.preTokenizer
        decoder = parts.decoder
        (prefix, suffix) = (parts.prefix, parts.suffix)
        specialTokens = parts.specialTokens
        chatTemplate = parts.chatTemplate
        addedIDs = Dictionary(parts.addedTokens.map { ($0.content, $0.id) }) { _, last in last }
        vocabularySize = max(parts.model.vocabulary.count, Int(parts.addedTokens.map(\.id).max() ?? -1) + 1)

        // Tokens that are looked for in normalized text are normalized themselves, and decoded so.
        var tokens = parts.addedTokens
        for index in tokens.indices where tokens[index].isNormalized {
            let content = AlignedText(tokens[index].content, 0..<tokens[index].content.count, tracking: false)
            if let normalizer { tokens[index].content = try normalizer.apply(to: content).bytes }
        }
        rawMatcher = AddedTokenMatcher(tokens.filter { !$0.isNormalized })
        normalizedMatcher = AddedTokenMatcher(tokens.filter(\.isNormalized))
        addedTokens = Dictionary(tokens.map { ($0.id, $0) }) { _, last in last }
    }

    /// The token's id; nil if there is no such token.
    package func tokenID(of token: String) -> Int32? {
        addedIDs[Array(token.utf8)] ?? model.vocabulary.id(of: token)
    }

    /// The token as the vocabulary writes it ("Ġthe", "▁the"); nil for an id that no token has.
    package func token(of id: Int32) -> String? {
        tokenBytes(id).map { String(decoding: $0, as: UTF8.self) }
    }

    package func isSpecial(_ id: Int32) -> Bool { addedTokens[id]?.isSpecial ?? false }

    private func tokenBytes(_ id: Int32) -> ArraySlice<UInt8>? {
        addedTokens[id]?.content[...] ?? model.vocabulary.token(id)
    }
}

// MARK: Encoding

/// Tokens of a text and where each lies in it.
package struct Encoding: Sendable {
    package var ids: [Int32] = []
    /// For each token its UTF-8 byte range in the text. Tokens added around the text are empty at its ends. Several
    /// tokens of one character may share its range, and where normalization changed the text ranges are approximate.
    package var ranges: [Range<Int>] = []

    /// For each token whether it begins in one of `spans`, which go from left to right and do not overlap: the tokens to
    /// learn, given the spans of the assistant's words.
    package func beginsWithin(_ spans: [Range<Int>]) -> [Bool] {
        var next = 0
        return ranges.map { range in
            while next < spans.count, spans[next].upperBound <= range.lowerBound { next += 1 }
            return next < spans.count && !range.isEmpty && spans[next].contains(range.lowerBound)
        }
    }
}

extension Tokenizer {
    /// Token ids of `text`. Special tokens that are written in the text become their ids.
    ///
    /// `addSpecialTokens`: also put what the model wants around a text (such as its beginning-of-sequence token).
    /// Errors: `.format` if the tokenizer's own pattern gives up on the text.
    package func encode(_ text: String, addSpecialTokens: Bool) throws(PEFTError) -> [Int32] {
        try encode(utf8: Array(text.utf8), addSpecialTokens: addSpecialTokens)
    }

    /// The same for bytes; each ill-formed part counts as one U+FFFD.
    package func encode(utf8: [UInt8], addSpecialTokens: Bool) throws(PEFTError) -> [Int32] {
        try encode(utf8, addSpecialTokens, tracking: false).ids
    }

    /// The same with the place of each token in the UTF-8 of `text`.
    package func encodeWithRanges(_ text: String, addSpecialTokens: Bool) throws(PEFTError) -> Encoding {
        try encode(Array(text.utf8), addSpecialTokens, tracking: true)
    }

    private func encode(_ bytes: [UInt8], _ addSpecialTokens: Bool, tracking: Bool) throws(PEFTError) -> Encoding {
        let text = repairedUTF8(bytes)
        // Positions are 32 bits wide; replacements may make the text a few times longer.
        guard text.count < 1 << 28 else {
            throw PEFTError(
                .argument, "a text of \(text.count) bytes is too long to tokenize at once; the limit is \(1 << 28)")
        }
        var result = Encoding()
        if addSpecialTokens { result.append(prefix, at: 0, tracking) }
        for part in rawMatcher.split(text) {
            if let id = part.id {
                result.append(id, part.range, tracking)
            } else {
                try encodeText(
                    AlignedText(text, part.range, tracking: tracking), startsInput: part.range.lowerBound == 0, &result)
            }
        }
        if addSpecialTokens { result.append(suffix, at: text.count, tracking) }
        return result
    }

    /// A part of the text without added tokens that are matched literally.
    private func encodeText(_ raw: AlignedText, startsInput: Bool, _ result: inout Encoding) throws(PEFTError) {
        let text = try normalizer?.apply(to: raw) ?? raw
        let tracking = text.origins != nil
        var tokens: [EncodedToken] = []
        for part in normalizedMatcher.split(text.bytes) {
            if let id = part.id {
                result.append(id, text.source(of: part.range), tracking)
                continue
            }
            var cut = PreTokenized(text.slice(part.range), startsInput: startsInput && part.range.lowerBound == 0)
            try preTokenizer?.apply(to: &cut)
            for piece in cut.pieces {
                tokens.removeAll(keepingCapacity: true)
                try model.tokenize(cut.text.bytes[piece], into: &tokens)
                var start = piece.lowerBound
                for token in tokens {
                    let end = min(start + Int(token.byteCount), piece.upperBound)
                    result.append(token.id, cut.text.source(of: start..<end), tracking)
                    start = end
                }
            }
        }
    }
}

extension Encoding {
    fileprivate mutating func append(_ id: Int32, _ range: Range<Int>, _ tracking: Bool) {
        ids.append(id)
        if tracking { ranges.append(range) }
    }

    fileprivate mutating func append(_ new: [Int32], at place: Int, _ tracking: Bool) {
        for id in new { append(id, place..<place, tracking) }
    }
}

// MARK: Decoding

extension Tokenizer {
    /// The text of token ids. Ids that no token has are left out (a model's output may be wider than its vocabulary),
    /// special tokens too if asked. Bytes that are not UTF-8 become U+FFFD.
    package func decode(_ ids: some Sequence<Int32>, skipSpecialTokens: Bool) throws(PEFTError) -> String {
        var state = TokenDecoder.State()
        var text: [UInt8] = []
        var run: [UInt8] = []  // byte tokens in a row
        for id in ids {
            guard let (bytes, isByte) = try bytes(of: id, skipSpecialTokens, &state) else { continue }
            if isByte {
                run += bytes
            } else {
                Tokenizer.endRun(&run, &text)
                text += bytes
            }
        }
        Tokenizer.endRun(&run, &text)
        return String(decoding: text, as: UTF8.self)
    }

    func bytes(of id: Int32, _ skipSpecialTokens: Bool, _ state: inout TokenDecoder.State) throws(PEFTError) -> (
        bytes: [UInt8], isByte: Bool
    )? {
        if skipSpecialTokens, isSpecial(id) { return nil }
        guard let token = tokenBytes(id) else { return nil }
        return try decoder.bytes(of: token, &state)
    }

    /// A row of byte tokens that is not UTF-8 is one U+FFFD for each of them, as HF `tokenizers` has it.
    private static func endRun(_ run: inout [UInt8], _ text: inout [UInt8]) {
        text += isValidUTF8(run) ? run : Array(String(repeating: "\u{FFFD}", count: run.count).utf8)
        run.removeAll()
    }
}
