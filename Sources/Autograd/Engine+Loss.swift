internal import Glibc
internal import Kernels
internal import Platform
internal import Tensors

extension Engine {
    /// Σ of the rows' losses; `logits` (f32) become their gradient times `gradientScale`, or stay when that is 0.
    func crossEntropy(_ logits: Tensor, _ labels: Tensor, softcap: Float, gradientScale: Float) throws(PEFTError) -> Double {
        let (rows, n) = (logits.rows, logits.columns)
        let losses = try Tensor(self, [rows], .f32, .scratch)
        parallel(shares(logits.count)) { part, parts in
            unsafe pk_cross_entropy(
                level, logits.floatPointer, Int64(rows), Int64(n), Int64(n), labels.int32Pointer, softcap, gradientScale, losses.floatPointer, part, parts)
        }
        guard !isPlanning else { return 0 }
        return unsafe losses.withFloats { losses in
            var sum = 0.0
            for unsafe loss in unsafe losses { sum += Double(loss) }
            return sum
        }
    }

    /// Copies of the rows `indices`; a view when they follow each other.
    func selectRows(_ x: Tensor, _ indices: ArraySlice<Int>) throws(PEFTError) -> Tensor {
        if let first = indices.first, let last = indices.last, last - first == indices.count - 1 { return try x.rows(first..<last + 1) }
        let y = try Tensor(self, [indices.count, x.columns], x.dtype)
        for (row, index) in indices.enumerated() { copyRow(try x.rows(index..<index + 1), to: try y.rows(row..<row + 1)) }
        return y
    }

    /// Writes the rows of `x` to the rows `indices` of `y`.
    func placeRows(_ x: Tensor, _ indices: ArraySlice<Int>, into y: Tensor) throws(PEFTError) {
        for (row, index) in indices.enumerated() { copyRow(try x.rows(row..<row + 1), to: try y.rows(index..<index + 1)) }
    }

    private func copyRow(_ x: Tensor, to y: Tensor) {
        parallel(1) { _, _ in unsafe memcpy(y.pointer, x.pointer, x.rowBytes) }
    }
}
