package import Platform

/// Decodes token by token. Text comes out in whole characters: bytes of an unfinished one wait for the next token.
///
/// The pieces together are the text that `decode` gives (ill-formed bytes may become another number of U+FFFD).
package struct StreamingDecoder: Sendable {
    private let tokenizer: Tokenizer
    private let skipsSpecialTokens: Bool
    private var state = TokenDecoder.State()
    /// At most three bytes: the start of a character.
    private var pending: [UInt8] = []

    package init(_ tokenizer: Tokenizer, skipSpecialTokens: Bool) {
        self.tokenizer = tokenizer
        skipsSpecialTokens = skipSpecialTokens
    }

    /// The text that `id` completes; often empty.
    package mutating func push(_ id: Int32) throws(PEFTError) -> String {
        guard let (bytes, _) = try tokenizer.bytes(of: id, skipsSpecialTokens, &state) else { return "" }
        pending += bytes
        let count = pending.count - StreamingDecoder.unfinished(pending)
        let text = String(decoding: pending[..<count], as: UTF8.self)
        pending.removeFirst(count)
        return text
    }

    /// The end of the text: an unfinished character becomes U+FFFD.
    package mutating func flush() -> String {
        defer { pending.removeAll() }
        return String(decoding: pending, as: UTF8.self)
    }

    /// Bytes at the end that begin a character which may still be completed.
    private static func unfinished(_ bytes: [UInt8]) -> Int {
        for back in 1...3 where back <= bytes.count {
            let byte = bytes[bytes.count - back]
            if byte & 0xC0 == 0x80 { continue }
            let needed = byte >= 0xF0 && byte <= 0xF4 ? 4 : byte >= 0xE0 ? 3 : byte >= 0xC2 ? 2 : 1
            return byte <= 0xF4 && needed > back ? back : 0
        }
        return 0
    }
}
