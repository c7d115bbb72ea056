internal import Kernels

extension Engine {
    /// `y = a·x + b·y`; same count and type (f32 or bf16). With `b` 0, `y` may be uninitialised.
    package func axpby(_ a: Float, _ x: Tensor, _ b: Float, into y: Tensor) {
        let count = min(x.count, y.count)
        parallel(shares(count)) { part, parts in
            unsafe pk_axpby(level, y.dtype.rawValue, a, x.pointer, b, y.pointer, count, part, parts)
        }
    }
}
