internal import Autograd
internal import Glibc
internal import Kernels
internal import Platform
internal import Tensors

/// LoRA-FA (arXiv:2308.03303) as `peft.optimizers.create_lorafa_optimizer`: A is fixed; B's gradient is replaced by the
/// one whose product with A comes closest to the gradient of the full weight,
///
///     g_B ← g_B · (A·Aᵀ + 10⁻⁸·I)⁺ / s²          s: the layer's scaling
///
/// then Adam with β = (0.9, 0.999), ε = 10⁻⁶ added to √v before its bias correction, and decay after the step. Other
/// trainable parameters get the same Adam without the projection.
final class LoRAFA: Optimizer {
    private var shared: OptimizedParameters
    private let mean: [Tensor]
    private let square: [Tensor]
    /// Per parameter, f32 `[r, r]`: (A·Aᵀ + δI)⁺/s²; A is fixed, so it is computed once. nil: not LoRA's B.
    private let projections: [Tensor?]
    /// For the projected gradient: as large as the largest B.
    private let projected: Tensor
    private let engine: Engine

    private static let (beta1, beta2, epsilon) = (0.9, 0.999, 1e-6)

    init(_ parameters: [Parameter], _ rates: [ParameterRates], _ trainee: Trainee, _ engine: Engine) throws(PEFTError) {
        shared = OptimizedParameters(parameters, rates)
        self.engine = engine
        mean = try shared.zeros(engine)
        square = try shared.zeros(engine)
        let byKey = Dictionary(trainee.entries.map { ($0.key, $0.parameter) }) { first, _ in first }
        var projections: [Tensor?] = []
        for parameter in parameters {
            let key = trainee.key(of: parameter)
            guard let range = key.firstRange(ofText: LoRAFA.b) ?? key.firstRange(ofText: LoRAFA.embeddingB) else {
                projections.append(nil)
                continue
            }
            let name = String(key[range])
            guard let a = byKey[key.replacingCharacters(range, with: name == LoRAFA.b ? LoRAFA.a : LoRAFA.embeddingA)] else {
                throw PEFTError(.internal, "\(key) has no A beside it")
            }
            projections.append(try LoRAFA.projection(a.value, scaling: trainee.scaling(key) ?? 1, engine))
        }
        self.projections = projections
        projected = try Tensor(engine, [parameters.map(\.value.count).max() ?? 0], .f32, .optimizer)
    }

    private static let (a, b, embeddingA, embeddingB) = (".lora_A.", ".lora_B.", ".lora_embedding_A", ".lora_embedding_B")

    /// A of LoRA, which does not move. (PEFT leaves A of embeddings out of its updates too.)
    static func isFixed(_ key: String) -> Bool { key.firstRange(ofText: a) != nil || key.firstRange(ofText: embeddingA) != nil }

    var parameters: [Parameter] { shared.parameters }
    var updateCounts: [Int] {
        get { shared.updateCounts }
        set { shared.updateCounts = newValue }
    }
    var moments: [(name: String, tensors: [Tensor])] { [("exp_avg", mean), ("exp_avg_sq", square)] }

    func update(_ gradients: GradientStore, gradientScale: Double, rateFactor: Double) {
        for (index, parameter, gradient) in shared.withGradients(gradients) {
            let rates = shared.rates[index]
            let (weight, m, v, step) = (parameter.value, mean[index], square[index], shared.updateCounts[index])
            let rate = rates.learningRate * rateFactor
            let direction = project(gradient, projections[index])
            // ε is added to √v, not to √(v/(1−β₂ᵗ)): the same as a larger ε in AdamW's form.
            let epsilon = LoRAFA.epsilon / (1 - pow(LoRAFA.beta2, Double(step))).squareRoot()
            engine.parallel(engine.shares(weight.count)) { part, parts in
                unsafe pk_adamw(
                    engine.level, weight.floatPointer, direction.floatPointer, m.floatPointer, v.floatPointer, weight.count, Float(gradientScale),
                    Float(rate), Float(LoRAFA.beta1), Float(LoRAFA.beta2), Float(epsilon), 0, Int64(step), part, parts)
            }
            if rates.weightDecay > 0 { engine.axpby(0, weight, Float(1 - rate * rates.weightDecay), into: weight) }
        }
    }

    /// `gradient` `[out, r]` times the projection, in `projected`; itself where there is none.
    private func project(_ gradient: Tensor, _ projection: Tensor?) -> Tensor {
        guard let projection, !engine.isPlanning else { return gradient }
        let rank = projection.columns
        unsafe gradient.withFloats { g in
            unsafe projection.withFloats { p in
                unsafe projected.withMutableFloats { out in
                    for start in stride(from: 0, to: g.count, by: rank) {
                        for column in 0..<rank {
                            var sum = 0.0
                            for k in 0..<rank { unsafe sum += Double(g[start + k]) * Double(p[k * rank + column]) }
                            unsafe out[start + column] = Float(sum)
                        }
                    }
                }
            }
        }
        return projected
    }

    /// (A·Aᵀ + 10⁻⁸·I)⁻¹/s² in double by Cholesky's factors; A `[r, n]`. The sum is positive definite for any A, so its
    /// pseudo-inverse is its inverse up to singular values that PEFT's f32 cannot tell from zero.
    /// - Throws: `.numeric` for an A with values that are not finite.
    private static func projection(_ a: Tensor, scaling: Double, _ engine: Engine) throws(PEFTError) -> Tensor {
        let (rank, columns) = (a.rows, a.columns)
        let result = try Tensor(engine, [rank, rank], .f32, .optimizer)
        guard !engine.isPlanning else { return result }
        let values = try a.floats(engine)
        var gram = [Double](repeating: 0, count: rank * rank)
        for i in 0..<rank {
            for j in 0...i {
                var sum = 0.0
                for k in 0..<columns { sum += Double(values[i * columns + k]) * Double(values[j * columns + k]) }
                gram[i * rank + j] = sum + (i == j ? 1e-8 : 0)
            }
        }
        guard let inverse = inverse(ofPositive: &gram, rank) else { throw PEFTError(.numeric, "lorafa: A·Aᵀ has values that are not finite") }
        unsafe result.withMutableFloats { out in
            for index in 0..<rank * rank { unsafe out[index] = Float(inverse[index] / (scaling * scaling)) }
        }
        return result
    }
}

extension String {
    func replacingCharacters(_ range: Range<String.Index>, with text: String) -> String { String(self[..<range.lowerBound] + text + self[range.upperBound...]) }
}
