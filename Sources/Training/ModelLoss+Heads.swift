internal import Autograd
internal import Models
internal import Platform
internal import Tensors

/// The losses of transformers' heads, from whole logits.
extension ModelLoss {
    /// Of a classifier, as `problem_type` names them.
    private enum Problem: String, CaseIterable {
        case regression
        case oneLabel = "single_label_classification"
        case severalLabels = "multi_label_classification"
    }

    static func headLoss(_ logits: Variable, _ batch: Batch, _ model: Model, _ tape: Tape) throws(PEFTError) -> LossResult {
        switch model.task {
        case .causalLM: try languageLoss(logits, batch.weightedLabels, tape)
        case .tokenClassification, .conditionalGeneration: try crossEntropy(logits, batch.labels, tape)
        case .questionAnswering: try answerLoss(logits, batch, tape)
        case .classification: try classifierLoss(logits, batch, model, tape)
        case .features: throw PEFTError(.argument, "this model has no head, so there is no loss")
        }
    }

    private static func languageLoss(_ logits: Variable, _ groups: [(weight: Float, labels: [Int32])], _ tape: Tape) throws(PEFTError) -> LossResult {
        if groups.count == 1, let group = groups.first, group.weight == 1 { return try crossEntropy(logits, group.labels, tape) }
        let counted = groups.reduce(0) { $0 + $1.labels.count { $0 != ignoredLabel } }
        var sum: LossResult?
        for (weight, labels) in groups where weight != 0 || sum == nil {
            let part = try tape.crossEntropy(
                logits, labels: try Tensor(tape.engine, labels, shape: [labels.count]), divisor: Float(max(counted, 1)) / max(weight, .leastNormalMagnitude))
            sum = try sum.map { (sum) throws(PEFTError) in try sum.adding(part, weight: weight, tape) } ?? part.weighted(weight)
        }
        guard let sum else { throw PEFTError(.argument, "nothing in the batch is to be learned: all labels are \(ignoredLabel)") }
        return LossResult(sum: sum.sum, count: counted, variable: sum.variable)
    }

    private static func crossEntropy(_ logits: consuming Variable, _ labels: [Int32], _ tape: Tape) throws(PEFTError) -> LossResult {
        try tape.crossEntropy(logits, labels: try Tensor(tape.engine, labels, shape: [labels.count]))
    }

    /// Without a `problem_type`: numbers for one output are regression, for several they are several labels; integers are classes.
    private static func classifierLoss(_ logits: Variable, _ batch: Batch, _ model: Model, _ tape: Tape) throws(PEFTError) -> LossResult {
        let outputs = logits.value.columns
        var problem = outputs == 1 ? Problem.regression : batch.targets.isEmpty ? .oneLabel : .severalLabels
        if let name = model.configuration["problem_type"]?.stringValue {
            guard let named = Problem(rawValue: name) else {
                throw PEFTError(.unsupported, "problem_type is \"\(name)\"; there are \(Problem.allCases.map(\.rawValue).joined(separator: ", "))")
            }
            problem = named
        }
        if problem == .oneLabel {
            guard batch.targets.isEmpty else { throw PEFTError(.argument, "labels are numbers; a classifier for one label learns classes (integers)") }
            return try crossEntropy(logits, batch.labels, tape)
        }
        let values = batch.targets.isEmpty ? batch.labels.map { Float($0) } : batch.targets
        guard values.count == logits.value.count else {
            throw PEFTError(.argument, "labels has \(values.count) numbers; \(logits.value.rows) samples with \(outputs) outputs need \(logits.value.count)")
        }
        let target = try Tensor(tape.engine, values, shape: [values.count])
        return problem == .regression ? try tape.meanSquaredError(logits, target: target) : try tape.binaryCrossEntropyWithLogits(logits, target: target)
    }

    /// The mean of two cross entropies over the tokens of a text: where the answer begins and where it ends. Places outside of
    /// the text do not count, as in transformers.
    private static func answerLoss(_ logits: Variable, _ batch: Batch, _ tape: Tape) throws(PEFTError) -> LossResult {
        let (rows, length) = (batch.rows, batch.length)
        func inside(_ places: [Int32]) -> [Int32] { places.map { $0 >= 0 && Int($0) < length ? $0 : ignoredLabel } }
        let ends = try tape.splitColumns(logits, [1, 1])
        let start = try crossEntropy(try tape.reshaped(ends[0], [rows, length]), inside(batch.labels), tape)
        let end = try crossEntropy(try tape.reshaped(ends[1], [rows, length]), inside(batch.ends), tape)
        let loss = try tape.scaled(try tape.add(start.variable, end.variable), by: 0.5)
        let mean = (start.sum / Double(max(start.count, 1)) + end.sum / Double(max(end.count, 1))) / 2
        return LossResult(sum: mean * Double(rows), count: rows, variable: loss)
    }
}
