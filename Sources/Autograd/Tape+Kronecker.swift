internal import Kernels
package import Platform
internal import Tensors

extension Tape {
    /// LoKr's branch with a second factor of low rank: `y += scale · x·(W ⊗ A·B)ᵀ`; `w` `[l, m]`, `a` `[k, r]`, `b` `[r, n]`, all f32, `x` `[rows, m·n]`,
    /// `y` `[rows, l·k]`.
    ///
    /// `y` is consumed: it is written in place when nobody else uses it. Keeps `x` (or its recipe); the formulas of both passes are in `kronecker.c`.
    package func addKronecker(to y: consuming Variable, input x: Variable, w: Variable, a: Variable, b: Variable, scale: Float) throws(PEFTError) -> Variable {
        var y = y
        let rows = x.value.rows
        let sizes = (l: w.value.rows, k: a.value.rows, m: w.value.columns, n: b.value.columns, r: b.value.rows)
        try require(
            [w, a, b].allSatisfy { $0.value.dtype == .f32 } && a.value.columns == sizes.r && x.value.columns == sizes.m * sizes.n
                && y.value.columns == sizes.l * sizes.k && y.value.rows == rows,
            "Kronecker product: W \(w.shape), A \(a.shape), B \(b.shape), x \(x.shape), y \(y.shape)")
        let sum = try owned(&y)
        var op = unsafe pk_kronecker()
        unsafe (op.level, op.x_type, op.y_type) = (engine.level, x.value.dtype.rawValue, sum.dtype.rawValue)
        unsafe (op.rows, op.scale) = (Int64(rows), scale)
        unsafe (op.l, op.k, op.m, op.n, op.r) = (Int64(sizes.l), Int64(sizes.k), Int64(sizes.m), Int64(sizes.n), Int64(sizes.r))
        let shares = engine.shares(x.value.count + sum.count)
        var forward = unsafe op
        unsafe (forward.w, forward.a, forward.b) = unsafe (UnsafePointer(w.value.floatPointer), UnsafePointer(a.value.floatPointer), UnsafePointer(b.value.floatPointer))
        unsafe (forward.x, forward.y) = unsafe (UnsafeRawPointer(x.value.pointer), sum.pointer)
        unsafe try engine.runKronecker(&forward, shares, isBackward: false)
        let output = result(sum, of: y, x, w, a, b)
        let isTrained = w.needsGradient || a.needsGradient || b.needsGradient
        guard isTrained || x.needsGradient else {
            record(output) { [engine, ySlot = y.slot] dY throws(PEFTError) in try ySlot?.add(dY, engine) }
            return output
        }
        record(output) { [engine, ySlot = y.slot, slots = (x: x.slot, w: w.slot, a: a.slot, b: b.slot), x = x.kept, w = w.kept, a = a.kept, b = b.kept] dY throws(PEFTError) in
            let (x, w, a, b) = (try x.tensor(), try w.tensor(), try a.tensor(), try b.tensor())
            var op = unsafe op
            unsafe (op.w, op.a, op.b) = unsafe (UnsafePointer(w.floatPointer), UnsafePointer(a.floatPointer), UnsafePointer(b.floatPointer))
            unsafe (op.x, op.d_y) = unsafe (UnsafeRawPointer(x.pointer), UnsafeRawPointer(dY.pointer))
            let dX = try slots.x.map { (slot) throws(PEFTError) in try slot.buffer(engine) }
            let (dW, dA, dB) = (try slots.w?.sum(engine), try slots.a?.sum(engine), try slots.b?.sum(engine))
            unsafe (op.d_x, op.accumulate) = unsafe (dX?.tensor.pointer, dX?.accumulate ?? false ? 1 : 0)
            unsafe (op.d_w, op.d_a, op.d_b) = unsafe (dW.floatPointer, dA.floatPointer, dB.floatPointer)
            unsafe try engine.runKronecker(&op, shares, isBackward: true)
            try ySlot?.add(dY, engine)
        }
        return output
    }
}

extension Engine {
    fileprivate func runKronecker(_ op: inout pk_kronecker, _ shares: Int, isBackward: Bool) throws(PEFTError) {
        var (each, shared) = (0, 0)
        unsafe pk_kronecker_scratch(&op, isBackward ? 1 : 0, &each, &shared)
        let mask = MemoryBudget.alignment - 1
        (each, shared) = ((each + mask) & ~mask, (shared + mask) & ~mask)
        let scratch = try Storage(byteCount: shared + each * shares, budget: budget, category: .scratch)
        unsafe withUnsafePointer(to: op) { op in
            for phase: Int32 in 0..<(isBackward ? 2 : 1) {
                parallel(phase == 0 ? shares : 1) { part, parts in
                    let own = unsafe scratch.base + shared + each * Int(part)
                    if isBackward {
                        unsafe pk_kronecker_backward(op, phase, part, parts, scratch.base, own)
                    } else {
                        unsafe pk_kronecker_forward(op, part, parts, own)
                    }
                }
            }
        }
    }
}
