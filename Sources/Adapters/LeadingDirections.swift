internal import Platform
internal import Tensors

extension Decompositions {
    /// The `count` largest singular directions of a matrix of which only these are wanted: `u` `[m, count]`, `s`, `vh` `[count, n]`; nil
    /// where that is no shorter way than all of them, or does not end.
    ///
    /// Block Lanczos on the Gram matrix G of the shorter side (Golub & Underwood 1977), begun anew at its best directions: a block X of
    /// `count` + 8 vectors, then [X, G·X, G²·X, G³·X] made orthogonal, and in their span the largest directions of G. Each round
    /// costs a few thin products with G; it ends when |G·x − λx| is rounding for each of the `count`. Values and the other
    /// side's directions are then taken from the matrix itself, where nothing was squared.
    func leadingDirections(_ w: Tensor, count: Int) throws(PEFTError) -> (u: Tensor, s: Tensor, vh: Tensor)? {
        let isWide = w.rows <= w.columns
        let size = min(w.rows, w.columns), block = count + 8, powers = 4
        guard count > 0, powers * block * 2 <= size else { return nil }
        let a = isWide ? w : try w.transposed(engine)
        let gram = try Tensor(engine, [size, size], .f32, .scratch)
        try engine.multiply(.forward, a, a, into: gram, compute: .f32)  // A·Aᵀ
        var random = RandomStream(seed: 0, purpose: "leading directions")
        // Vectors are rows: `[block, size]`.
        var best = try Tensor(engine, [block, size], .f32, .scratch)
        best.fillNormal(1, &random)
        best = try orthogonal(best)
        let span = try Tensor(engine, [powers * block, size], .f32, .scratch), turned = try Tensor(engine, [powers * block, size], .f32, .scratch)
        for _ in 0..<12 {
            for power in 0..<powers {
                let to = try span.rows(power * block..<(power + 1) * block)
                if power == 0 {
                    engine.axpby(1, best, 0, into: to)
                } else {
                    let from = try span.rows((power - 1) * block..<power * block), before = try span.rows(0..<power * block)
                    try engine.multiply(.forward, from, gram, into: to, compute: .f32)
                    for _ in 0..<2 { try remove(before, from: to) }
                    engine.axpby(1, try orthogonal(to), 0, into: to)
                    try remove(before, from: to)
                }
            }
            try engine.multiply(.forward, span, gram, into: turned, compute: .f32)
            let small = try Tensor(engine, [powers * block, powers * block], .f32, .scratch)
            try engine.multiply(.forward, turned, span, into: small, compute: .f32)
            let (u, values, _) = try singularValues(small)
            let wanted = try u.transposed(engine).rows(0..<block)
            best = try Tensor(engine, [block, size], .f32, .scratch)
            try engine.multiply(.inputGradient, wanted, span, into: best, compute: .f32)
            let image = try Tensor(engine, [block, size], .f32, .scratch)
            try engine.multiply(.inputGradient, wanted, turned, into: image, compute: .f32)
            let lambda = try values.floats(engine)
            guard (0..<count).allSatisfy({ Decompositions.residual(image, best, $0, lambda[$0]) <= 2e-6 * lambda[0] }) else { continue }
            return try directions(of: a, in: try orthogonal(best), count, isWide)
        }
        return nil
    }

    /// Rows that span the same, orthonormal.
    private func orthogonal(_ rows: Tensor) throws(PEFTError) -> Tensor {
        try factors(try rows.transposed(engine), count: rows.rows).q.transposed(engine)
    }

    /// `x −= (x·basisᵀ)·basis`
    private func remove(_ basis: Tensor, from x: Tensor) throws(PEFTError) {
        let shares = try Tensor(engine, [x.rows, basis.rows], .f32, .scratch)
        try engine.multiply(.forward, x, basis, into: shares, compute: .f32)
        try engine.multiply(.inputGradient, shares, basis, into: x, compute: .f32, alpha: -1, accumulate: true)
    }

    private static func residual(_ image: Tensor, _ x: Tensor, _ row: Int, _ lambda: Float) -> Float {
        let width = x.columns
        return unsafe image.withFloats { image in
            unsafe x.withFloats { x in
                var sum: Float = 0
                for column in row * width..<min((row + 1) * width, image.count, x.count) {
                    let difference = unsafe image[column] - lambda * x[column]
                    sum += difference * difference
                }
                return sum.squareRoot()
            }
        }
    }

    /// Singular directions of `a` within the span of the rows of `basis`.
    private func directions(of a: Tensor, in basis: Tensor, _ count: Int, _ isWide: Bool) throws(PEFTError) -> (u: Tensor, s: Tensor, vh: Tensor) {
        let small = try Tensor(engine, [basis.rows, a.columns], .f32, .scratch)
        try engine.multiply(.inputGradient, basis, a, into: small, compute: .f32)
        let (u, s, vh) = try singularValues(small)
        let left = try Tensor(engine, [basis.rows, basis.columns], .f32, .scratch)  // rows: left directions of `a`
        try engine.multiply(.weightGradient, u, basis, into: left, compute: .f32)
        let (first, second) = (try left.rows(0..<count), try vh.rows(0..<count))
        return isWide ? (try first.transposed(engine), s, second) : (try second.transposed(engine), s, first)
    }
}
