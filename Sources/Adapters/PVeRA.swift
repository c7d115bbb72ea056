internal import Autograd
package import Models
package import Platform
internal import Tensors

/// PVeRA (arXiv:2512.07703): VeRA whose inner values are drawn from normal distributions in training,
///
///     [μ, ln σ²] = λ_d ⊙ A·drop(x)    z = μ + σ·ε    y += λ_b ⊙ B·z        A [2r, in]   λ_d [2r]
///
/// At other times z = μ, unless `sample_at_inference`.
package struct PVeRA: AdapterMethod {
    package static let peftType = "PVERA"
    package static let defaults: JSONObject = [
        "bias": .string("none"), "d_initial": .number(0.1), "fan_in_fan_out": .bool(false), "generator_seed": .null,
        "init_weights": .bool(true), "layers_pattern": .null, "layers_to_transform": .null, "modules_to_save": .null,
        "projection_prng_key": .integer(0), "pvera_dropout": .number(0), "r": .integer(256),
        "sample_at_inference": .bool(false), "save_projection": .bool(true), "target_modules": .null,
    ]
    package static var defaultTargets: [String: JSONValue] {
        DefaultTargets.lora.with((["q_proj", "v_proj"], ["phi"]), (["query", "value"], ["dinov2"]))
    }

    private let rank: Int
    private let dropout: Float
    private let start: Float?
    private let samplesAlways: Bool
    private let seed: UInt64?
    private var projections: SharedProjections?

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        rank = try configuration.positive("r")
        dropout = try configuration.probability("pvera_dropout")
        start = try configuration.flag("init_weights") ? Float(try configuration.number("d_initial")) : nil
        samplesAlways = try configuration.flag("sample_at_inference")
        seed = configuration.isSet("generator_seed") ? try configuration.seed("generator_seed") : nil
        try configuration.checkBias()
    }

    package mutating func prepare(for targets: [any Layer], _ configuration: inout AdapterConfiguration, _ model: Model)
        throws(PEFTError)
    {
        try configuration.matchLayout(of: targets, { model.engine.warn($0) })
        let layers = try targets.map { (layer) throws(PEFTError) in try PVeRA.linear(layer) }
        projections = try SharedProjections("pvera", ranks: (2 * rank, rank), for: layers, configuration, model)
    }

    package var shared: [SavedTensor] { projections?.saved ?? [] }

    package func module(for layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule {
        guard let projections else { throw PEFTError(.internal, "PVERA: no projections") }
        return try PVeRALinear(
            PVeRA.linear(layer), key: key + ".pvera_lambda", projections, rank: rank, dropout: dropout, start: start,
            samplesAlways: samplesAlways, seed: seed, model)
    }
}

private final class PVeRALinear: VeRALinear, @unchecked Sendable {
    private let rank: Int
    private let samplesAlways: Bool
    /// Of the noise; nil: the computation's own stream.
    private let seed: UInt64?

    init(
        _ linear: Linear, key: String, _ projections: SharedProjections, rank: Int, dropout: Float, start: Float?,
        samplesAlways: Bool, seed: UInt64?, _ model: Model
    ) throws(PEFTError) {
        (self.rank, self.samplesAlways, self.seed) = (rank, samplesAlways, seed)
        try super.init(linear, key: key, ranks: (2 * rank, rank), projections, dropout: dropout, start: start, model)
    }

    override func add(to y: consuming Variable, input x: Variable, beside w: Tensor, scale: Float, _ tape: Tape)
        throws(PEFTError) -> Variable
    {
        try add(to: y, input: x, isSampled: tape.isTraining || samplesAlways, scale: scale, tape)
    }

    fileprivate func add(to y: consuming Variable, input x: Variable, isSampled: Bool, scale: Float, _ tape: Tape)
        throws(PEFTError) -> Variable
    {
        try add(to: y, input: x, scale: scale, tape) { [rank, seed] (inner, tape) throws(PEFTError) in
            guard isSampled else { return try tape.splitColumns(inner, [rank, rank])[0] }
            let shape = [inner.value.rows, rank]
            guard let seed else { return try tape.sampled(inner, try tape.normals(shape)) }
            var generator = TorchGenerator(seed: seed)
            return try tape.sampled(inner, try Tensor(tape.engine, generator.normal(inner.value.rows * rank), shape: shape))
        }
    }

    /// There is no noise in weights.
    override var folded: any LinearBranch { Mean(of: self) }

    private final class Mean: LinearBranch {
        private let module: PVeRALinear

        init(of module: PVeRALinear) { self.module = module }

        var linear: Linear { module.linear }
        var parameters: [Parameter] { module.parameters }

        func add(to y: consuming Variable, input x: Variable, beside w: Tensor, scale: Float, _ tape: Tape)
            throws(PEFTError) -> Variable
        {
            try module.add(to: y, input: x, isSampled: false, scale: scale, tape)
        }
    }
}
