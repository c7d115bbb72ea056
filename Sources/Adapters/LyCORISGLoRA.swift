internal import Autograd
package import Models
package import Platform
internal import Tensors

/// GLoRA as LyCORIS has it (PEFT's, `GLoRA.swift`, multiplies weights element by element): the input changes too,
///
///     y = W·(x + γ·A₁·A₂·x) + γ·B₁·B₂·x + b        γ = α/r    A₁ [in, r]  A₂ [r, in]  B₁ [out, r]  B₂ [r, in]
///
/// for linear layers.
package struct LyCORISGLoRA: AdapterMethod {
    package static let peftType = "LYCORIS_GLORA"
    package static let defaults: JSONObject = [
        "alpha": .integer(8), "alpha_pattern": .object([:]), "exclude_modules": .null, "init_weights": .bool(true), "layers_pattern": .null,
        "layers_to_transform": .null, "modules_to_save": .null, "r": .integer(8), "rank_pattern": .object([:]), "target_modules": .null,
    ]

    private let (rank, alpha): (Int, Double)
    private let (ranks, alphas): (PatternTable, PatternTable)
    private let isIdentity: Bool

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        (rank, alpha) = (try configuration.integer("r"), try configuration.number("alpha"))
        (ranks, alphas) = (try PatternTable(configuration, "rank_pattern"), try PatternTable(configuration, "alpha_pattern"))
        isIdentity = try configuration.flag("init_weights")
    }

    package func module(for layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule {
        let target = try MatrixTarget(layer, of: LyCORISGLoRA.self)
        let rank = try ranks.value(for: layer.name).map { Int(exactly: $0) ?? 0 } ?? self.rank
        try AdapterConfiguration.checkRank(rank, layer)
        let factor = (try alphas.value(for: layer.name) ?? alpha) / Double(rank)
        let (inputs, outputs) = (target.inputSize, target.outputSize)
        let factors = try [("a1", [inputs, rank]), ("a2", [rank, inputs]), ("b1", [outputs, rank]), ("b2", [rank, inputs])].map { (name, shape) throws(PEFTError) in
            try model.parameter("\(key).\(name).weight", shape)
        }
        return LyCORISGLoRAModule(target, factors, factor: factor, isIdentity: isIdentity)
    }
}

private final class LyCORISGLoRAModule: MatrixModule {
    let target: MatrixTarget
    /// A₁ A₂ B₁ B₂
    let parameters: [Parameter]
    private let factor: Double
    private let isIdentity: Bool

    init(_ target: MatrixTarget, _ parameters: [Parameter], factor: Double, isIdentity: Bool) {
        (self.target, self.parameters, self.factor, self.isIdentity) = (target, parameters, factor, isIdentity)
    }

    var scaling: Double? { factor }

    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        var random = random
        for (index, parameter) in parameters.enumerated() where index % 2 == 0 || !isIdentity { parameter.value.fillKaiming(&random) }
        return [:]
    }

    func input(_ x: Variable, _ site: HookSite) throws(PEFTError) -> Variable {
        try site.tape.addLowRank(to: x, input: x, a: site.tape.variable(parameters[1]), b: site.tape.variable(parameters[0]), scale: Float(factor))
    }

    func add(to y: consuming Variable, input x: Variable, scale: Float, _ site: HookSite) throws(PEFTError) -> Variable {
        try site.tape.addLowRank(to: y, input: x, a: site.tape.variable(parameters[3]), b: site.tape.variable(parameters[2]), scale: Float(factor) * scale)
    }
}
