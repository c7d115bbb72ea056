internal import Kernels
package import Platform
internal import Tensors

extension Tape {
    /// `y += scale · x·ΔWᵀ` with `ΔW = Re Vᵀ·S·U`: a sparse matrix between the transforms of input and output, for Fourier's
    /// `ΔW[o, i] = Σ_p Re s_p·e^(2πi(row_p·o/out + column_p·i/in))`. Nothing of ΔW's size is made: a row costs its two
    /// transforms and one multiplication for each value.
    ///
    /// - Parameters:
    ///   - values: f32 `[count]`; or `[2, count]`, re and im, of Fourier transforms.
    ///   - turnsGradient: the gradient of x is that for a dY turned round in each Fourier block, as PEFT computes C3A's.
    /// Keeps x; its spectrum is computed again in the backward pass.
    package func addSpectral(
        to y: consuming Variable, input x: Variable, _ values: Variable, at places: SparsePlaces, from: SpectralTransform,
        to: SpectralTransform, scale: Float, turnsGradient: Bool = false
    ) throws(PEFTError) -> Variable {
        var y = y
        try require(
            x.value.columns == from.size && y.value.columns == to.size && y.value.rows == x.value.rows && y.value.dtype == x.value.dtype
                && values.value.columns == places.count && from.isFourier == to.isFourier,
            "spectral: x \(x.shape), y \(y.shape), values \(values.shape)")
        let sum = try owned(&y)
        unsafe try engine.spectral(x.value, values.value, places, from, to) { op, scratch, part, parts, level in
            unsafe pk_spectral_forward(level, &op, x.value.pointer, sum.pointer, scale, part, parts, scratch)
        }
        let output = result(sum, of: y, x, values)
        let input = values.needsGradient ? x.kept : nil
        record(output) { [engine, ySlot = y.slot, xSlot = x.slot, slot = values.slot, values = values.value, shape = x.shape] dY throws(PEFTError) in
            try ySlot?.add(dY, engine)
            guard input != nil || xSlot != nil else { return }
            // Without a gradient of the values x is not read.
            let x = if let input { try input.tensor() } else { try Tensor(engine, shape, dY.dtype) }
            let dX = try xSlot?.sum(engine)
            // A part's gradients are its own; their sum has a fixed order.
            let sums = try slot.map { (_) throws(PEFTError) in try Tensor.zeros(engine, [Engine.spectralParts, values.count]) }
            unsafe try engine.spectral(x, values, places, from, to, turnsGradient: turnsGradient) { op, scratch, part, parts, level in
                let own = unsafe sums.map { unsafe $0.floatPointer + Int(part) * values.count }
                unsafe pk_spectral_backward(level, &op, x.pointer, dY.pointer, dX?.pointer, own, scale, part, parts, scratch)
            }
            if let slot, let sums { engine.addColumnSums(of: sums, to: try slot.sum(engine)) }
        }
        return output
    }
}

extension Engine {
    /// Parts that the rows are cut into, whatever the number of threads.
    fileprivate static let spectralParts = 8

    fileprivate func spectral(
        _ x: Tensor, _ values: Tensor, _ places: SparsePlaces, _ from: SpectralTransform, _ to: SpectralTransform, turnsGradient: Bool = false,
        _ body: (_ op: inout pk_spectral, _ scratch: UnsafeMutablePointer<Float>, _ part: Int32, _ parts: Int32, _ level: Int32) -> Void
    ) throws(PEFTError) {
        var op = unsafe pk_spectral()
        unsafe (op.act, op.rows) = (x.dtype.rawValue, Int64(x.rows))
        unsafe (op.in, op.out) = unsafe (from.kernel, to.kernel)
        unsafe places.enter(&op)
        unsafe op.values = unsafe UnsafePointer(values.floatPointer)
        unsafe op.turns_gradient = turnsGradient ? 1 : 0
        unsafe op.has_imaginary = values.count > places.count ? 1 : 0
        // Room for each thread; which parts it computes changes nothing.
        let parts = min(Engine.spectralParts, Int(unsafe pk_spectral_tiles(&op))), workers = max(min(parts, shares(x.count)), 1)
        let each = (Int(unsafe pk_spectral_scratch(&op)) + 63) / 64 * 16
        let scratch = try Tensor(self, [workers, each], .f32, .scratch)
        let shared = unsafe op
        parallel(workers) { worker, workers in
            var op = unsafe shared
            for part in stride(from: worker, to: Int32(truncatingIfNeeded: parts), by: Int(workers)) {
                unsafe body(&op, scratch.floatPointer + Int(worker) * each, part, Int32(truncatingIfNeeded: parts), level)
            }
        }
    }
}
