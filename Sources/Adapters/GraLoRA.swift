internal import Autograd
package import Models
package import Platform
internal import Tensors

/// GraLoRA (Jung et al., arXiv:2505.20355): a weight cut into k × k blocks, each with a change of rank r/k of its own,
///
///     ΔW_jn = s · B_jnᵀ·A_njᵀ        s = α/(r + hybrid_r)
///
/// computed as two block-diagonal products with an exchange between them; `hybrid_r` adds an ordinary branch of that rank. For
/// linear layers and Conv1D.
package struct GraLoRA: AdapterMethod {
    package static let peftType = "GRALORA"
    package static let layerKinds = MatrixTarget.linears

    package static let defaults: JSONObject = [
        "alpha": .integer(64), "bias": .string("none"), "fan_in_fan_out": .bool(false), "gralora_dropout": .number(0), "gralora_k": .integer(2),
        "hybrid_r": .integer(0), "init_weights": .bool(true), "layers_pattern": .null, "layers_to_transform": .null, "modules_to_save": .null,
        "r": .integer(32), "target_modules": .null,
    ]

    private let (rank, hybrid, blocks): (Int, Int, Int)
    private let scaling: Double
    private let dropout: Float
    private let isIdentity: Bool

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        try configuration.checkBias()
        rank = try configuration.positive("r")
        hybrid = try configuration.integer("hybrid_r")
        guard hybrid >= 0, hybrid <= 1 << 20 else { throw PEFTError(.argument, "hybrid_r is \(hybrid); it can be from 0 to \(1 << 20)") }
        blocks = try configuration.positive("gralora_k")
        guard rank % blocks == 0 else { throw PEFTError(.argument, "r is \(rank) and gralora_k \(blocks), which must divide it") }
        scaling = try configuration.number("alpha") / Double(rank + hybrid)
        dropout = try configuration.probability("gralora_dropout")
        isIdentity = try configuration.flag("init_weights")
    }

    package mutating func prepare(for targets: [any Layer], _ configuration: inout AdapterConfiguration, _ model: Model) throws(PEFTError) {
        try configuration.matchLayout(of: targets) { model.engine.warn($0) }
    }

    package func module(for layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule {
        let target = try MatrixTarget(layer, of: GraLoRA.self)
        try AdapterConfiguration.checkRank(rank, layer)
        guard target.inputSize % blocks == 0, target.outputSize % blocks == 0 else {
            throw PEFTError(.argument, "gralora_k is \(blocks); '\(layer.name)' is \(target.outputSize) × \(target.inputSize), which it must divide")
        }
        return try GraLoRAModule(
            target, key: key, rank: rank, hybrid: hybrid, blocks: blocks, factor: scaling, dropout: dropout, isIdentity: isIdentity, model.engine)
    }
}

private final class GraLoRAModule: MatrixModule {
    let target: MatrixTarget
    /// f32 `[k, in/k, r]`, `[k, r, out/k]`
    private let (a, b): (Parameter, Parameter)
    /// f32 `[hybrid_r, in]`, `[out, hybrid_r]`
    private let general: (a: Parameter, b: Parameter)?
    private let factor: Double
    private let dropout: Float
    private let isIdentity: Bool
    /// What block j of the outputs sees of each block n of the inputs.
    private let exchange: ColumnMap

    init(
        _ target: MatrixTarget, key: String, rank: Int, hybrid: Int, blocks k: Int, factor: Double, dropout: Float, isIdentity: Bool, _ engine: Engine
    ) throws(PEFTError) {
        self.target = target
        (self.factor, self.dropout, self.isIdentity) = (factor, dropout, isIdentity)
        func parameter(_ name: String, _ shape: [Int]) throws(PEFTError) -> Parameter {
            Parameter(name: "\(key).gralora_\(name)", value: try .zeros(engine, shape, .f32, .adapters))
        }
        a = try parameter("A", [k, target.inputSize / k, rank])
        b = try parameter("B", [k, rank, target.outputSize / k])
        general = hybrid > 0 ? (try parameter("A_general.weight", [hybrid, target.inputSize]), try parameter("B_general.weight", [target.outputSize, hybrid])) : nil
        let share = rank / k
        exchange = try ColumnMap(
            engine, (0..<k * rank).map { place in place % rank / share * rank + place / rank * share + place % share }, of: k * rank)
    }

    var parameters: [Parameter] { [a, b] + (general.map { [$0.a, $0.b] } ?? []) }
    var scaling: Double? { factor }

    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        var random = random
        // Drawn as [r, in/k] and [out/k, r].
        a.value.fillUniform(fanIn: a.value.shape[1], &random)
        if !isIdentity { b.value.fillUniform(fanIn: b.value.shape[1], &random) }
        general?.a.value.fillKaiming(&random)
        if !isIdentity { general?.b.value.fillKaiming(&random) }
        return [:]
    }

    func add(to y: consuming Variable, input x: Variable, scale: Float, _ site: HookSite) throws(PEFTError) -> Variable {
        let (tape, scale) = (site.tape, Float(factor) * scale)
        let inner = try tape.blockLinear(try tape.dropout(x, dropout), tape.variable(a))
        let branch = try tape.blockLinear(try tape.gatherColumns(try tape.scaled(inner, by: scale), exchange), tape.variable(b))
        let sum = try tape.add(y, branch)
        guard let general else { return sum }
        return try tape.addLowRank(to: sum, input: x, a: tape.variable(general.a), b: tape.variable(general.b), scale: scale, dropout: dropout)
    }
}
