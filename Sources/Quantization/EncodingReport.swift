package import Platform
package import Tensors

/// What a tensor lost in another weight format.
package struct EncodingReport: Sendable, Equatable {
    package let dtype: DType
    package let byteCount: Int
    /// √(mean (value − stored)²).
    package let rootMeanSquare: Double
    /// max |value − stored|.
    package let maximum: Double
    /// ‖value − stored‖ / ‖value‖; 0 for a tensor of zeros.
    package let relative: Double

    /// Compares band after band. NaN and infinities make the figures NaN or infinite. All zero when planning.
    package init(of tensor: Tensor, stored: Tensor, _ engine: Engine) throws(PEFTError) {
        var (errors, squares, maximum) = (0.0, 0.0, 0.0)
        try tensor.forEachBand(engine) { (band, start) throws(PEFTError) in
            let made = try stored.rows(start..<start + band.rows).converted(to: .f32, engine, .scratch)
            unsafe band.withFloats { values in
                unsafe made.withFloats { made in
                    for index in 0..<min(values.count, made.count) {
                        let value = unsafe Double(values[index])
                        let error = unsafe value - Double(made[index])
                        errors += error * error
                        squares += value * value
                        maximum = error.isNaN || maximum.isNaN ? .nan : max(maximum, abs(error))
                    }
                }
            }
        }
        (dtype, byteCount) = (stored.dtype, stored.byteCount)
        rootMeanSquare = (errors / Double(max(tensor.count, 1))).squareRoot()
        self.maximum = maximum
        relative = errors == 0 ? 0 : (errors / squares).squareRoot()
    }
}
