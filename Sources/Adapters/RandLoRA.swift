internal import Autograd
package import Models
package import Platform
internal import Tensors

/// RandLoRA (Albert et al., arXiv:2502.00987): a change of full rank, from frozen random bases that all layers share,
///
///     ΔW = s·U_B·U_A    U_A[k·n + b, i] = λ[k, b]·A[k, i]·γ[b, i]    U_B[o, b·r + k] = B[o, b, k]    s = α/r
///
/// with m = min(in, out), n = ⌈m/r⌉ bases, A [r, m] and B [max, n, r]; ΔW = s·(U_B·U_A)ᵀ where in > out. The two orders of
/// (k, b) do not fit each other; it is what PEFT computes, and what files are trained with.
package struct RandLoRA: AdapterMethod {
    package static let peftType = "RANDLORA"
    package static let defaults: JSONObject = [
        "bias": .string("none"), "fan_in_fan_out": .bool(false), "init_weights": .bool(true), "layers_pattern": .null,
        "layers_to_transform": .null, "modules_to_save": .null, "projection_prng_key": .integer(0), "r": .integer(32),
        "randlora_alpha": .integer(640), "randlora_dropout": .number(0), "save_projection": .bool(true),
        "sparse": .bool(false), "target_modules": .null, "very_sparse": .bool(false),
    ]

    private let rank: Int
    private let scaling: Float
    private let dropout: Float
    private let isIdentity: Bool
    private let isSaved: Bool
    private var bases: (a: Parameter, b: Parameter)?

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        rank = try configuration.positive("r")
        scaling = Float(try configuration.number("randlora_alpha") / Double(rank))
        dropout = try configuration.probability("randlora_dropout")
        isIdentity = try configuration.flag("init_weights")
        isSaved = try configuration.flag("save_projection")
        try configuration.checkBias()
    }

    package mutating func prepare(for targets: [any Layer], _ configuration: inout AdapterConfiguration, _ model: Model)
        throws(PEFTError)
    {
        try configuration.matchLayout(of: targets, { model.engine.warn($0) })
        let layers = try targets.map { (layer) throws(PEFTError) in try RandLoRA.linear(layer) }
        // Of the largest outputs and the largest inputs, which need not be those of one layer.
        let (outputs, inputs) = (layers.map(\.outputSize).max() ?? 1, layers.map(\.inputSize).max() ?? 1)
        let (small, large) = (min(inputs, outputs), max(inputs, outputs))
        let count = (small + rank - 1) / rank
        let a = try model.parameter("base_model.randlora_A", [rank, 1, small], isTrainable: false)
        let b = try model.parameter("base_model.randlora_B", [large, count, rank], isTrainable: false)
        var generator = TorchGenerator(seed: try configuration.seed("projection_prng_key"))
        let (isSparse, isVerySparse) = (try configuration.flag("sparse"), try configuration.flag("very_sparse"))
        if isSparse || isVerySparse {
            let sparsity = isVerySparse ? Double(small).squareRoot() : 3
            a.value.set(RandLoRA.normalized(RandLoRA.ternary(generator.uniform(a.value.count), sparsity)))
            b.value.set(RandLoRA.normalized(RandLoRA.ternary(generator.uniform(b.value.count), sparsity)))
        } else {
            a.value.set(RandLoRA.normalized(RandLoRA.dense(&generator, rank * small, fanIn: small), isBF16: true))
            var values = [Float](repeating: 0, count: b.value.count)
            for base in 0..<count {
                let slice = RandLoRA.dense(&generator, large * rank, fanIn: rank)
                for row in 0..<large {
                    for column in 0..<rank { values[(row * count + base) * rank + column] = slice[row * rank + column] }
                }
            }
            b.value.set(RandLoRA.normalized(values, isBF16: true))
        }
        bases = (a, b)
    }

    /// Drawn in bf16, as PEFT does. The fan of `[r, 1, m]` and `[max, 1, r]` is the last dimension.
    private static func dense(_ generator: inout TorchGenerator, _ count: Int, fanIn: Int) -> [Float] {
        let bound = generator.kaimingBound(fanIn: fanIn, squaredSlope: 5)
        return generator.uniformBF16(count, from: -bound, to: bound)
    }

    private static func ternary(_ uniform: [Float], _ sparsity: Double) -> [Float] {
        let share = Float(1 / (2 * sparsity)), rest = Float(1 - 1 / (2 * sparsity))
        return uniform.map { $0 < share ? -1 : $0 > rest ? 1 : 0 }
    }

    /// Divided by the standard deviation of the sample.
    private static func normalized(_ values: [Float], isBF16: Bool = false) -> [Float] {
        let count = Double(max(values.count, 2))
        let mean = values.reduce(0.0) { $0 + Double($1) } / count
        let variance = values.reduce(0.0) { $0 + (Double($1) - mean) * (Double($1) - mean) } / (count - 1)
        guard variance > 0 else { return values }
        let deviation = Float(variance.squareRoot())
        if isBF16 { return values.map { ($0 / deviation.roundedToBF16).roundedToBF16 } }
        return values.map { $0 / deviation }
    }

    package var shared: [SavedTensor] {
        guard isSaved, let bases else { return [] }
        return [SavedTensor(bases.a), SavedTensor(bases.b)]
    }

    package func module(for layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule {
        guard let bases else { throw PEFTError(.internal, "RANDLORA: no bases") }
        return try RandLoRALinear(
            RandLoRA.linear(layer), key: key, rank: rank, bases, scaling: scaling, dropout: dropout,
            isIdentity: isIdentity, isSaved: isSaved, model)
    }
}

