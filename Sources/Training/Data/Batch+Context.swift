internal import Models
internal import Platform

/// What is learned of examples that stand in front of the input as virtual tokens (CPT), after PEFT's `_cpt_forward` and `calculate_loss`.
extension Batch {
    /// Labels of the rows of this batch, which stands behind the examples already: the answers of both, and how much each weighs.
    /// - Parameter types: of the tokens of the input, `[rows, length]`; nil: all are of one answer.
    func learning(from contexts: [ContextLabels?], types: [Int32]?) throws(PEFTError) -> Batch {
        guard contexts.contains(where: { $0 != nil }), !labels.isEmpty, labels.count == rows * length else { return self }
        var batch = self
        var weights = [Float](repeating: 1, count: labels.count)
        for (row, context) in contexts.enumerated() {
            guard let context else { continue }
            let (start, count) = (row * length, context.ids.count)
            let skipped = length - (types.map { $0.count / max(rows, 1) } ?? length - count) - count
            guard skipped >= 0 else { throw PEFTError(.internal, "\(count) tokens of examples in a row of \(length)") }
            let shift = context.types.max() ?? 0
            let own = (0..<length - skipped - count).map { token -> Int32 in
                let type = types?[row * (length - skipped - count) + token] ?? 4
                return type > 0 ? type &+ shift : type
            }
            let all = Array(repeating: 0, count: skipped) + context.types + own
            for (index, id) in context.ids.enumerated() { batch.labels[start + skipped + index] = id }
            for (index, type) in all.enumerated() where type <= 0 || type % 4 != 0 { batch.labels[start + index] = Sample.ignored }
            guard let decay = context.decay else { continue }
            // The first token of a row is not predicted.
            let answers = Set((1..<max(length, 1)).filter { batch.labels[start + $0] != Sample.ignored }.map { all[$0] }).sorted(by: >)
            var weight: Float = 1
            for answer in answers {
                for index in 0..<length where all[index] == answer { weights[start + index] = weight }
                weight *= decay
            }
        }
        if weights.contains(where: { $0 != 1 }) { batch.labelWeights = weights }
        return batch
    }

    /// The labels a language model's loss compares with, by what they weigh.
    var weightedLabels: [(weight: Float, labels: [Int32])] {
        let shifted = shiftedLabels
        guard let labelWeights else { return [(Float(1), shifted)] }
        let weights = Array(labelWeights.dropFirst()) + [Float(1)]
        let groups = Set(weights).sorted(by: >).compactMap { weight -> (weight: Float, labels: [Int32])? in
            let some = zip(shifted, weights).map { $1 == weight ? $0 : Sample.ignored }
            return some.contains { $0 != Sample.ignored } ? (weight, some) : nil
        }
        return groups.isEmpty ? [(Float(1), shifted)] : groups
    }
}
