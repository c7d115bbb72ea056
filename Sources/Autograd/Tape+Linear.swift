package import Platform
package import Tensors

extension Tape {
    /// `y = x·Wᵀ (+ bias)` with a frozen `W` `[out, in]` of any weight format; `x` `[rows, in]`, `y` `[rows, out]`.
    ///
    /// - Parameters:
    ///   - bias: f32 `[out]`.
    ///   - transposed: `W` is stored `[in, out]` (Conv1D; PEFT's fan_in_fan_out).
    ///   - dtype: type of `y`; nil: that of `x`. Heads ask for f32 logits.
    /// Keeps nothing but references to the weights for the backward pass.
    package func linear(
        _ x: Variable, frozen w: Tensor, bias: Tensor? = nil, transposed: Bool = false, as dtype: DType? = nil
    ) throws(PEFTError) -> Variable {
        try linear(x, Variable(w), bias: bias.map { Variable($0) }, transposed: transposed, as: dtype)
    }

    /// Several of the same few rows, of which nothing is recorded, with products of low rank beside them: one kernel call.
    package func linears(_ x: Variable, _ products: [FewRowProduct], as dtype: DType? = nil) throws(PEFTError) -> [Variable] {
        let ys = try products.map { (product) throws(PEFTError) in try Tensor(engine, [x.value.rows, product.weight.rows], dtype ?? x.value.dtype) }
        try engine.multiply(x.value, products, into: ys, compute: compute(for: x.value))
        return ys.map { Variable($0) }
    }

    /// The same with weights that may be trainable (`[out, in]`, or `[in, out]` when `transposed`; f32 if a gradient is
    /// wanted). `dW = dYᵀ·X`, `db = Σ_rows dY`.
    package func linear(
        _ x: Variable, _ w: Variable, bias: Variable? = nil, transposed: Bool = false, as dtype: DType? = nil
    ) throws(PEFTError) -> Variable {
        let out = transposed ? w.value.columns : w.value.rows
        let y = try Tensor(engine, [x.value.rows, out], dtype ?? x.value.dtype)
        let rounds = precision.roundsForward && !transposed && !w.needsGradient && engine.gainsByRounding(x.value, w.value)
        try engine.multiply(
            transposed ? .inputGradient : .forward, x.value, w.value, into: y, compute: rounds ? .rounded : compute(for: x.value), bias: bias?.value)
        let output = bias.map { result(y, of: x, w, $0) } ?? result(y, of: x, w)
        let input = w.needsGradient ? x.kept : nil
        let weights = x.needsGradient ? w.kept : nil
        record(output) { [engine, compute = compute(for: x.value), xSlot = x.slot, wSlot = w.slot, biasSlot = bias?.slot] dY throws(PEFTError) in
            if let biasSlot { engine.addColumnSums(of: dY, to: try biasSlot.sum(engine)) }
            if let wSlot, let input {
                let (dW, accumulate) = try wSlot.buffer(engine)
                let input = try input.tensor()
                let (left, right) = transposed ? (input, dY) : (dY, input)
                try engine.multiply(.weightGradient, left, right, into: dW, compute: compute, accumulate: accumulate)
            }
            if let xSlot, let weights {
                let (dX, accumulate) = try xSlot.buffer(engine)
                try engine.multiply(transposed ? .forward : .inputGradient, dY, try weights.tensor(), into: dX, compute: compute, accumulate: accumulate)
            }
        }
        return output
    }

    /// `y = aᵀ·b`; `a` `[k, m]`, `b` `[k, n]` (f32 or bf16), `y` `[m, n]`: the third product of two matrices, beside
    /// `linear` (`a·bᵀ`) and `linear(transposed: true)` (`a·b`).
    package func transposedProduct(_ a: Variable, _ b: Variable) throws(PEFTError) -> Variable {
        let y = try Tensor(engine, [a.value.columns, b.value.columns], a.value.dtype)
        let compute = compute(for: a.value)
        try engine.multiply(.weightGradient, a.value, b.value, into: y, compute: compute)
        let output = result(y, of: a, b)
        record(output) { [engine, a, b] dY throws(PEFTError) in
            if let slot = a.slot {  // dA = B·dYᵀ
                let (dA, accumulate) = try slot.buffer(engine)
                try engine.multiply(.forward, b.value, dY, into: dA, compute: compute, accumulate: accumulate)
            }
            if let slot = b.slot {  // dB = A·dY
                let (dB, accumulate) = try slot.buffer(engine)
                try engine.multiply(.inputGradient, a.value, dY, into: dB, compute: compute, accumulate: accumulate)
            }
        }
        return output
    }
}