private final class RandLoRALinear: LinearBranch {
    let linear: Linear
    let lambda: Parameter
    let gamma: Parameter
    let views: [SavedTensor]
    private let bases: (a: Parameter, b: Parameter)
    private let factor: Float
    private let dropout: Float
    private let isIdentity: Bool

    init(
        _ linear: Linear, key: String, rank: Int, _ bases: (a: Parameter, b: Parameter), scaling: Float, dropout: Float,
        isIdentity: Bool, isSaved: Bool, _ model: Model
    ) throws(PEFTError) {
        (self.linear, self.bases, factor, self.dropout, self.isIdentity) = (linear, bases, scaling, dropout, isIdentity)
        let small = min(linear.inputSize, linear.outputSize)
        let count = (small + rank - 1) / rank
        lambda = try model.parameter(key + ".randlora_lambda", [rank, count])
        gamma = try model.parameter(key + ".randlora_gamma", [count, small])
        // PEFT writes the shared bases once more for each layer, and wants to find them there.
        views =
            isSaved
            ? [SavedTensor(bases.a, key: key + ".randlora_A"), SavedTensor(bases.b, key: key + ".randlora_B")] : []
    }

    var parameters: [Parameter] { [lambda, gamma] }

    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        var random = random
        let largest = isIdentity ? gamma.value.shape.max() ?? 1 : max(linear.inputSize, linear.outputSize)
        gamma.value.fill { 1 / Float(largest) }
        lambda.value.fill { isIdentity ? 0 : random.normal() }
        return [:]
    }

    func add(to y: consuming Variable, input x: Variable, beside w: Tensor, scale: Float, _ tape: Tape)
        throws(PEFTError) -> Variable
    {
        let (rank, count, small) = (lambda.value.rows, lambda.value.columns, gamma.value.columns)
        let a = try bases.a.value.reshaped([rank, bases.a.value.columns])
        let all = bases.b.value
        let flat = try all.reshaped([all.shape[0], all.count / max(all.shape[0], 1)])
        let b = try tape.leftColumns(of: try flat.rows(0..<max(linear.inputSize, linear.outputSize)), count * rank)
        let ua = try tape.remade([tape.variable(lambda), tape.variable(gamma)]) { (tape, w) throws(PEFTError) in
            try tape.scaledBases(try tape.leftColumns(of: a, small).value, w[0], w[1])
        }
        let isTall = linear.inputSize <= linear.outputSize
        let factors: [BranchFactor] = isTall ? [.matrix(ua), .matrix(b)] : [.transposed(b), .transposed(ua)]
        return try tape.addProduct(to: y, input: x, factors, scale: scale * factor, dropout: dropout)
    }
}
