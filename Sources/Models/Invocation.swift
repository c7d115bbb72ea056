package import Platform

// Adapters that wait for tokens (activated LoRA, Greenewald et al., arXiv:2504.12397): they act from the last place on where
// their tokens stand in a text, and what stands before is the base model's, so that its keys and values are those of any other use.

extension Adaptation {
    /// What acts at each of the last `count` tokens of a text: ranges of them, in order.
    func spans(of text: ArraySlice<Int32>, last count: Int) -> [(range: Range<Int>, waiting: Set<[Int32]>)] {
        let first = text.count - count
        let starts = invocations.map { tokens in (tokens: tokens, start: text.lastStart(of: tokens) ?? text.count) }
        let borders = Set(starts.map { max($0.start - first, 0) } + [0, count]).filter { $0 <= count }.sorted()
        return zip(borders, borders.dropFirst()).map { begin, end in
            (begin..<end, Set(starts.filter { $0.start > first + begin }.map(\.tokens)))
        }
    }

    /// What acts on a token behind others.
    package func acting(on token: Int32, after text: [Int32]) throws(PEFTError) -> Adaptation {
        guard !invocations.isEmpty else { return self }
        try checkWaiting()
        return without(spans(of: (text + [token])[...], last: 1).first?.waiting ?? [])
    }

    /// Without the hooks that still wait for one of these.
    func without(_ waiting: Set<[Int32]>) -> Adaptation {
        guard !waiting.isEmpty else { return self }
        var result = self
        for index in result.layers.indices {
            result.layers[index].hooks.removeAll { $0.invocation.map { waiting.contains($0) } ?? false }
        }
        return result
    }

    /// - Throws: `.unsupported` together with what does not act token by token.
    fileprivate func checkWaiting() throws(PEFTError) {
        guard invocations.isEmpty || (prompt == nil && memory == nil && runs == nil && joins.isEmpty && gatedPrompts.isEmpty && router == nil) else {
            throw PEFTError(.unsupported, "alora_invocation_tokens beside virtual tokens, prefixes, bottlenecks, a router of experts or layer_replication")
        }
    }
}

extension Routing {
    private var waits: Bool {
        switch self {
        case .all(let adaptation): !adaptation.invocations.isEmpty
        case .samples(let groups): groups.contains { !$0.adaptation.invocations.isEmpty }
        }
    }

    /// The same for tokens: ranges of `samples` are then of rows `sample·length + t`.
    /// - Parameters:
    ///   - ids: of all samples.
    ///   - firstKey: where the text that a token belongs to begins in its row (packed rows); nil: 0.
    ///   - before: what one sample's text has in front of `ids`, and `after` behind them (not read yet, but known).
    /// - Returns: nil when nothing waits.
    package func byToken(_ ids: [Int32], batch: Int, firstKey: [Int32]? = nil, before: [Int32] = [], after: [Int32] = []) throws(PEFTError) -> Routing? {
        guard waits, batch > 0, ids.count % batch == 0 else { return nil }
        let length = ids.count / batch
        var groups: [(range: Range<Int>, adaptation: Adaptation)] = []
        var last: Set<[Int32]>?
        for (sample, adaptation) in adaptations(batch).enumerated() {
            try adaptation.checkWaiting()
            for text in texts(of: sample, length, firstKey) {
                let spans = adaptation.spans(of: (before + ids[text] + after)[...], last: text.count + after.count)
                for span in spans {
                    let range = text.lowerBound + span.range.lowerBound..<min(text.lowerBound + span.range.upperBound, text.upperBound)
                    if range.isEmpty { continue }
                    // Neighbours that are alike are one group.
                    if case .all = self, last == span.waiting {
                        groups[groups.count - 1].range = groups[groups.count - 1].range.lowerBound..<range.upperBound
                    } else {
                        groups.append((range, adaptation.without(span.waiting)))
                    }
                    last = span.waiting
                }
            }
        }
        return .samples(groups)
    }

    /// Rows of the texts of one sample.
    private func texts(of sample: Int, _ length: Int, _ firstKey: [Int32]?) -> [Range<Int>] {
        let row = sample * length..<(sample + 1) * length
        guard let firstKey else { return [row] }
        let starts = row.filter { $0 == row.lowerBound || ($0 < firstKey.count && firstKey[$0] != firstKey[$0 - 1]) }
        return zip(starts, starts.dropFirst() + [row.upperBound]).map { $0..<$1 }
    }
}

extension ArraySlice<Int32> {
    /// Where these tokens begin for the last time.
    fileprivate func lastStart(of tokens: [Int32]) -> Int? {
        guard !tokens.isEmpty, tokens.count <= count else { return nil }
        return (0...count - tokens.count).last { start in
            tokens.indices.allSatisfy { self[startIndex + start + $0] == tokens[$0] }
        }
    }
}
