internal import Kernels
package import Platform

extension Engine {
    /// `out[o] = ‖W_o + s·(B·A)_o‖²` for each output row of a weight in any format, without decoding it (DoRA's norms,
    /// arXiv 2402.09353):
    ///
    ///     ‖W_o‖² + 2s·Σ_ρ B[o,ρ]·(W·Aᵀ)[o,ρ] + s²·B_o·(A·Aᵀ)·B_oᵀ
    ///
    /// - Parameters:
    ///   - w: `[out, in]`, or `[in, out]` when `transposed`.
    ///   - b: f32 `[out, r]`; a: f32 `[r, in]`.
    /// - Returns: f32 `[out]`, never negative.
    package func rowNormsSquared(w: Tensor, plus b: Tensor, a: Tensor, scale: Float, transposed: Bool = false) throws(PEFTError) -> Tensor {
        let (out, rank) = (b.rows, b.columns)
        guard (transposed ? w.columns : w.rows) == out, (transposed ? w.rows : w.columns) == a.columns, a.rows == rank, a.dtype == .f32, b.dtype == .f32 else {
            throw PEFTError(.internal, "rowNormsSquared: W \(w.shape) (transposed: \(transposed)), B \(b.shape), A \(a.shape)")
        }
        let norms = transposed ? try columnSumsOfSquares(w) : try Tensor(self, [out])
        if !transposed {
            parallel(shares(w.count)) { part, parts in
                unsafe pk_row_sumsq(level, w.dtype.rawValue, w.pointer, Int64(w.rowBytes), Int64(out), Int64(w.columns), norms.floats, part, parts)
            }
        }
        let cross = try Tensor(self, [rank, out], .f32, .scratch)  // A·Wᵀ
        try multiply(transposed ? .inputGradient : .forward, a, w, into: cross, compute: .f32)
        let gram = try Tensor(self, [rank, rank], .f32, .scratch)  // A·Aᵀ
        try multiply(.forward, a, a, into: gram, compute: .f32)
        let product = try Tensor(self, [out, rank], .f32, .scratch)  // B·(A·Aᵀ), symmetric
        try multiply(.forward, b, gram, into: product, compute: .f32)
        parallel(shares(out * rank)) { part, parts in
            let (sums, b, cross, product) = unsafe (norms.floats, b.floats, cross.floats, product.floats)
            for o in out * Int(part) / Int(parts)..<out * (Int(part) + 1) / Int(parts) {
                var (mixed, square) = (Float(0), Float(0))
                for r in 0..<rank {
                    unsafe mixed += b[o * rank + r] * cross[r * out + o]
                    unsafe square += b[o * rank + r] * product[o * rank + r]
                }
                unsafe sums[o] = max(0, sums[o] + 2 * scale * mixed + scale * scale * square)
            }
        }
        return norms
    }

    /// Σ_rows W² for each column, a band of decoded rows at a time.
    private func columnSumsOfSquares(_ w: Tensor) throws(PEFTError) -> Tensor {
        let sums = try Tensor.zeros(self, [w.columns])
        let band = max(1, min(w.rows, 65536 / max(w.columns, 1)))
        for start in stride(from: 0, to: w.rows, by: band) {
            let rows = try w.rows(start..<min(start + band, w.rows)).converted(to: .f32, self, .scratch)
            parallel(shares(rows.count)) { part, parts in
                unsafe pk_column_sums(level, DType.f32.rawValue, rows.pointer, rows.pointer, sums.floats, Int64(rows.rows), Int64(rows.columns), part, parts)
            }
        }
        return sums
    }
}

extension Tensor {
    fileprivate var floats: UnsafeMutablePointer<Float> { unsafe pointer.assumingMemoryBound(to: Float.self) }
}
