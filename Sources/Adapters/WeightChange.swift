package import Platform
package import Tensors

/// What an adapter adds to one layer: `W + matrix`, `bias + bias`.
///
/// The matrix is LoRA's B·A, whatever made it: `[out, in]`, a kernel's places behind `in`; `[dimension, count]` of an embedding.
package struct WeightChange {
    package enum Matrix {
        /// `scale·b·a`: f32 `[out, r]`, `[r, in]`
        case product(b: Tensor, a: Tensor, scale: Double)
        /// f32 `[out, in]`
        case dense(Tensor)
    }

    package var matrix: Matrix
    /// f32 `[out]`
    package var bias: Tensor?

    package init(_ matrix: Matrix, bias: Tensor? = nil) {
        self.matrix = matrix
        self.bias = bias
    }
}

extension WeightChange.Matrix {
    /// `[out, in]`
    package var shape: [Int] {
        switch self {
        case .product(let b, let a, _): [b.rows, a.columns]
        case .dense(let matrix): [matrix.rows, matrix.columns]
        }
    }

    /// The matrix itself, in memory of its own.
    package func dense(_ engine: Engine) throws(PEFTError) -> Tensor {
        switch self {
        case .dense(let matrix): return try matrix.converted(to: .f32, engine, .scratch)
        case .product(let b, let a, let scale):
            let result = try Tensor(engine, shape, .f32, .scratch)
            try engine.multiply(.inputGradient, b, a, into: result, compute: .f32, alpha: Float(scale))
            return result
        }
    }

    /// Σ of the products of all values (Frobenius). Of two products by their factors: Σ (b₁ᵀ·b₂) ⊙ (a₁·a₂ᵀ).
    package func inner(_ other: WeightChange.Matrix, _ engine: Engine) throws(PEFTError) -> Double {
        if case .product(let b, let a, let scale) = self, case .product(let b2, let a2, let scale2) = other {
            let left = try Tensor(engine, [a.rows, a2.rows], .f32, .scratch)
            let right = try Tensor(engine, [a.rows, a2.rows], .f32, .scratch)
            try engine.multiply(.weightGradient, b, b2, into: left, compute: .f32)
            try engine.multiply(.forward, a, a2, into: right, compute: .f32)
            return scale * scale2 * left.inner(right)
        }
        return try dense(engine).inner(try other.dense(engine))
    }

    /// - Throws: `.numeric` when a value is NaN or infinite.
    package func checkIsFinite(_ place: @autoclosure () -> String) throws(PEFTError) {
        let tensors = switch self {
        case .product(let b, let a, _): [b, a]
        case .dense(let matrix): [matrix]
        }
        guard tensors.allSatisfy({ $0.squaredNorm.isFinite }) else {
            throw PEFTError(.numeric, "\(place()) has values that are NaN or infinite")
        }
    }
}

extension Tensor {
    /// Σx² of an f32 tensor.
    package var squaredNorm: Double { inner(self) }

    /// Σxy of two f32 tensors of one size.
    package func inner(_ other: Tensor) -> Double {
        unsafe withFloats { x in
            unsafe other.withFloats { y in
                var sum = 0.0
                for index in 0..<min(x.count, y.count) { unsafe sum += Double(x[index]) * Double(y[index]) }
                return sum
            }
        }
    }
}
