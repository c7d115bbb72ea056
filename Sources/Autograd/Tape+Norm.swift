internal import Kernels
package import Platform
internal import Tensors

extension Tape {
    /// `y = x / √(mean x² + eps) · (weight + offset)` over rows; `weight` f32 `[n]`. `offset` is 1 for Gemma.
    package func rmsNorm(_ x: Variable, weight: Variable, offset: Float = 0, eps: Float) throws(PEFTError) -> Variable {
        let (rows, n, act) = (x.value.rows, x.value.columns, x.value.dtype.rawValue)
        try require(weight.value.count == n && weight.value.dtype == .f32, "rmsNorm: weight \(weight.shape) for \(x.shape)")
        let y = try Tensor(engine, x.shape, x.value.dtype)
        let inverse = x.needsGradient || weight.needsGradient ? try Tensor(engine, [rows]) : nil
        engine.parallel(engine.shares(x.value.count)) { part, parts in
            unsafe pk_rmsnorm_forward(
                engine.level, act, x.value.pointer, weight.value.floatPointer, offset, eps, y.pointer, inverse.floatPointer, Int64(rows), Int64(n), part, parts)
        }
        let output = result(y, of: x, weight)
        record(output) { [engine] dY throws(PEFTError) in
            guard let inverse else { return }
            if let slot = weight.slot {
                let dWeight = try slot.sum(engine)
                engine.parallel(engine.shares(dY.count)) { part, parts in
                    unsafe pk_rmsnorm_weight_backward(
                        engine.level, act, x.value.pointer, inverse.floatPointer, dY.pointer, dWeight.floatPointer, Int64(rows), Int64(n), part, parts)
                }
            }
            if let slot = x.slot {
                let (dX, accumulate) = try slot.buffer(engine)
                engine.parallel(engine.shares(dY.count)) { part, parts in
                    unsafe pk_rmsnorm_backward(
                        engine.level, act, x.value.pointer, weight.value.floatPointer, offset, inverse.floatPointer, dY.pointer, dX.pointer,
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
        let y = try Tensor(engine, x.shape, x.value.dtype)
        let constant = Variable(x.value)
        let output = result(y, of: x, weight ?? constant, bias ?? constant)
        let statistics = output.needsGradient ? try Tensor(engine, [rows, 2]) : nil
        engine.parallel(engine.shares(x.value.count)) { part, parts in
            unsafe pk_layernorm_forward(
                engine.level, act, x.value.pointer, (weight?.value).floatPointer, (bias?.value).floatPointer, eps, y.pointer, statistics.floatPointer,
                Int64(rows), Int64(n), part, parts)
        }
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
