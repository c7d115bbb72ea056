/// WordPiece (BERT): from the left, the longest token that fits; tokens within a word carry a prefix ("##ing").
/// A word of which a part has no token is unknown as a whole.
final class WordPieceModel: TokenModel {
    let vocabulary: Vocabulary
    private let unknownToken: Int32
    private let continuationPrefix: [UInt8]
    /// Longer words are unknown: this bounds the work, which is quadratic in the length of a word.
    private let maximumCharacters: Int

    init(vocabulary: Vocabulary, unknownToken: Int32, continuationPrefix: [UInt8], maximumCharacters: Int) {
        self.vocabulary = vocabulary
        self.unknownToken = unknownToken
        self.continuationPrefix = continuationPrefix
        self.maximumCharacters = maximumCharacters
    }

    func tokenize(_ piece: ArraySlice<UInt8>, into tokens: inout [EncodedToken]) {
        let unknown = EncodedToken(id: unknownToken, byteCount: Int32(clamping: piece.count))
        guard piece.lazy.filter({ $0 & 0xC0 != 0x80 }).count <= maximumCharacters else {
            tokens.append(unknown)
            return
        }
        var found: [EncodedToken] = []
        var start = piece.startIndex
        while start < piece.endIndex {
            guard let token = longestToken(in: piece[start...], isFirst: start == piece.startIndex) else {
                tokens.append(unknown)
                return
            }
            found.append(token)
            start += Int(token.byteCount)
        }
        tokens += found
    }

    private func longestToken(in rest: ArraySlice<UInt8>, isFirst: Bool) -> EncodedToken? {
        var end = rest.endIndex
        while end > rest.startIndex {
            let candidate = isFirst ? rest[..<end] : (continuationPrefix + rest[..<end])[...]
            if let id = vocabulary.id(of: candidate) {
                return EncodedToken(id: id, byteCount: Int32(clamping: end - rest.startIndex))
            }
            repeat { end -= 1 } while end > rest.startIndex && rest[end] & 0xC0 == 0x80
        }
        return nil
    }
}
