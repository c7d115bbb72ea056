package import Platform
internal import Tensors

extension Tape {
    /// A router's choice: of each row of logits `[rows, n]` the `k` largest, largest first, and their shares `[rows, k]`, which are
    /// the softmax over them (or, what is the same, the softmax over all divided by the sum over them). All f32.
    ///
    /// Which are chosen is a constant in the backward pass: `dlogit = share·(dshare − Σ share·dshare)`. Keeps the shares.
    ///
    /// Without data (planning) all rows but a few choose the first `k`, and those few all the others: the largest products that could
    /// be, and every one of them.
    package func topShares(_ logits: Variable, _ k: Int) throws(PEFTError) -> (choices: [[Int]], shares: Variable) {
        let (rows, n) = (logits.value.rows, logits.value.columns)
        try require(k > 0 && k <= n && logits.value.dtype == .f32, "topShares: \(k) of \(logits.value.dtype.name) \(logits.shape)")
        let top: [(indices: [Int], weights: [Float])] =
            engine.isPlanning
            ? (0..<rows).map { row in ((0..<k).map { (row < n ? row + $0 : $0) % n }, Array(repeating: 0, count: k)) } : Tape.top(k, of: logits.value)
        let shares = top.flatMap(\.weights)
        let output = result(try Tensor(engine, shares, shape: [rows, k]), of: logits)
        record(output) { [engine, slot = logits.slot] dY throws(PEFTError) in
            guard let slot else { return }
            let dX = try Tensor.zeros(engine, [rows, n])
            unsafe dY.withFloats { dY in
                unsafe dX.withMutableFloats { dX in
                    guard dY.count == rows * k, dX.count == rows * n else { return }
                    for (row, choice) in top.enumerated() {
                        var mean: Float = 0
                        for j in 0..<k { unsafe mean += choice.weights[j] * dY[row * k + j] }
                        for j in 0..<k { unsafe dX[row * n + choice.indices[j]] = choice.weights[j] * (dY[row * k + j] - mean) }
                    }
                }
            }
            try slot.add(dX, engine)
        }
        return (top.map(\.indices), output)
    }
}
