internal import Autograd
internal import Platform
internal import Tensors

/// Riemannian preconditioning of LoRA (Zhang and Pilanci, arXiv:2402.02347) as `peft.optimizers.create_riemannian_optimizer`: before any
/// optimizer's update, by the factors as they are,
///
///     g_A ← (Bᵀ·B + δI)⁻¹·g_A    g_B ← g_B·(A·Aᵀ + δI)⁻¹
///
/// Pairs are the `lora_A` and `lora_B` matrices that both train; other parameters keep their gradients.
final class RiemannianPreconditioner {
    private struct Pair {
        let a: Parameter
        let b: Parameter
        /// f32 `[r, r]`
        let square: Tensor
        /// Like A, like B.
        let (forA, forB): (Tensor, Tensor)
    }

    private let pairs: [Pair]
    private let damping: Double
    private let engine: Engine

    /// Takes its memory.
    /// - Throws: `.argument` when there is no pair to train.
    init(_ trainee: Trainee, damping: Double, _ engine: Engine) throws(PEFTError) {
        (self.damping, self.engine) = (damping, engine)
        let byKey = Dictionary(trainee.entries.map { ($0.key, $0.parameter) }) { first, _ in first }
        var pairs: [Pair] = []
        // Pairs of one shape share their room.
        var rooms: [[Int]: Tensor] = [:]
        func room(_ shape: [Int]) throws(PEFTError) -> Tensor {
            if let known = rooms[shape] { return known }
            let fresh = try Tensor(engine, shape, .f32, .optimizer)
            rooms[shape] = fresh
            return fresh
        }
        for (key, a) in trainee.entries {
            guard let range = key.firstRange(ofText: ".lora_A."), let b = byKey[key.replacingCharacters(range, with: ".lora_B.")],
                a.isTrainable, b.isTrainable, a.value.shape.count == 2, b.value.shape.count == 2, a.value.rows == b.value.columns
            else { continue }
            pairs.append(Pair(a: a, b: b, square: try room([a.value.rows, a.value.rows]), forA: try room(a.value.shape), forB: try room(b.value.shape)))
        }
        guard !pairs.isEmpty else { throw PEFTError(.argument, "riemannian_reg: no adapter that trains has pairs of lora_A and lora_B") }
        self.pairs = pairs
    }

    /// - Throws: `.numeric` for factors with values that are not finite.
    func apply(to gradients: GradientStore) throws(PEFTError) {
        for pair in pairs {
            if let gradient = gradients.gradient(of: pair.a) {
                try engine.multiply(.weightGradient, pair.b.value, pair.b.value, into: pair.square, compute: .f32)
                try invert(pair.square)
                try engine.multiply(.inputGradient, pair.square, gradient, into: pair.forA, compute: .f32)
                engine.axpby(1, pair.forA, 0, into: gradient)
            }
            if let gradient = gradients.gradient(of: pair.b) {
                try engine.multiply(.forward, pair.a.value, pair.a.value, into: pair.square, compute: .f32)
                try invert(pair.square)
                try engine.multiply(.inputGradient, gradient, pair.square, into: pair.forB, compute: .f32)
                engine.axpby(1, pair.forB, 0, into: gradient)
            }
        }
    }

    /// `(square + δI)⁻¹` in its place.
    private func invert(_ square: Tensor) throws(PEFTError) {
        guard !engine.isPlanning else { return }
        let rank = square.rows
        var values = try square.floats(engine).map(Double.init)
        for i in 0..<rank { values[i * rank + i] += damping }
        guard let solved = inverse(ofPositive: &values, rank) else { throw PEFTError(.numeric, "riemannian_reg: a factor has values that are not finite") }
        unsafe square.withMutableFloats { out in
            for index in 0..<min(out.count, solved.count) { unsafe out[index] = Float(solved[index]) }
        }
    }
}

/// Inverse of a symmetric positive definite matrix from its lower triangle, which is overwritten; nil when it is none.
func inverse(ofPositive matrix: inout [Double], _ n: Int) -> [Double]? {
    for j in 0..<n {
        for k in 0..<j {
            for i in j..<n { matrix[i * n + j] -= matrix[i * n + k] * matrix[j * n + k] }
        }
        let pivot = matrix[j * n + j]
        guard pivot > 0, pivot.isFinite else { return nil }
        for i in j..<n { matrix[i * n + j] /= pivot.squareRoot() }
    }
    var inverse = [Double](repeating: 0, count: n * n)
    for column in 0..<n {
        var x = [Double](repeating: 0, count: n)
        for i in 0..<n {
            var sum = i == column ? 1.0 : 0
            for k in 0..<i { sum -= matrix[i * n + k] * x[k] }
            x[i] = sum / matrix[i * n + i]
        }
        for i in stride(from: n - 1, through: 0, by: -1) {
            var sum = x[i]
            for k in i + 1..<n { sum -= matrix[k * n + i] * x[k] }
            x[i] = sum / matrix[i * n + i]
        }
        for i in 0..<n { inverse[i * n + column] = x[i] }
    }
    return inverse
}
