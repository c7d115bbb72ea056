/// A sequence of tokens and which of them are to be learned.
package struct Sample: Sendable, Equatable {
    package var ids: [Int32]
    /// The id where the token is to be learned, −100 where not.
    package var labels: [Int32]
    /// What an encoder reads before the decoder writes these tokens.
    package var source: [Int32]?
    /// Of which task it is, for adapters with several; nil: not said.
    package var task: Int32?

    /// The label of a token that is not learned (torch's `ignore_index`).
    package static let ignored: Int32 = -100

    package init(ids: [Int32], labels: [Int32], task: Int32? = nil) { (self.ids, self.labels, self.task) = (ids, labels, task) }

    /// All tokens are learned.
    package init(_ ids: [Int32]) { self.init(ids: ids, labels: ids) }

    /// Tokens are learned from index `start` on.
    package init(_ ids: [Int32], learnedFrom start: Int) {
        self.init(ids: ids, labels: ids.enumerated().map { $0.offset < start ? Sample.ignored : $0.element })
    }

    /// How many tokens the model is asked to predict: the first has nothing before it.
    package var learnedCount: Int { labels.dropFirst(source == nil ? 1 : 0).count { $0 != Sample.ignored } }

    func part(_ range: Range<Int>) -> Sample { Sample(ids: Array(ids[range]), labels: Array(labels[range]), task: task) }

    /// Brings a sample to at most `maximum` tokens.
    func shortened(to maximum: Int, _ truncation: Truncation) -> [Sample] {
        if let source, truncation == .keepStart || truncation == .keepEnd {
            var sample = part(truncation == .keepStart ? 0..<min(ids.count, maximum) : max(0, ids.count - maximum)..<ids.count)
            sample.source = Array(truncation == .keepStart ? source.prefix(maximum) : source.suffix(maximum))
            return [sample]
        }
        guard max(ids.count, source?.count ?? 0) > maximum else { return [self] }
        switch truncation {
        case .keepStart: return [part(0..<maximum)]
        case .keepEnd: return [part(ids.count - maximum..<ids.count)]
        case .split: return stride(from: 0, to: ids.count, by: maximum).map { part($0..<min(ids.count, $0 + maximum)) }
        case .drop, .error: return []
        }
    }
}

/// What happens to a sample that is longer than `maxLength`.
package enum Truncation: String, Sendable, CaseIterable {
    /// Its first tokens are kept (what HF tokenizers and TRL do).
    case keepStart = "keep_start"
    /// Its last tokens are kept: the end of a long conversation.
    case keepEnd = "keep_end"
    /// It becomes several samples.
    case split
    /// It is left out, and counted.
    case drop
    case error
}
