package import Platform
internal import Tensors

extension Tape {
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
