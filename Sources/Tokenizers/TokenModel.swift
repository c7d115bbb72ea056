internal import Platform

/// A token and how many bytes of its piece it covers.
struct EncodedToken: Sendable {
    var id: Int32
    var byteCount: Int32
}

/// What turns a piece of pre-tokenized text into tokens: byte-pair encoding, WordPiece, Unigram.
protocol TokenModel: Sendable {
    var vocabulary: Vocabulary { get }

    /// Appends the tokens of `piece`, which is never empty. Pieces are UTF-8; for byte-level models they may be cut
    /// within a character.
    func tokenize(_ piece: ArraySlice<UInt8>, into tokens: inout [EncodedToken]) throws(PEFTError)
}
