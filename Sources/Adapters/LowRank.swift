package import Platform
package import Tensors

/// Factors that stand for a change, and how much of it they leave out.
package struct LowRank {
    /// f32 `[out, r]`
    package var b: Tensor
    /// f32 `[r, in]`
    package var a: Tensor
    /// f32 `[out]`
    package var bias: Tensor?
    /// ‖change‖² and ‖change − b·a‖² (Frobenius).
    package var square: Double
    package var lost: Double

    package init(b: Tensor, a: Tensor, bias: Tensor? = nil, square: Double = 0, lost: Double = 0) {
        (self.b, self.a, self.bias, self.square, self.lost) = (b, a, bias, square, lost)
    }

    package var rank: Int { a.rows }

    /// Columns of b and rows of a that are zero, up to a rank.
    package func padded(to rank: Int, _ engine: Engine) throws(PEFTError) -> LowRank {
        guard rank > self.rank else { return self }
        var result = self
        result.b = try Tensor.zeros(engine, [b.rows, rank], .f32, .scratch)
        result.a = try Tensor.zeros(engine, [rank, a.columns], .f32, .scratch)
        result.b.copyColumns(of: b, at: 0)
        engine.axpby(1, a, 0, into: try result.a.rows(0..<self.rank))
        return result
    }
}

/// How many singular directions are kept.
package enum RankChoice: Sendable {
    case fixed(Int)
    /// The fewest that have this share of Σσ².
    case energy(Double)

    fileprivate func count(_ s: [Float]) -> Int {
        switch self {
        case .fixed(let rank): return min(rank, s.count)
        case .energy(let share):
            let wanted = share * s.reduce(0.0) { $0 + Double($1) * Double($1) }
            var sum = 0.0
            for (index, value) in s.enumerated() {
                sum += Double(value) * Double(value)
                if sum >= wanted { return index + 1 }
            }
            return s.count
        }
    }
}

extension Decompositions {
    /// `U·S·Vh` of a change without its smaller directions: b = U·S, a = Vh, as PEFT divides them.
    package func lowRank(_ matrix: WeightChange.Matrix, _ choice: RankChoice) throws(PEFTError) -> LowRank {
        if case .dense(let whole) = matrix, case .fixed(let rank) = choice, let (u, s, vh) = try leadingDirections(whole, count: rank) {
            let values = try s.floats(engine).prefix(rank), square = whole.squaredNorm
            let b = try u.converted(to: .f32, engine, .scratch)
            unsafe b.withMutableFloats { b in
                for index in b.indices { unsafe b[index] *= values[index % rank] }
            }
            return LowRank(b: b, a: vh, square: square, lost: max(square - values.reduce(0.0) { $0 + Double($1) * Double($1) }, 0))
        }
        let (u, s, vh) = try directions(of: matrix)
        let values = try s.floats(engine)
        let rank = max(choice.count(values), 1)
        let b = try Tensor(engine, [u.rows, rank], .f32, .scratch)
        let width = u.columns
        unsafe u.withFloats { from in
            unsafe b.withMutableFloats { to in
                for row in 0..<from.count / max(width, 1) {
                    for column in 0..<min(rank, width) { unsafe to[row * rank + column] = from[row * width + column] * values[column] }
                }
            }
        }
        func squares(_ values: ArraySlice<Float>) -> Double { values.reduce(0) { $0 + Double($1) * Double($1) } }
        return LowRank(b: b, a: try vh.rows(0..<rank), square: squares(values[...]), lost: squares(values.dropFirst(rank)))
    }

    /// The largest singular values by power iterations on a subspace that begins at `start` `[q, n]` (Halko, Martinsson, Tropp,
    /// arXiv:0909.4061, algorithm 4.4); `w` `[m, n]`, q ≤ min(m, n). `u` `[m, q]`, `vh` `[q, n]`.
    func largestSingularValues(_ w: Tensor, start: Tensor, power: Int) throws(PEFTError) -> (u: Tensor, s: Tensor, vh: Tensor) {
        let (m, n, q) = (w.rows, w.columns, start.rows)
        let y = try Tensor(engine, [m, q], .f32, .scratch)
        try engine.multiply(.forward, w, start, into: y, compute: .f32)  // W·Ωᵀ
        var basis = try factors(y, count: q).q
        let z = try Tensor(engine, [n, q], .f32, .scratch)
        for _ in 0..<power {
            try engine.multiply(.weightGradient, w, basis, into: z, compute: .f32)  // Wᵀ·Q
            try engine.multiply(.inputGradient, w, try factors(z, count: q).q, into: y, compute: .f32)  // W·Q'
            basis = try factors(y, count: q).q
        }
        let small = try Tensor(engine, [q, n], .f32, .scratch)
        try engine.multiply(.weightGradient, basis, w, into: small, compute: .f32)  // Qᵀ·W
        let (u, s, vh) = try singularValues(small)
        try engine.multiply(.inputGradient, basis, u, into: y, compute: .f32)
        return (y, s, vh)
    }

    /// The inverse of a symmetric matrix; nil where it has none.
    func inverse(ofSymmetric a: Tensor) throws(PEFTError) -> Tensor? {
        let identity = try Tensor.zeros(engine, a.shape, .f32, .scratch)
        identity.addToDiagonal(1)
        return try solutions(of: a, rows: identity)
    }

    /// `matrix = u·diag(s)·vh`. Of a product by its factors, the whole matrix is never made:
    ///
    ///     b = Qb·Rb    aᵀ = Qa·Ra    scale·Rb·Raᵀ = u·s·vh    b·a = (Qb·u)·s·(vh·Qaᵀ)
    package func directions(of matrix: WeightChange.Matrix) throws(PEFTError) -> (u: Tensor, s: Tensor, vh: Tensor) {
        guard case .product(let b, let a, let scale) = matrix, 2 * a.rows < min(b.rows, a.columns) else {
            return try singularValues(try matrix.dense(engine))
        }
        let rank = a.rows
        let (qb, rb) = try factors(b, count: rank)
        let (qa, ra) = try factors(try a.transposed(engine), count: rank)
        let core = try Tensor(engine, [rank, rank], .f32, .scratch)
        try engine.multiply(.forward, rb, ra, into: core, compute: .f32, alpha: Float(scale))
        let (u, s, vh) = try singularValues(core)
        let left = try Tensor(engine, [b.rows, rank], .f32, .scratch)
        let right = try Tensor(engine, [rank, a.columns], .f32, .scratch)
        try engine.multiply(.inputGradient, qb, u, into: left, compute: .f32)
        try engine.multiply(.forward, vh, qa, into: right, compute: .f32)
        return (left, s, right)
    }
}

extension Tensor {
    /// Writes an f32 matrix into columns of this one, which has as many rows.
    package func copyColumns(of other: Tensor, at column: Int, scale: Float = 1) {
        let (width, part) = (columns, other.columns)
        unsafe other.withFloats { from in
            unsafe withMutableFloats { to in
                guard part + column <= width, to.count / max(width, 1) == from.count / max(part, 1) else { return }
                for row in 0..<from.count / max(part, 1) {
                    for index in 0..<part { unsafe to[row * width + column + index] = scale * from[row * part + index] }
                }
            }
        }
    }
}
