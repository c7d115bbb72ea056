internal import Kernels
package import Platform
package import Tensors

/// `B·A`; `b` `[out, r]`, `a` `[r, in]`.
package struct LowRankChange {
    let b: Variable
    let a: Variable

    package init(b: Variable, a: Variable) { (self.b, self.a) = (b, a) }

    fileprivate func product(_ engine: Engine, _ precision: Precision) throws(PEFTError) -> Tensor {
        let p = try Tensor(engine, [b.value.rows, a.value.columns])
        try engine.multiply(.inputGradient, b.value, a.value, into: p, compute: precision.compute)
        return p
    }

    /// `dB = scale·dP·Aᵀ`, `dA = scale·Bᵀ·dP`
    fileprivate func addGradients(_ dP: Tensor, scale: Float, _ engine: Engine, _ precision: Precision) throws(PEFTError) {
        if let slot = b.slot {
            let (dB, accumulate) = try slot.buffer(engine)
            try engine.multiply(.forward, dP, a.value, into: dB, compute: precision.compute, alpha: scale, accumulate: accumulate)
        }
        if let slot = a.slot {
            let (dA, accumulate) = try slot.buffer(engine)
            try engine.multiply(.weightGradient, b.value, dP, into: dA, compute: precision.compute, alpha: scale, accumulate: accumulate)
        }
    }
}

extension Tape {
    /// `W ⊙ (1 + scale·P) + scale·Q` of a frozen W (f32 `[out, in]`), P and Q of low rank: what stands in for W where products are to be one with
    /// the change and one without. In the type that activations have; to bf16 it is rounded by chance (always the same), so that changes of
    /// less than half a step of W are there in the sum. Keeps W.
    ///
    ///     dP = scale·W ⊙ dY    dQ = scale·dY
    package func changedWeight(_ w: Tensor, times change: LowRankChange, plus other: LowRankChange? = nil, scale: Float) throws(PEFTError) -> Variable {
        let p = try change.product(engine, precision), q = try other?.product(engine, precision)
        try require(w.dtype == .f32 && w.shape == p.shape && w.shape == q?.shape ?? p.shape, "changedWeight: \(w.shape), \(p.shape), \(q?.shape ?? [])")
        let y = try Tensor(engine, w.shape, precision.activation)
        engine.parallel(engine.shares(w.count)) { part, parts in
            unsafe pk_changed_weights(
                engine.level, w.floatPointer, p.floatPointer, q?.floatPointer, scale, y.dtype.rawValue, y.pointer, w.count, part, parts)
        }
        let isTrained = [change.b, change.a, other?.b, other?.a].contains { $0?.needsGradient ?? false }
        let output = Variable(y, isRecording && isTrained ? GradientSlot(shape: y.shape, dtype: y.dtype) : nil)
        record(output) { [engine, precision] dY throws(PEFTError) in
            let dY = dY.dtype == .f32 ? dY : try dY.converted(to: .f32, engine)
            try other?.addGradients(dY, scale: scale, engine, precision)
            try change.addGradients(try Tape(engine, .f32).multiply(Variable(dY), Variable(w)).value, scale: scale, engine, precision)
        }
        return output
    }

    /// `y += scale · x·Dᵀ` with a D `[out, in]` (f32) that `weight` computes from `inputs` by operations of the tape it is given:
    /// for changes of a weight that have no factors to multiply with one after the other.
    ///
    /// D is there while it is used and computed again in the backward pass, so a step keeps no more than for a frozen layer:
    ///
    ///     dX += scale · dY·D    dD = scale · dYᵀ·X
    package func addProduct(
        to y: consuming Variable, input x: Variable, scale: Float, of inputs: [Variable],
        _ weight: @escaping (_ tape: Tape, _ inputs: [Variable]) throws(PEFTError) -> Variable
    ) throws(PEFTError) -> Variable {
        var y = y
        let (start, compute) = (random, compute(for: x.value))
        let silent = Tape(engine, precision, isTraining: isTraining, random: start)
        let d = try weight(silent, inputs.map { Variable($0.value) }).value
        random = silent.random
        try require(d.rows == y.value.columns && d.columns == x.value.columns, "computed weight \(d.shape) for x \(x.shape), y \(y.shape)")
        let sum = try owned(&y)
        try engine.multiply(.forward, x.value, d, into: sum, compute: compute, alpha: scale, accumulate: true)
        let isTrained = inputs.contains(where: \.needsGradient)
        let wanted = isRecording && (isTrained || x.needsGradient || y.needsGradient)
        let output = Variable(sum, wanted ? GradientSlot(shape: sum.shape, dtype: sum.dtype) : nil)
        let input = isTrained ? x.kept : nil
        record(output) { [engine, precision, isTraining, ySlot = y.slot, xSlot = x.slot, gradients] dY throws(PEFTError) in
            try ySlot?.add(dY, engine)
            guard input != nil || xSlot != nil else { return }
            let again = Tape(engine, precision, gradients: gradients, isTraining: isTraining, random: start)
            let fresh = inputs.map { $0.needsGradient ? again.leaf($0.value) : Variable($0.value) }
            let d = try weight(again, fresh)
            if let xSlot {
                let (dX, accumulate) = try xSlot.buffer(engine)
                try engine.multiply(.inputGradient, dY, d.value, into: dX, compute: compute, alpha: scale, accumulate: accumulate)
            }
            guard let input else { return }
            let dD = try Tensor(engine, d.shape, .f32)
            try engine.multiply(.weightGradient, dY, try input.tensor(), into: dD, compute: compute, alpha: scale)
            try again.backward(from: d, gradient: dD)
            for (input, copy) in zip(inputs, fresh) {
                if let slot = input.slot, let gradient = copy.slot?.take() { try slot.add(gradient, engine) }
            }
        }
        return output
    }
}
