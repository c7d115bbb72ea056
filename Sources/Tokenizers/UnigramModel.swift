internal import Platform

/// Unigram (Kudo, arXiv:1804.10959), SentencePiece's other model: every piece has a score, and a text is cut where the sum of
/// the scores is highest. After HF `tokenizers`' `unigram/model.rs`.
struct UnigramModel: TokenModel {
    let vocabulary: Vocabulary
    /// Of each piece, by id.
    private let scores: [Double]
    private let unknownToken: Int32?
    private let unknownScore: Double
    /// Ids of "<0x00>" … where bytes stand in for characters that no piece has.
    private let byteTokens: [Int32]?
    /// Bytes of the longest piece.
    private let longest: Int

    init(vocabulary: Vocabulary, scores: [Double], unknownToken: Int32?, byteFallback: Bool) {
        self.vocabulary = vocabulary
        self.scores = scores
        self.unknownToken = unknownToken
        unknownScore = (scores.min() ?? 0) - 10
        longest = scores.indices.reduce(1) { max($0, vocabulary.token(Int32(clamping: $1))?.count ?? 0) }
        let bytes = (0..<256).compactMap { vocabulary.id(of: "<0x" + (String($0, radix: 16).count < 2 ? "0" : "") + String($0, radix: 16).uppercased() + ">") }
        byteTokens = byteFallback && bytes.count == 256 ? bytes : nil
    }

    /// The best way to a place in the piece: where its last token begins, and which it is (nil: unknown).
    private struct Step {
        var start = -1
        var id: Int32?
        var score = 0.0
    }

    func tokenize(_ piece: ArraySlice<UInt8>, into tokens: inout [EncodedToken]) throws(PEFTError) {
        let first = piece.startIndex
        var best = [Step](repeating: Step(), count: piece.count + 1)
        func offer(_ step: Step, at end: Int) {
            if best[end].start < 0 || step.score > best[end].score { best[end] = step }
        }
        var start = 0
        while start < piece.count {
            let character = end(of: start, in: piece)
            var hasCharacter = false
            var end = character
            while end - start <= longest {
                if let id = vocabulary.id(of: piece[first + start..<first + end]) {
                    offer(Step(start: start, id: id, score: best[start].score + scores[Int(id)]), at: end)
                    if end == character { hasCharacter = true }
                }
                guard end < piece.count else { break }
                end = self.end(of: end, in: piece)
            }
            if !hasCharacter { offer(Step(start: start, id: nil, score: best[start].score + unknownScore), at: character) }
            start = character
        }
        append(best, piece, &tokens)
    }

    private func end(of start: Int, in piece: ArraySlice<UInt8>) -> Int {
        var end = start + 1
        while end < piece.count, piece[piece.startIndex + end] & 0xC0 == 0x80 { end += 1 }
        return end
    }

    /// The tokens on the best way; neighbouring unknown characters are one token, or their bytes.
    private func append(_ best: [Step], _ piece: ArraySlice<UInt8>, _ tokens: inout [EncodedToken]) {
        var found: [(range: Range<Int>, id: Int32?)] = []
        var end = piece.count
        while end > 0, best[end].start >= 0, best[end].start < end {
            if best[end].id == nil, let last = found.last, last.id == nil {
                found[found.count - 1].range = best[end].start..<last.range.upperBound
            } else {
                found.append((best[end].start..<end, best[end].id == unknownToken ? nil : best[end].id))
            }
            end = best[end].start
        }
        for (range, id) in found.reversed() {
            if let id {
                tokens.append(EncodedToken(id: id, byteCount: Int32(clamping: range.count)))
            } else if let byteTokens {
                for offset in range { tokens.append(EncodedToken(id: byteTokens[Int(piece[piece.startIndex + offset])], byteCount: 1)) }
            } else if let unknownToken {
                tokens.append(EncodedToken(id: unknownToken, byteCount: Int32(clamping: range.count)))
            }
        }
    }
}
