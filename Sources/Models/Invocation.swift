package import Platform

// Adapters that act on some of a text's tokens. Of a Split each part has its own. Others wait for tokens (activated LoRA, Greenewald et
// al., arXiv:2504.12397): they act from the last place on where these stand in a text, and what stands before is the base model's, so
// that its keys and values are those of any other use.

extension Adaptation {
    /// What is the same on neighbouring tokens: which part of the text they are in (`later`), and what still waits.
    struct Span: Hashable {
        var part = 0
        var waiting: Set<[Int32]> = []
    }

    /// What acts at each of the last `count` tokens of a text: ranges of them, in order.
    func spans(of text: ArraySlice<Int32>, last count: Int) -> [(range: Range<Int>, span: Span)] {
        let first = text.count - count
        let starts = invocations.map { tokens in (tokens: tokens, start: text.lastStart(of: tokens) ?? text.count) }
        let borders = Set((starts.map(\.start) + later.map(\.start)).map { max($0 - first, 0) } + [0, count]).filter { $0 <= count }.sorted()
        return zip(borders, borders.dropFirst()).map { begin, end in
            (begin..<end, Span(part: later.count { $0.start <= first + begin }, waiting: Set(starts.filter { $0.start > first + begin }.map(\.tokens))))
        }
    }

    /// What acts on a token behind others.
    package func acting(on token: Int32, after text: [Int32]) throws(PEFTError) -> Adaptation {
        guard !invocations.isEmpty || !later.isEmpty else { return self }
        try checkWaiting()
        return acting(in: spans(of: (text + [token])[...], last: 1).first?.span ?? Span())
    }

    func acting(in span: Span) -> Adaptation {
        if span.part > 0, span.part <= later.count { return later[span.part - 1].adaptation }
        var first = without(span.waiting)
        first.later = []
        return first
    }

    /// Without the hooks that still wait for one of these.
    private func without(_ waiting: Set<[Int32]>) -> Adaptation {
        guard !waiting.isEmpty else { return self }
        var result = self
        for index in result.layers.indices {
            result.layers[index].hooks.removeAll { $0.invocation.map { waiting.contains($0) } ?? false }
        }
        return result
    }

    /// - Throws: `.unsupported` together with what does not act token by token.
    fileprivate func checkWaiting() throws(PEFTError) {
        let whole = [self] + later.map(\.adaptation)
        guard whole.allSatisfy({ $0.prompt == nil && $0.memory == nil && $0.runs == nil && $0.gatedPrompts.isEmpty && $0.router == nil }) || (invocations.isEmpty && later.isEmpty),
            invocations.isEmpty || (joins.isEmpty && !readsWholeText), later.isEmpty || whole.allSatisfy({ $0.invocations.isEmpty && $0.shadow == nil && $0.taskCount == nil })
        else {
            throw PEFTError(
                .unsupported, "\(later.isEmpty ? "alora_invocation_tokens" : "a Split of a text") beside virtual tokens, prefixes, a router of experts, layer_replication, bottlenecks (aLoRA) or aLoRA (Split)")
        }
    }
}

extension Routing {
    private var waits: Bool {
        switch self {
        case .all(let adaptation): adaptation.waits
        case .samples(let groups): groups.contains { $0.adaptation.waits }
        }
    }

    /// The same for tokens: ranges of `samples` are then of rows `sample·length + t`.
    /// - Parameters:
    ///   - ids: of all samples.
    ///   - firstKey: where the text that a token belongs to begins in its row (packed rows); nil: 0.
    ///   - isWhole: no token will follow.
    ///   - before: what one sample's text has in front of `ids`, and `after` behind them (not read yet, but known).
    /// - Returns: nil when nothing waits.
    package func byToken(_ ids: [Int32], batch: Int, firstKey: [Int32]? = nil, isWhole: Bool = false, before: [Int32] = [], after: [Int32] = []) throws(PEFTError) -> Routing? {
        guard waits, batch > 0, ids.count % batch == 0 else { return nil }
        let length = ids.count / batch
        var groups: [(range: Range<Int>, adaptation: Adaptation)] = []
        var last: Adaptation.Span?
        for (sample, adaptation) in adaptations(batch).enumerated() {
            try adaptation.checkWaiting()
            guard adaptation.prompt == nil else { throw PEFTError(.unsupported, "virtual tokens in a batch with aLoRA or a Split of texts, which count its tokens") }
            for text in texts(of: sample, length, firstKey) {
                let spans = adaptation.spans(of: (before + ids[text] + after)[...], last: text.count + after.count)
                if isWhole, let part = adaptation.later.last, part.start >= text.count {
                    throw PEFTError(.argument, "a Split whose last part begins at token \(part.start), and a text of \(text.count)")
                }
                for span in spans {
                    let range = text.lowerBound + span.range.lowerBound..<min(text.lowerBound + span.range.upperBound, text.upperBound)
                    if range.isEmpty { continue }
                    // Neighbours that are alike are one group.
                    if case .all = self, adaptation.joins.isEmpty, last == span.span {
                        groups[groups.count - 1].range = groups[groups.count - 1].range.lowerBound..<range.upperBound
                    } else {
                        groups.append((range, adaptation.acting(in: span.span)))
                    }
                    last = span.span
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

extension Adaptation {
    fileprivate var waits: Bool { !invocations.isEmpty || !later.isEmpty }
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
