package import Platform
package import Tensors

/// The products of low rank that a computation would add to what it makes of `input`, instead of the computation.
package final class LowRankRecord {
    private let input: Storage
    package var branches: [LowRankBranch] = []

    package init(of input: Variable) { self.input = input.value.storage }
    package func isInput(_ x: Variable) -> Bool { x.value.storage === input }
}

extension Tape {
    /// LoRA's branch: `y += scale · drop(x)·Aᵀ·Bᵀ`; `x` `[rows, in]`, `a` `[r, in]`, `b` `[out, r]`, `y` `[rows, out]`.
    ///
    /// `y` is consumed: it is written in place when nobody else uses it. Keeps `x` (or its recipe) and `H = drop(x)·Aᵀ` `[rows, r]`; the
    /// dropout mask is drawn again in the backward pass:
    ///
    ///     dB += scale·dYᵀ·H    dH = scale·dY·B    dA += dHᵀ·drop(x)    dX += drop(dH·A)
    package func addLowRank(
        to y: consuming Variable, input x: Variable, a: Variable, b: Variable, scale: Float, dropout p: Float = 0
    ) throws(PEFTError) -> Variable {
        var y = y
        let rank = a.value.rows
        try require(b.value.columns == rank && y.value.rows == x.value.rows, "low rank: A \(a.shape), B \(b.shape), x \(x.shape), y \(y.shape)")
        if let lowRank, lowRank.isInput(x) {
            lowRank.branches.append(LowRankBranch(a: a.value, b: b.value, scale: scale))
            return y
        }
        let mask = drawMask(p, count: x.value.count)
        let compute = compute(for: x.value)
        let h = try Tensor(engine, [x.value.rows, rank], x.value.dtype)
        try engine.multiply(.forward, try engine.masked(x.value, mask), a.value, into: h, compute: compute)
        let sum = try owned(&y)
        try engine.multiply(.forward, h, b.value, into: sum, compute: compute, alpha: scale, accumulate: true)
        let output = result(sum, of: y, x, a, b)
        let input = a.needsGradient ? x.kept : nil
        let hidden = b.needsGradient ? h : nil
        record(output) { [engine, ySlot = y.slot, xSlot = x.slot, aSlot = a.slot, bSlot = b.slot, a = a.kept, b = b.kept] dY throws(PEFTError) in
            if let bSlot, let hidden {
                let (dB, accumulate) = try bSlot.buffer(engine)
                try engine.multiply(.weightGradient, dY, hidden, into: dB, compute: compute, alpha: scale, accumulate: accumulate)
            }
            if aSlot != nil || xSlot != nil {
                let dH = try Tensor(engine, [dY.rows, rank], dY.dtype)
                try engine.multiply(.inputGradient, dY, try b.tensor(), into: dH, compute: compute, alpha: scale)
                if let aSlot, let input {
                    let (dA, accumulate) = try aSlot.buffer(engine)
                    try engine.multiply(.weightGradient, dH, try engine.masked(try input.tensor(), mask), into: dA, compute: compute, accumulate: accumulate)
                }
                if let xSlot { try engine.addMaskedProduct(dH, try a.tensor(), mask, to: xSlot, compute) }
            }
            if let ySlot { try ySlot.add(dY, engine) }
        }
        return output
    }
}

extension Engine {
    /// `gradient += drop(d·w)`.
    fileprivate func addMaskedProduct(_ d: Tensor, _ w: Tensor, _ mask: DropoutMask?, to slot: GradientSlot, _ compute: Compute) throws(PEFTError) {
        guard let mask else {
            let (sum, accumulate) = try slot.buffer(self)
            return try multiply(.inputGradient, d, w, into: sum, compute: compute, accumulate: accumulate)
        }
        let product = try Tensor(self, slot.shape, slot.dtype)
        try multiply(.inputGradient, d, w, into: product, compute: compute)
        let (sum, accumulate) = try slot.buffer(self)
        mask.apply(product, into: sum, accumulate: accumulate, self)
    }

    /// `drop(x)`.
    fileprivate func masked(_ x: Tensor, _ mask: DropoutMask?) throws(PEFTError) -> Tensor {
        guard let mask else { return x }
        let dropped = try Tensor(self, x.shape, x.dtype)
        mask.apply(x, into: dropped, accumulate: false, self)
        return dropped
    }
}
