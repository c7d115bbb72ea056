package import Platform

/// What a data set needs of a tokenizer.
package protocol TextEncoder: Sendable {
    /// A token to fill rows up with; it is never looked at.
    var paddingID: Int32 { get }
    /// Token that ends a text; nil when the model has none.
    var endOfText: Int32? { get }
    /// `isStart`: with what the model wants in front of a text (such as its beginning-of-sequence token).
    func ids(_ text: String, isStart: Bool) throws(PEFTError) -> [Int32]
    /// A whole conversation through the chat template, and for each token whether the assistant says it (its end-of-turn
    /// token included) in a message from index `first` on.
    func conversation(_ messages: [JSONValue], learnedFrom first: Int) throws(PEFTError) -> (ids: [Int32], isAssistant: [Bool])
}

/// Turns examples into samples of at most `maxLength` tokens.
struct SampleMaker: Sendable {
    private let encoder: any TextEncoder
    private let options: DataSetOptions
    private let isPlainText: Bool

    init(_ encoder: any TextEncoder, _ options: DataSetOptions, isPlainText: Bool) {
        self.encoder = encoder
        self.options = options
        self.isPlainText = isPlainText
    }

    /// - Throws: what the tokenizer or the chat template says; `.argument` for a long sample under `Truncation.error`.
    func samples(_ example: Example) throws(PEFTError) -> [Sample] {
        let whole = try sample(example)
        if max(whole.ids.count, whole.source?.count ?? 0) > options.maxLength, options.truncation == .error, !isPlainText {
            throw PEFTError(.argument, "\(whole.ids.count) tokens, max_length is \(options.maxLength) (truncation 'error')")
        }
        // Stretches of plain text are always cut in blocks.
        return whole.shortened(to: options.maxLength, isPlainText ? .split : options.truncation).filter { $0.learnedCount > 0 }
    }

    private func sample(_ example: Example) throws(PEFTError) -> Sample {
        if options.isForEncoderDecoders {
            guard case .completion(let prompt, let completion) = example else { throw PEFTError(.format, "an encoder-decoder learns from 'prompt' and 'completion'") }
            var sample = Sample(withEnd(try encoder.ids(completion, isStart: false)))
            sample.source = withEnd(try encoder.ids(prompt, isStart: true))
            return sample
        }
        switch example {
        case .text(let text):
            // A stretch of a longer text neither begins nor ends anything.
            let ids = try encoder.ids(text, isStart: !isPlainText)
            return Sample(isPlainText ? ids : withEnd(ids))
        case .completion(let prompt, let completion):
            let front = try encoder.ids(prompt, isStart: true)
            let ids = withEnd(front + (try encoder.ids(completion, isStart: false)))
            return Sample(ids, learnedFrom: options.learned == .all ? 0 : front.count)
        case .conversation(let messages, let first):
            let (ids, isAssistant) = try encoder.conversation(messages, learnedFrom: first)
            guard options.learned == .assistant else { return Sample(ids) }
            guard isAssistant.contains(true) else { throw PEFTError(.format, "the conversation has no words of the assistant to learn") }
            return Sample(ids: ids, labels: zip(ids, isAssistant).map { $1 ? $0 : Sample.ignored })
        }
    }

    /// The model learns to stop.
    private func withEnd(_ ids: [Int32]) -> [Int32] {
        guard let end = encoder.endOfText, ids.last != end else { return ids }
        return ids + [end]
    }
}
