package import Platform
internal import Tokenizers

/// A token and the text it completed.
package struct GeneratedPiece: Sendable {
    /// nil when the text ended by a stop string that earlier tokens had begun.
    package let token: Int32?
    package let text: String
    /// The answer is complete: an end-of-sequence token (not read, so a chat can go on) or a stop string.
    package let isEnd: Bool
}

/// Turns the tokens of one answer into text: whole characters, stop strings found and left out.
package struct TextGenerator: Sendable {
    let session: Session
    private var decoder: StreamingDecoder?
    private var matcher: StopMatcher
    private let ends: Set<Int32>
    private var isFinished = false

    package init(_ session: Session) {
        self.session = session
        decoder = session.tokenizer.map { StreamingDecoder($0, skipSpecialTokens: true) }
        matcher = StopMatcher(session.options.stop)
        ends = session.endTokens
    }

    /// Samples and reads one token.
    /// - Throws: `.cancelled`, `.contextFull` (the answer so far stays), `.state` before anything was read.
    package mutating func next() throws(PEFTError) -> GeneratedPiece {
        switch try choose() {
        case .end(let piece): return piece
        case .token(let token):
            try session.accept(token)
            return try finish(token)
        }
    }

    enum Choice {
        /// To be read by the session, then given to `finish`.
        case token(Int32)
        case end(GeneratedPiece)
    }

    /// The first half of `next`: samples.
    mutating func choose() throws(PEFTError) -> Choice {
        guard !isFinished else { return .end(GeneratedPiece(token: nil, text: "", isEnd: true)) }
        if session.takeCancellation() { throw PEFTError(.cancelled, "generation was cancelled") }
        let token = try session.sample()
        guard ends.contains(token) else { return .token(token) }
        isFinished = true
        return .end(GeneratedPiece(token: token, text: flush(), isEnd: true))
    }

    /// The second half: the text of a token that the session has read.
    mutating func finish(_ token: Int32) throws(PEFTError) -> GeneratedPiece {
        let piece = matcher.push(try decoder?.push(token) ?? "")
        isFinished = piece.isStopped
        return GeneratedPiece(token: token, text: piece.text, isEnd: piece.isStopped)
    }

    /// What was held back (the start of a stop string, an unfinished character), when the answer ends here.
    package mutating func flush() -> String {
        matcher.push(decoder?.flush() ?? "").text + matcher.flush()
    }
}

extension Session {
    /// Generates up to `maxTokens` tokens; `onText` gets each piece of text and stops by returning false.
    /// - Returns: the tokens, and whether the model ended by itself.
    /// - Throws: `.cancelled` when `onText` says so or `cancel` was called; the tokens so far stay in the context.
    package func generate(maxTokens: Int, onText: (String) -> Bool) throws(PEFTError) -> (tokens: [Int32], isEnd: Bool) {
        guard maxTokens >= 0 else { throw PEFTError(.argument, "max_tokens is \(maxTokens); 0 or more is accepted") }
        var generator = TextGenerator(self)
        var tokens: [Int32] = []
        while tokens.count < maxTokens {
            let piece = try generator.next()
            if let token = piece.token { tokens.append(token) }
            if !piece.text.isEmpty, !onText(piece.text) { throw PEFTError(.cancelled, "the host stopped the text after \(tokens.count) tokens") }
            if piece.isEnd { return (tokens, true) }
        }
        let rest = generator.flush()
        if !rest.isEmpty, !onText(rest) { throw PEFTError(.cancelled, "the host stopped the text after \(tokens.count) tokens") }
        return (tokens, false)
    }
}
