internal import Glibc
internal import Kernels
package import Platform
package import Tensors

/// A loss over the rows of one pass.
package struct LossResult {
    /// Σ over the counted rows; 0 when planning.
    package let sum: Double
    /// Rows (or elements) that counted.
    package let count: Int
    /// f32 `[1]`: sum / divisor. Its backward pass takes a gradient of 1 where the function says so.
    package let variable: Variable

    package init(sum: Double, count: Int, variable: Variable) {
        self.sum = sum
        self.count = count
        self.variable = variable
    }
}

/// The label of rows that do not count.
package let ignoredLabel: Int32 = -100

extension Tape {
    /// Softmax cross-entropy of `logits` `[rows, classes]` (f32 or bf16; f32 inside) with `labels` i32 `[rows]`; rows
    /// labelled −100 do not count.
    ///
    /// - Parameters:
    ///   - divisor: of the sum; nil: the number of rows that count (the mean).
    ///   - softcap: logits become `cap·tanh(logit/cap)` first; 0: none.
    /// The gradient is computed with the loss, over the logits if nobody else uses them.
    /// - Throws: `.argument` for a label that is no class.
    package func crossEntropy(_ logits: consuming Variable, labels: Tensor, divisor: Float? = nil, softcap: Float = 0) throws(PEFTError) -> LossResult {
        var logits = logits
        let (slot, dtype, shape) = (logits.slot, logits.value.dtype, logits.shape)
        try require(labels.count == logits.value.rows, "crossEntropy: \(labels.count) labels for logits \(shape)")
        let count = try countLabels(labels, classes: logits.value.columns)
        let divisor = divisor ?? Float(max(count, 1))
        let wanted = isRecording && slot != nil
        let own = dtype == .f32 ? (wanted ? try owned(&logits) : logits.value) : try logits.value.converted(to: .f32, engine)
        let sum = try engine.crossEntropy(own, labels, softcap: softcap, gradientScale: wanted ? 1 / divisor : 0)
        let loss = try result(Tensor(engine, [Float(sum) / divisor], shape: [1]), of: logits)
        record(loss) { [engine] dLoss throws(PEFTError) in
            let factor = engine.isPlanning ? 1 : unsafe dLoss.withFloats { unsafe $0.first ?? 0 }
            let gradient = dtype == .f32 ? own : try own.converted(to: dtype, engine)
            try slot?.add(factor, times: gradient, engine)
        }
        return LossResult(sum: sum, count: count, variable: loss)
    }

    /// The number of labels that count. When planning all do.
    private func countLabels(_ labels: Tensor, classes: Int) throws(PEFTError) -> Int {
        try require(labels.dtype == .i32, "labels: \(labels.dtype.name) instead of i32")
        guard !engine.isPlanning else { return labels.count }
        var count = 0
        var wrong: Int32?
        unsafe labels.withInt32s { values in
            for unsafe label in unsafe values where label != ignoredLabel {
                if label < 0 || Int(label) >= classes { wrong = label }
                count += 1
            }
        }
        if let wrong { throw PEFTError(.argument, "label \(wrong) is not in 0..<\(classes), and not \(ignoredLabel) (ignored)", detail: Int64(wrong)) }
        return count
    }

    /// The language-model loss without the logits of all tokens: only labelled rows are used, `rowsPerChunk` at a time.
    /// Each chunk runs `head` on a tape of its own, and its backward pass at once, so one chunk of logits exists at a time.
    ///
    /// - Parameters:
    ///   - hidden: `[rows, n]`, the input of the head.
    ///   - labels: one per row (already shifted); −100 = ignored.
    ///   - divisor: labelled tokens of the whole batch, so that pieces of a batch add up to its mean.
    ///   - gradientScale: multiplies all gradients (1/accumulation steps). Use this, not the seed of the backward pass:
    ///     gradients of the head's parameters are in the store when the function returns.
    ///   - head: hidden rows to logits; f32 logits save a conversion.
    /// - Throws: `.argument` for a label that is no class; what `head` throws.
    package func chunkedCrossEntropy(
        _ hidden: Variable, labels: [Int32], divisor: Float, gradientScale: Float = 1, rowsPerChunk: Int, softcap: Float = 0,
        head: (_ tape: Tape, _ rows: Variable) throws(PEFTError) -> Variable
    ) throws(PEFTError) -> LossResult {
        try require(labels.count == hidden.value.rows && divisor > 0, "chunkedCrossEntropy: \(labels.count) labels for \(hidden.shape), divisor \(divisor)")
        let counted = labels.indices.filter { labels[$0] != ignoredLabel }
        var dHidden: Tensor?
        if isRecording && hidden.needsGradient { dHidden = try Tensor.zeros(engine, hidden.shape, hidden.value.dtype) }
        var sum = 0.0
        for start in stride(from: 0, to: counted.count, by: max(rowsPerChunk, 1)) {
            let rows = counted[start..<min(start + max(rowsPerChunk, 1), counted.count)]
            let chunk = try Tensor(engine, rows.map { labels[$0] }, shape: [rows.count])
            let inner = Tape(engine, precision, gradients: gradients, isTraining: isTraining, random: random)
            let input = try engine.selectRows(hidden.value, rows)
            let leaf = hidden.needsGradient ? inner.leaf(input) : Variable(input)
            let loss = try inner.crossEntropy(try head(inner, leaf), labels: chunk, divisor: divisor, softcap: softcap)
            sum += loss.sum
            random = inner.random
            guard isRecording else { continue }
            try inner.backward(from: loss.variable, gradient: try Tensor(engine, [gradientScale], shape: [1]))
            if let dHidden, let gradient = leaf.slot?.take() { try engine.placeRows(gradient, rows, into: dHidden) }
        }
        return try chunkedLoss(sum, count: counted.count, divisor: divisor, of: hidden, dHidden)
    }

