package import Platform
package import Tensors

/// What a tensor loses in another weight format.
package struct EncodingReport: Sendable, Equatable {
    package let dtype: DType
    package let byteCount: Int
    /// √(mean (value − stored)²).
    package let rootMeanSquare: Double
    /// max |value − stored|.
    package let maximum: Double
    /// ‖value − stored‖ / ‖value‖; 0 for a tensor of zeros.
    package let relative: Double
}

extension Tensor {
    /// The loss of encoding the tensor as `dtype`, without keeping the result: band after band is encoded, decoded and
    /// compared. NaN and infinities make the figures NaN or infinite. All zero when planning.
    package func encodingReport(as dtype: DType, _ engine: Engine) throws(PEFTError) -> EncodingReport {
        var (errors, squares, maximum) = (0.0, 0.0, 0.0)
        try forEachBand(engine) { (band, _) throws(PEFTError) in
            let stored = try band.encoded(as: dtype, engine, .scratch).converted(to: .f32, engine, .scratch)
            unsafe band.withFloats { values in
                unsafe stored.withFloats { stored in
                    for index in 0..<min(values.count, stored.count) {
                        let value = unsafe Double(values[index])
                        let error = unsafe value - Double(stored[index])
                        errors += error * error
                        squares += value * value
                        maximum = error.isNaN || maximum.isNaN ? .nan : max(maximum, abs(error))
                    }
                }
            }
        }
        return EncodingReport(
            dtype: dtype, byteCount: try dtype.byteCount(shape: shape), rootMeanSquare: (errors / Double(max(count, 1))).squareRoot(), maximum: maximum,
            relative: errors == 0 ? 0 : (errors / squares).squareRoot())
    }
}
