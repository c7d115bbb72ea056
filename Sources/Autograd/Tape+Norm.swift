internal import Kernels
package import Platform
internal import Tensors

extension Tape {
    /// `y = x / √(mean x² + eps) · (weight + offset)` over rows; `weight` f32 `[n]`. `offset` is 1 for Gemma.
    /// Keeps `x`; users of the result compute it again instead of keeping it.
    package func rmsNorm(_ x: Variable, weight: Variable, offset: Float = 0, eps: Float) throws(PEFTError) -> Variable {
        let (rows, n, act) = (x.value.rows, x.value.columns, x.value.dtype.rawValue)
        try require(weight.value.count == n && weight.value.dtype == .f32, "rmsNorm: weight \(weight.shape) for \(x.shape)")
        let inverse = isRecording && (x.needsGradient || weight.needsGradient) ? try Tensor(engine, [rows]) : nil
        let normed = { [engine, weight = weight.value] (x: Tensor) throws(PEFTError) -> Tensor in
            let y = try Tensor(engine, x.shape, x.dtype)
            engine.parallel(engine.shares(x.count)) { part, parts in
                unsafe pk_rmsnorm_forward(
                    engine.level, act, x.pointer, weight.floatPointer, offset, eps, y.pointer, inverse.floatPointer, Int64(rows), Int64(n), part, parts)
            }
            return y
        }
        var output = result(try normed(x.value), of: x, weight)
        guard let inverse, output.needsGradient else { return output }
        let compact = try compact(x.value)
        let input = Recipe { () throws(PEFTError) in try compact.tensor() }
        output.recipe = Recipe { () throws(PEFTError) in try normed(try input.result()) }
        record(output) { [engine, xSlot = x.slot, weight] dY throws(PEFTError) in
            let x = try input.result()
            if let slot = weight.slot {
                let dWeight = try slot.sum(engine)
                engine.parallel(engine.shares(dY.count)) { part, parts in
                    unsafe pk_rmsnorm_weight_backward(
                        engine.level, act, x.pointer, inverse.floatPointer, dY.pointer, dWeight.floatPointer, Int64(rows), Int64(n), part, parts)
                }
            }
            if let slot = xSlot {
                let (dX, accumulate) = try slot.buffer(engine)
                engine.parallel(engine.shares(dY.count)) { part, parts in
                    unsafe pk_rmsnorm_backward(
                        engine.level, act, x.pointer, weight.value.floatPointer, offset, inverse.floatPointer, dY.pointer, dX.pointer,
                        accumulate ? 1 : 0, Int64(rows), Int64(n), part, parts)
                }
            }
        }
        return output
    }

    /// `y = (x − mean)/√(var + eps) · weight + bias` over rows; `weight`, `bias` f32 `[n]` or nil.
    package func layerNorm(_ x: Variable, weight: Variable?, bias: Variable?, eps: Float) throws(PEFTError) -> Variable {
        let (rows, n, act) = (x.value.rows, x.value.columns, x.value.dtype.rawValue)
        for vector in [weight, bias] {
            guard let vector else { continue }
            try require(vector.value.count == n && vector.value.dtype == .f32, "layerNorm: weight or bias \(vector.shape) for \(x.shape)")
        }
        let wanted = isRecording && (x.needsGradient || weight?.slot != nil || bias?.slot != nil)
        let statistics = wanted ? try Tensor(engine, [rows, 2]) : nil
        let normed = { [engine, x = x.value, weight = weight?.value, bias = bias?.value] () throws(PEFTError) -> Tensor in
            let y = try Tensor(engine, x.shape, x.dtype)
            engine.parallel(engine.shares(x.count)) { part, parts in
                unsafe pk_layernorm_forward(
                    engine.level, act, x.pointer, weight.floatPointer, bias.floatPointer, eps, y.pointer, statistics.floatPointer, Int64(rows), Int64(n),
                    part, parts)
            }
            return y
        }
        let constant = Variable(x.value)
        var output = result(try normed(), of: x, weight ?? constant, bias ?? constant)
        if output.needsGradient { output.recipe = Recipe(normed) }
        record(output) { [engine] dY throws(PEFTError) in
            guard let statistics else { return }
            if weight?.slot != nil || bias?.slot != nil {
                let dWeight = try weight?.slot.flatMap { (slot) throws(PEFTError) -> Tensor? in try slot.sum(engine) }
                let dBias = try bias?.slot.flatMap { (slot) throws(PEFTError) -> Tensor? in try slot.sum(engine) }
                engine.parallel(engine.shares(dY.count)) { part, parts in
                    unsafe pk_layernorm_weight_backward(
                        engine.level, act, x.value.pointer, statistics.floatPointer, dY.pointer, dWeight.floatPointer, dBias.floatPointer, Int64(rows), Int64(n),
                        part, parts)
                }
            }
            if let slot = x.slot {
                let (dX, accumulate) = try slot.buffer(engine)
                engine.parallel(engine.shares(dY.count)) { part, parts in
                    unsafe pk_layernorm_backward(
                        engine.level, act, x.value.pointer, (weight?.value).floatPointer, statistics.floatPointer, dY.pointer, dX.pointer, accumulate ? 1 : 0,
                        Int64(rows), Int64(n), part, parts)
                }
            }
        }
        return output
    }
}
