internal import Kernels
internal import Platform
internal import Tensors

extension Tensor {
    /// The values of an f32 tensor, for kernels.
    var floatPointer: UnsafeMutablePointer<Float> { unsafe pointer.assumingMemoryBound(to: Float.self) }
    /// The values of an i32 tensor, for kernels.
    var int32Pointer: UnsafeMutablePointer<Int32> { unsafe pointer.assumingMemoryBound(to: Int32.self) }
}

extension Optional where Wrapped == Tensor {
    var floatPointer: UnsafeMutablePointer<Float>? { unsafe self.map { unsafe $0.floatPointer } }
}

/// Shapes that do not fit are a defect of the caller's: files and hosts are checked before they get here.
func require(_ fits: Bool, _ message: @autoclosure () -> String) throws(PEFTError) {
    guard fits else { throw PEFTError(.internal, message()) }
}

extension Tape {
    /// Arithmetic of products: activations follow the precision; what is computed in f32 beside them (products of
    /// parameters with each other) stays f32.
    func compute(for x: Tensor) -> Compute { x.dtype == precision.activation ? precision.compute : .f32 }

    /// The value of `y` in memory that nobody else uses: its own, or a copy.
    func owned(_ y: inout Variable) throws(PEFTError) -> Tensor {
        if y.value.hasStorageAlone() { return y.value }
        let copy = try Tensor(engine, y.shape, y.value.dtype)
        engine.axpby(1, y.value, 0, into: copy)
        return copy
    }

    /// Uninitialised memory for a result like `y` elementwise: that of `y` if nobody else uses it.
    func reused(_ y: inout Variable) throws(PEFTError) -> Tensor {
        if y.value.hasStorageAlone() { return y.value }
        return try Tensor(engine, y.shape, y.value.dtype)
    }

    /// Checks that the values of an i32 tensor lie in `range` (not when planning).
    func checkIndices(_ indices: Tensor, in range: Range<Int>, _ what: String) throws(PEFTError) {
        try require(indices.dtype == .i32, "\(what): \(indices.dtype.name) instead of i32")
        guard !engine.isPlanning else { return }
        let wrong: Int32? = unsafe indices.withInt32s { values in
            for unsafe value in unsafe values where !range.contains(Int(value)) { return value }
            return nil
        }
        if let wrong { throw PEFTError(.argument, "\(what) \(wrong) is not in \(range)", detail: Int64(wrong)) }
    }
}

extension GradientSlot {
    /// The buffer for kernels that can only add: zero when nothing has arrived before.
    func sum(_ engine: Engine) throws(PEFTError) -> Tensor {
        let (tensor, accumulate) = try buffer(engine)
        if !accumulate { tensor.clear() }
        return tensor
    }

    /// Adds `factor · gradient`, which may be shared.
    func add(_ factor: Float, times tensor: Tensor, _ engine: Engine) throws(PEFTError) {
        if factor == 1 { return try add(tensor, engine) }
        let (sum, accumulate) = try buffer(engine)
        engine.axpby(factor, tensor, accumulate ? 1 : 0, into: sum)
    }
}
