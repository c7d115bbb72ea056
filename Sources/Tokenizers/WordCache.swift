/// The tokens of pieces seen lately. Direct-mapped: a new piece takes the place of an old one, so it never grows.
struct WordCache: Sendable {
    private struct Entry: Sendable {
        var piece: [UInt8] = []
        var tokens: [EncodedToken] = []
    }

    static let longestPiece = 40
    private static let size = 8192
    private var entries: [Entry] = []

    static func hash(_ piece: ArraySlice<UInt8>) -> Int {
        var hash: UInt32 = 2_166_136_261  // FNV-1a; safe to wrap
        for byte in piece { hash = (hash ^ UInt32(byte)) &* 16_777_619 }
        return Int(hash ^ hash >> 15) & (size - 1)
    }

    func tokens(of piece: ArraySlice<UInt8>, hash: Int) -> [EncodedToken]? {
        guard hash < entries.count, entries[hash].piece.elementsEqual(piece) else { return nil }
        return entries[hash].tokens
    }

    mutating func store(_ tokens: [EncodedToken], for piece: ArraySlice<UInt8>, hash: Int) {
        // Not made before the first use: a tokenizer may be opened only to look at it.
        if entries.isEmpty { entries = [Entry](repeating: Entry(), count: WordCache.size) }
        guard hash < entries.count else { return }
        entries[hash] = Entry(piece: Array(piece), tokens: tokens)
    }
}
