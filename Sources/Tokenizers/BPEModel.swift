internal import Platform
internal import Synchronization

/// Byte-pair encoding: a piece starts as single symbols; the adjacent pair with the lowest rank is joined until none is left.
///
/// Symbols are bytes (`.bytes`: GPT-2, Llama 3, Qwen) or characters (`.characters`: Llama 2, Mistral, Gemma).
final class BPEModel: TokenModel {
    enum Symbols: Sendable { case bytes, characters }

    struct Options: Sendable {
        var symbols: Symbols
        /// Stands for a character that no token covers; without one such characters vanish, as in HF `tokenizers`.
        var unknownToken: Int32?
        /// Adjacent unknown characters become one token.
        var fusesUnknown = false
        /// A character without a token is written as the tokens "<0xE2>" of its bytes.
        var byteFallback = false
        /// A piece that is a token as it stands is not taken apart first (Llama 3).
        var ignoresMerges = false
        /// Marks of older vocabularies: in front of every symbol but the first, after the last.
        var continuationPrefix: [UInt8] = []
        var endOfWordSuffix: [UInt8] = []
    }

    let vocabulary: Vocabulary
    private let merges: MergeTable
    private let options: Options
    /// Token of each byte as a symbol (`.bytes`), token "<0x..>" of each byte (`byteFallback`); -1: none.
    private let byteTokens: [Int32]
    private let fallbackTokens: [Int32]
    private let cache = Mutex(WordCache())

    init(vocabulary: Vocabulary, merges: MergeTable, options: Options) {
        self.vocabulary = vocabulary
        self.merges = merges
        self.options = options
        byteTokens = (0...255).map { vocabulary.id(of: ByteAlphabet.encode([$0])[...]) ?? -1 }
        fallbackTokens = (0...255).map { vocabulary.id(of: BPEModel.fallbackName(of: $0)) ?? -1 }
    }

    static func fallbackName(of byte: UInt8) -> String {
        let hex = String(byte, radix: 16, uppercase: true)
        return hex.utf8.count == 1 ? "<0x0\(hex)>" : "<0x\(hex)>"
    }

    func tokenize(_ piece: ArraySlice<UInt8>, into tokens: inout [EncodedToken]) throws(PEFTError) {
        if options.ignoresMerges, let id = wholePiece(piece) {
            tokens.append(EncodedToken(id: id, byteCount: Int32(clamping: piece.count)))
            return
        }
        guard piece.count <= WordCache.longestPiece else {
            tokens += merged(piece)
            return
        }
        // When another thread has the cache we do not wait for it: merging a word again is as fast.
        let hash = WordCache.hash(piece)
        if let known = cache.withLockIfAvailable({ $0.tokens(of: piece, hash: hash) }), let known {
            tokens += known
            return
        }
        let new = merged(piece)
        tokens += new
        _ = cache.withLockIfAvailable { $0.store(new, for: piece, hash: hash) }
    }

    private func wholePiece(_ piece: ArraySlice<UInt8>) -> Int32? {
        switch options.symbols {
        case .bytes: vocabulary.id(of: ByteAlphabet.encode(piece)[...])
        case .characters: vocabulary.id(of: piece)
        }
    }

    private func merged(_ piece: ArraySlice<UInt8>) -> [EncodedToken] {
        switch options.symbols {
        case .bytes: mergePairs(byteSymbols(piece), merges)
        case .characters: mergePairs(characterSymbols(piece), merges)
        }
    }

    private func byteSymbols(_ piece: ArraySlice<UInt8>) -> [EncodedToken] {
        var symbols: [EncodedToken] = []
        symbols.reserveCapacity(piece.count)
        var unknown: Int32 = 0  // bytes not yet covered
        for (offset, byte) in piece.enumerated() {
            var id = byteTokens[Int(byte)]
            if !options.continuationPrefix.isEmpty || !options.endOfWordSuffix.isEmpty {
                id =
                    marked(ByteAlphabet.encode([byte])[...], isFirst: offset == 0, isLast: offset == piece.count - 1)
                    ?? -1
            }
            addSymbol(id, 1, &symbols, &unknown)
        }
        flushUnknown(&symbols, &unknown)
        return symbols
    }

    private func characterSymbols(_ piece: ArraySlice<UInt8>) -> [EncodedToken] {
        var symbols: [EncodedToken] = []
        symbols.reserveCapacity(piece.count)
        var unknown: Int32 = 0
        var start = piece.startIndex
        while start < piece.endIndex {
            var end = start + 1
            while end < piece.endIndex, piece[end] & 0xC0 == 0x80 { end += 1 }
            let character = piece[start..<end]
            let id = marked(character, isFirst: start == piece.startIndex, isLast: end == piece.endIndex)
            if id == nil, options.byteFallback, character.allSatisfy({ fallbackTokens[Int($0)] >= 0 }) {
                for byte in character { symbols.append(EncodedToken(id: fallbackTokens[Int(byte)], byteCount: 1)) }
            } else {
                addSymbol(id ?? -1, Int32(clamping: character.count), &symbols, &unknown)
            }
            start = end
        }
        flushUnknown(&symbols, &unknown)
        return symbols
    }

    private func marked(_ symbol: ArraySlice<UInt8>, isFirst: Bool, isLast: Bool) -> Int32? {
        if options.continuationPrefix.isEmpty, options.endOfWordSuffix.isEmpty { return vocabulary.id(of: symbol) }
        return vocabulary.id(
            of: ((isFirst ? [] : options.continuationPrefix) + symbol + (isLast ? options.endOfWordSuffix : []))[...])
    }

    private func addSymbol(_ id: Int32, _ byteCount: Int32, _ symbols: inout [EncodedToken], _ unknown: inout Int32) {
        if id >= 0 {
            flushUnknown(&symbols, &unknown)
            symbols.append(EncodedToken(id: id, byteCount: byteCount))
        } else {
            if !options.fusesUnknown { flushUnknown(&symbols, &unknown) }
            unknown += byteCount  // Safe: a piece has less than 2^31 bytes
        }
    }

    private func flushUnknown(_ symbols: inout [EncodedToken], _ unknown: inout Int32) {
        if unknown > 0, let id = options.unknownToken { symbols.append(EncodedToken(id: id, byteCount: unknown)) }
        unknown = 0
    }
}
