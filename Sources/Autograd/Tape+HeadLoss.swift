internal import Kernels
package import Platform
package import Tensors

extension Tape {
    /// The language-model loss over a frozen head `W` `[classes, n]`, for computations in bf16: `chunkedCrossEntropy` without
    /// the logits in f32.
    ///
    /// The logits of a chunk of labelled rows are computed by blocks of classes; each block gives its part of the
    /// log-sum-exp while it is still in the cache, and stays as f16 (more digits than bf16 has) until the whole sum is known
    /// and turns it into the gradient in bf16, in the same memory. Half the bytes make chunks twice as tall: the head's weights
    /// are decoded half as often. Without a gradient nothing is kept.
    ///
    /// Parameters as of `chunkedCrossEntropy`; `chunkBytes`: what the kept logits of a chunk may take.
    package func headCrossEntropy(
        _ hidden: Variable, head w: Tensor, bias: Tensor?, labels: [Int32], divisor: Float, gradientScale: Float = 1, chunkBytes: Int, softcap: Float = 0
    ) throws(PEFTError) -> LossResult {
        let classes = w.rows
        try require(
            labels.count == hidden.value.rows && divisor > 0 && w.columns == hidden.value.columns && hidden.value.dtype == .bf16,
            "headCrossEntropy: \(labels.count) labels, hidden \(hidden.value.dtype.name) \(hidden.shape), head \(w.shape), divisor \(divisor)")
        let counted = labels.indices.filter { labels[$0] != ignoredLabel }
        if let wrong = counted.first(where: { labels[$0] < 0 || Int(labels[$0]) >= classes }).map({ labels[$0] }) {
            throw PEFTError(.argument, "label \(wrong) is not in 0..<\(classes), and not \(ignoredLabel) (ignored)", detail: Int64(wrong))
        }
        let isWanted = isRecording && hidden.needsGradient
        let dHidden = isWanted ? try Tensor.zeros(engine, hidden.shape, .bf16) : nil
        let height = max(32, min(512, chunkBytes / (2 * max(classes, 1)) / 32 * 32))
        var sum = 0.0
        for start in stride(from: 0, to: counted.count, by: height) {
            let rows = counted[start..<min(start + height, counted.count)]
            let x = try engine.selectRows(hidden.value, rows)
            let chunk = try HeadChunk(engine, labels: rows.map { labels[$0] }, classes: classes, softcap: softcap, keepsLogits: isWanted)
            try chunk.observe(x, w, bias, precision.roundsForward && engine.gainsByRounding(x, w) ? .rounded : .bf16)
            let (loss, gradient) = try chunk.finish(gradientScale: gradientScale / divisor)
            sum += loss
            guard let gradient, let dHidden, let first = rows.first, let last = rows.last else { continue }
            let isRun = last - first == rows.count - 1
            let target = isRun ? try dHidden.rows(first..<last + 1) : try Tensor(engine, x.shape, .bf16)
            try engine.multiply(.inputGradient, gradient, w, into: target, compute: .bf16)
            if !isRun { try engine.placeRows(target, rows, into: dHidden) }
        }
        return try chunkedLoss(sum, count: counted.count, divisor: divisor, of: hidden, dHidden)
    }
}

/// Rows whose logits are seen block by block.
private struct HeadChunk {
    /// Classes computed at a time: whole panels of the products for two, three or four threads; 2 MB of f32 at 512 rows.
    private static let blockClasses = 1152

    private let engine: Engine
    private let labels: Tensor
    private let classes: Int
    private let softcap: Float
    private let top: Tensor, total: Tensor, target: Tensor
    /// f16 `[rows, classes]`; nil: only the loss is wanted.
    private let kept: Tensor?

    init(_ engine: Engine, labels: [Int32], classes: Int, softcap: Float, keepsLogits: Bool) throws(PEFTError) {
        self.engine = engine
        self.classes = classes
        self.softcap = softcap
        self.labels = try Tensor(engine, labels, shape: [labels.count])
        top = try Tensor(engine, [Float](repeating: -.infinity, count: labels.count), shape: [labels.count])
        total = try Tensor.zeros(engine, [labels.count])
        target = try Tensor.zeros(engine, [labels.count])
        kept = keepsLogits ? try Tensor(engine, [labels.count, classes], .f16) : nil
    }

    /// Logits `x·Wᵀ + bias` of all classes.
    func observe(_ x: Tensor, _ w: Tensor, _ bias: Tensor?, _ compute: Compute) throws(PEFTError) {
        for first in stride(from: 0, to: classes, by: HeadChunk.blockClasses) {
            let range = first..<min(first + HeadChunk.blockClasses, classes)
            let logits = try Tensor(engine, [x.rows, range.count], .f32, .scratch)
            let own = try bias.map { (bias) throws(PEFTError) in try bias.reshaped([bias.count, 1]).rows(range).reshaped([range.count]) }
            try engine.multiply(.forward, x, try w.rows(range), into: logits, compute: compute, bias: own)
            engine.parallel(engine.shares(logits.count)) { part, parts in
                unsafe pk_softmax_observe(
                    engine.level, logits.floatPointer, Int64(x.rows), Int64(range.count), Int64(first), labels.int32Pointer, softcap, top.floatPointer,
                    total.floatPointer, target.floatPointer, halves, Int64(classes), part, parts)
            }
        }
    }

    /// Σ of the losses, and the gradient of the logits times `gradientScale`, bf16 in the memory of what was kept.
    func finish(gradientScale: Float) throws(PEFTError) -> (loss: Double, gradient: Tensor?) {
        let losses = try Tensor(engine, [labels.count], .f32, .scratch)
        engine.parallel(engine.shares(labels.count * classes)) { part, parts in
            unsafe pk_softmax_gradient(
                engine.level, halves, Int64(labels.count), Int64(classes), labels.int32Pointer, top.floatPointer, total.floatPointer, target.floatPointer, softcap,
                gradientScale, losses.floatPointer, part, parts)
        }
        let gradient = try kept.map { (kept) throws(PEFTError) in try Tensor(kept.storage, offset: kept.offset, dtype: .bf16, shape: kept.shape) }
        guard !engine.isPlanning else { return (0, gradient) }
        return (unsafe losses.withFloats { unsafe $0.reduce(0) { $0 + Double($1) } }, gradient)
    }

    private var halves: UnsafeMutablePointer<UInt16>? { unsafe kept.map { unsafe $0.pointer.assumingMemoryBound(to: UInt16.self) } }
}