    /// A loss whose gradient `dHidden`, already scaled, was computed with it.
    func chunkedLoss(_ sum: Double, count: Int, divisor: Float, of hidden: Variable, _ dHidden: Tensor?) throws(PEFTError) -> LossResult {
        let loss = try result(Tensor(engine, [Float(sum) / divisor], shape: [1]), of: hidden)
        record(loss) { [engine, slot = hidden.slot] dLoss throws(PEFTError) in
            let factor = engine.isPlanning ? 1 : unsafe dLoss.withFloats { unsafe $0.first ?? 0 }
            try require(factor == 1, "a loss by chunks: gradient \(factor); scale by gradientScale")
            if let dHidden { try slot?.add(dHidden, engine) }
        }
        return LossResult(sum: sum, count: count, variable: loss)
    }

    /// Mean of `(x − target)²`; `target` f32 of the same count. Squares, sums and gradient in f32.
    package func meanSquaredError(_ x: Variable, target: Tensor) throws(PEFTError) -> LossResult {
        try elementwiseLoss(x, target) { value, target in
            let difference = value - target
            return (Double(difference) * Double(difference), 2 * difference)
        }
    }

    /// Mean of `−t·log σ(x) − (1−t)·log(1−σ(x))`; `target` f32 of the same count. Computed as
    /// `max(x,0) − x·t + log(1 + e^−|x|)`, which does not overflow.
    package func binaryCrossEntropyWithLogits(_ x: Variable, target: Tensor) throws(PEFTError) -> LossResult {
        try elementwiseLoss(x, target) { value, target in
            let (x, t) = (Double(value), Double(target))
            return (max(x, 0) - x * t + log1p(exp(-abs(x))), Float(1 / (1 + exp(-x)) - t))
        }
    }

    /// The mean of a function of (value, target); `body` gives it and its derivative.
    private func elementwiseLoss(
        _ x: Variable, _ target: Tensor, _ body: (_ value: Float, _ target: Float) -> (loss: Double, derivative: Float)
    ) throws(PEFTError) -> LossResult {
        let (count, dtype, slot) = (x.value.count, x.value.dtype, x.slot)
        try require(target.count == count && target.dtype == .f32, "loss: \(target.dtype.name) targets \(target.shape) for \(x.shape)")
        let own = try x.value.converted(to: .f32, engine)
        var sum = 0.0
        if !engine.isPlanning {
            unsafe own.withMutableFloats { values in
                unsafe target.withFloats { targets in
                    for index in 0..<min(values.count, targets.count) {
                        let (loss, derivative) = unsafe body(values[index], targets[index])
                        sum += loss
                        unsafe values[index] = derivative
                    }
                }
            }
        }
        let loss = try result(Tensor(engine, [Float(sum / Double(max(count, 1)))], shape: [1]), of: x)
        record(loss) { [engine] dLoss throws(PEFTError) in
            let factor = engine.isPlanning ? 1 : unsafe dLoss.withFloats { unsafe $0.first ?? 0 }
            let gradient = dtype == .f32 ? own : try own.converted(to: dtype, engine)
            try slot?.add(factor / Float(max(count, 1)), times: gradient, engine)
        }
        return LossResult(sum: sum, count: count, variable: loss)
    }
}
