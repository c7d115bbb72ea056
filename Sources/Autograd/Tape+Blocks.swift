internal import Kernels
package import Platform
internal import Tensors

// Products of many small matrices: block-diagonal matrices times activations, and blocks with each other.
extension Tape {
    /// `y_i = x_i·W_i` for each of n blocks of columns; `x` `[rows, n·p]`, `w` f32 `[n, p, q]`, `y` `[rows, n·q]`.
    ///
    ///     dX_i = dY_i·W_iᵀ    dW_i = X_iᵀ·dY_i
    package func blockLinear(_ x: Variable, _ w: Variable) throws(PEFTError) -> Variable {
        let shape = w.shape
        try require(shape.count == 3 && x.value.columns == shape[0] * shape[1], "blockLinear: x \(x.shape), blocks \(shape)")
        let (n, p, q, rows) = (shape[0], shape[1], shape[2], x.value.rows)
        let compute = compute(for: x.value)
        let y = try Tensor(engine, [rows, n * q], x.value.dtype)
        let (xBlocks, wBlocks, yBlocks) = (Blocks(columns: p), Blocks(matrices: p, q), Blocks(columns: q))
        try engine.multiplyBlocks(.inputGradient, n, x.value, xBlocks, w.value, wBlocks, y, yBlocks, (rows, q, p), compute)
        let output = result(y, of: x, w)
        let input = w.needsGradient ? x.kept : nil
        let weights = x.needsGradient ? w.kept : nil
        record(output) { [engine, xSlot = x.slot, wSlot = w.slot] dY throws(PEFTError) in
            if let wSlot, let input {
                let (dW, accumulate) = try wSlot.buffer(engine)
                try engine.multiplyBlocks(
                    .weightGradient, n, try input.tensor(), xBlocks, dY, yBlocks, dW, wBlocks, (p, q, rows), compute, accumulate: accumulate)
            }
            if let xSlot, let weights {
                let (dX, accumulate) = try xSlot.buffer(engine)
                try engine.multiplyBlocks(.forward, n, dY, yBlocks, try weights.tensor(), wBlocks, dX, xBlocks, (rows, p, q), compute, accumulate: accumulate)
            }
        }
        return output
    }

    /// `a_i·b_i` for n pairs of matrices; `a` `[n, p, q]`, `b` `[n, q, s]`, f32.
    package func blockProducts(_ a: Variable, _ b: Variable) throws(PEFTError) -> Variable {
        let (left, right) = (a.shape, b.shape)
        try require(left.count == 3 && right.count == 3 && left[0] == right[0] && left[2] == right[1], "blockProducts: \(left) by \(right)")
        let (n, p, q, s) = (left[0], left[1], left[2], right[2])
        let y = try Tensor(engine, [n, p, s], .f32)
        let (aBlocks, bBlocks, yBlocks) = (Blocks(matrices: p, q), Blocks(matrices: q, s), Blocks(matrices: p, s))
        try engine.multiplyBlocks(.inputGradient, n, a.value, aBlocks, b.value, bBlocks, y, yBlocks, (p, s, q), .f32)
        let output = result(y, of: a, b)
        record(output) { [engine, a, b] dY throws(PEFTError) in
            if let slot = a.slot {  // dA = dY·Bᵀ
                let (dA, accumulate) = try slot.buffer(engine)
                try engine.multiplyBlocks(.forward, n, dY, yBlocks, b.value, bBlocks, dA, aBlocks, (p, q, s), .f32, accumulate: accumulate)
            }
            if let slot = b.slot {  // dB = Aᵀ·dY
                let (dB, accumulate) = try slot.buffer(engine)
                try engine.multiplyBlocks(.weightGradient, n, a.value, aBlocks, dY, yBlocks, dB, bBlocks, (q, s, p), .f32, accumulate: accumulate)
            }
        }
        return output
    }

    /// The inverses of n small matrices `[n, b, b]`, f32. With Y the inverse: `dX = −Yᵀ·dY·Yᵀ`.
    /// - Throws: `.numeric` for a matrix that has none.
    package func inverses(_ x: Variable) throws(PEFTError) -> Variable {
        let shape = x.shape
        try require(shape.count == 3 && shape[1] == shape[2], "inverses of \(shape)")
        let (n, b) = (shape[0], shape[1])
        let y = try Tensor(engine, shape, .f32)
        let shares = engine.shares(x.value.count * b)
        let scratch = try Storage(byteCount: shares * 2 * b * b * 8, budget: engine.budget, category: .scratch)
        let failed = try Tensor.zeros(engine, [shares], .f32, .scratch)
        engine.parallel(shares) { part, parts in
            let own = unsafe (scratch.base + Int(part) * 2 * b * b * 8).assumingMemoryBound(to: Double.self)
            let isRegular = unsafe pk_inverses(x.value.floatPointer, y.floatPointer, Int64(n), Int64(b), own, part, parts)
            if isRegular == 0 { unsafe failed.floatPointer[Int(part)] = 1 }
        }
        let isRegular = unsafe failed.withFloats { unsafe $0.allSatisfy { $0 == 0 } }
        guard isRegular else { throw PEFTError(.numeric, "a block of \(b) × \(b) has no inverse") }
        let output = result(y, of: x)
        record(output) { [engine, slot = x.slot] dY throws(PEFTError) in
            let blocks = Blocks(matrices: b, b)
            let left = try Tensor(engine, shape, .f32)
            try engine.multiplyBlocks(.weightGradient, n, y, blocks, dY, blocks, left, blocks, (b, b, b), .f32)
            let dX = try Tensor(engine, shape, .f32)
            try engine.multiplyBlocks(.forward, n, left, blocks, y, blocks, dX, blocks, (b, b, b), .f32)
            try slot?.add(-1, times: dX, engine)
        }
        return output
    }
}
