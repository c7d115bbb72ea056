package import Platform
package import Tensors

extension Tape {
    /// `y = x·aᵀ`, of which A's gradient sees only what lies along one direction in each group of the input's columns:
    ///
    ///     c[row, g] = ⟨x[row, group g], direction⟩    x̂ = scale·c ⊗ direction    dA = dYᵀ·x̂    dX = dY·A
    ///
    /// c is all that is kept of x. The last group is filled up with zeros.
    /// - Parameter direction: f32 `[⌈n/groups⌉]`
    package func linear(_ x: Variable, _ a: Variable, rememberedAlong direction: Tensor, groups: Int, scale: Float) throws(PEFTError) -> Variable {
        let (rows, n, width) = (x.value.rows, x.value.columns, direction.count)
        try require(width * groups >= n && a.value.columns == n, "\(groups) groups of \(width) for x \(x.shape), A \(a.shape)")
        let compute = compute(for: x.value)
        let y = try Tensor(engine, [rows, a.value.rows], x.value.dtype)
        try engine.multiply(.forward, x.value, a.value, into: y, compute: compute)
        let output = result(y, of: x, a)
        // The direction in each group: `[groups, n]`, one row a group.
        let spread = try Tensor.zeros(engine, [groups, n], .f32)
        unsafe direction.withFloats { direction in
            unsafe spread.withMutableFloats { spread in
                guard direction.count == width, spread.count == groups * n else { return }
                for column in 0..<n { unsafe spread[column / width * n + column] = direction[column % width] }
            }
        }
        let kept = try Tensor(engine, [rows, groups], x.value.dtype)
        if a.needsGradient { try engine.multiply(.forward, x.value, spread, into: kept, compute: compute) }
        record(output) { [engine, xSlot = x.slot, aSlot = a.slot, a = a.value] dY throws(PEFTError) in
            if let aSlot {  // dA = (dYᵀ·c)·spread, x̂ itself is never there
                let sums = try Tensor(engine, [dY.columns, groups], .f32)
                try engine.multiply(.weightGradient, dY, kept, into: sums, compute: compute, alpha: scale)
                let (dA, accumulate) = try aSlot.buffer(engine)
                try engine.multiply(.inputGradient, sums, spread, into: dA, compute: .f32, accumulate: accumulate)
            }
            if let xSlot {
                let (dX, accumulate) = try xSlot.buffer(engine)
                try engine.multiply(.inputGradient, dY, a, into: dX, compute: compute, accumulate: accumulate)
            }
        }
        return output
    }
}
