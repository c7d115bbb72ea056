internal import Platform

/// Turns the text of tokens back into bytes. Each step looks at one token at a time, so that decoding can stream.
struct TokenDecoder: Sendable {
    enum Step: Sendable {
        case byteLevel
        case replace(TextMatcher, with: [UInt8])
        /// "<0xE2>" is the byte E2.
        case byteFallback
        /// Takes up to so many copies of a character from the ends of each token.
        case strip([UInt8], start: Int, stop: Int)
        case metaspace(replacement: [UInt8], dropsFirst: Bool)
        case wordPiece(prefix: [UInt8], cleansUp: Bool)
    }

    var steps: [Step]
    /// Copies of a text taken from the start of the whole (a `Strip` after `Fuse`).
    var leadingStrip: (content: [UInt8], count: Int)?
    /// Put between tokens: HF `tokenizers` writes a space there when a tokenizer has no decoder.
    var separator: [UInt8] = []

    /// What has to be known from the tokens before.
    struct State: Sendable {
        fileprivate var isFirst = true
        fileprivate var stripped = 0
        fileprivate var isInStrip = true
    }

    /// Bytes of the next token, and whether it is a single byte of a character ("<0xE2>").
    func bytes(of token: ArraySlice<UInt8>, _ state: inout State) throws(PEFTError) -> (bytes: [UInt8], isByte: Bool) {
        var text = Array(token)
        var isByte = false
        for step in steps where !isByte {
            switch step {
            case .byteLevel: text = ByteAlphabet.decode(text[...]) ?? text
            case .replace(let matcher, let replacement): text = try TokenDecoder.replace(text, matcher, replacement)
            case .byteFallback:
                if let byte = TokenDecoder.fallbackByte(text) { (text, isByte) = ([byte], true) }
            case .strip(let content, let start, let stop): text = TokenDecoder.strip(text, content, start, stop)
            case .metaspace(let replacement, let dropsFirst):
                text = try TokenDecoder.replace(text, .text(replacement), state.isFirst && dropsFirst ? [] : [0x20])
            case .wordPiece(let prefix, let cleansUp):
                if !state.isFirst {
                    text = text.starts(with: prefix) ? Array(text.dropFirst(prefix.count)) : [0x20] + text
                }
                if cleansUp { text = try TokenDecoder.cleanUp(text) }
            }
        }
        if !state.isFirst { text = separator + text }
        state.isFirst = false
        return (stripStart(text, &state), isByte)
    }

    private func stripStart(_ text: [UInt8], _ state: inout State) -> [UInt8] {
        guard state.isInStrip, let (content, count) = leadingStrip, !text.isEmpty else { return text }
        var rest = text[...]
        while state.stripped < count, rest.starts(with: content) {
            rest = rest.dropFirst(content.count)
            state.stripped += 1
        }
        if !rest.isEmpty || state.stripped == count { state.isInStrip = false }
        return Array(rest)
    }

    private static func replace(_ text: [UInt8], _ matcher: TextMatcher, _ replacement: [UInt8]) throws(PEFTError)
        -> [UInt8]
    {
        // A token may end within a character; a regular expression needs whole ones.
        if case .pattern = matcher, !isValidUTF8(text) { return text }
        let ranges = try matcher.ranges(in: text, part: 0..<text.count)
        if ranges.isEmpty { return text }
        var new: [UInt8] = []
        var done = 0
        for range in ranges {
            new += text[done..<range.lowerBound] + replacement
            done = range.upperBound
        }
        return new + text[done...]
    }

    private static func strip(_ text: [UInt8], _ content: [UInt8], _ start: Int, _ stop: Int) -> [UInt8] {
        if content.isEmpty { return text }
        var rest = text[...]
        var count = 0
        while count < start, rest.starts(with: content) { rest = rest.dropFirst(content.count); count += 1 }
        count = 0
        while count < stop, rest.suffix(content.count).elementsEqual(content) {
            rest = rest.dropLast(content.count); count += 1
        }
        return Array(rest)
    }

    private static func fallbackByte(_ text: [UInt8]) -> UInt8? {
        guard text.count == 6, text.starts(with: Array("<0x".utf8)), text[5] == UInt8(ascii: ">") else { return nil }
        return UInt8(String(decoding: text[3..<5], as: UTF8.self), radix: 16)
    }

    /// HF's `clean_up_tokenization`: no space before punctuation and English contractions.
    private static func cleanUp(_ text: [UInt8]) throws(PEFTError) -> [UInt8] {
        var text = text
        for (from, to) in [
            (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"),
            (" do not", " don't"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
        ] {
            text = try replace(text, .text(Array(from.utf8)), Array(to.utf8))
        }
        return text
    }
}
