internal import Autograd
package import Models
package import Platform
internal import Tensors

/// AdaLoRA (Zhang et al., arXiv:2303.10512): a change in the form of a singular value decomposition,
///
///     ΔW = s · B·diag(E)·A        s = α/(r + 10⁻⁵)
///
/// whose ranks are given to the layers that need them while it trains (`RankAllocator`), with A and B held orthogonal by a
/// term of the loss. It has LoRA's keys too; of those that mean nothing here some are errors, as in PEFT. For linear layers,
/// Conv1D and two-dimensional convolutions.
package struct AdaLoRA: AdapterMethod {
    package static let peftType = "ADALORA"
    package static let layerKinds = MatrixTarget.linears + ["Conv2d"]

    package static let defaults: JSONObject = {
        var defaults = LoRA.defaults
        let own: JSONObject = [
            "beta1": .number(0.85), "beta2": .number(0.85), "deltaT": .integer(1), "init_r": .integer(12), "orth_reg_weight": .number(0.5),
            "rank_pattern": .null, "target_r": .integer(8), "tfinal": .integer(0), "tinit": .integer(0), "total_step": .null,
        ]
        for (key, value) in own.pairs { defaults[key] = value }
        return defaults
    }()

    package static var defaultTargets: [String: JSONValue] { DefaultTargets.adalora }

    private let rank: Int
    private let alpha: Double
    private let dropout: Float
    private let isIdentity: Bool
    private let schedule: RankSchedule
    private let orthogonality: Float
    /// How many ranks a file has left to a layer.
    private let kept: [String: Int]

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        for key in ["use_dora", "loftq_config"] where configuration.isSet(key) {
            throw PEFTError(.argument, "ADALORA does not go together with \(key)")
        }
        try configuration.refuse(LoRA.missing + LoRAVariant.keys + ["target_parameters", "lora_bias", "layer_replication", "eva_config", "corda_config", "lora_ga_config"])
        try configuration.checkBias()
        try WeightTying.prepare(&configuration, model)
        rank = try configuration.positive("init_r")
        alpha = try configuration.number("lora_alpha")
        dropout = try configuration.probability("lora_dropout")
        isIdentity = configuration.isSet("init_lora_weights")
        if configuration.values["r"] != LoRA.defaults["r"] { model.engine.warn("r has no effect on ADALORA; the rank it begins with is init_r") }
        schedule = try RankSchedule(configuration)
        orthogonality = Float(try configuration.number("orth_reg_weight"))
        guard orthogonality >= 0 else { throw PEFTError(.argument, "orth_reg_weight is \(orthogonality); it must not be negative") }
        kept = try AdaLoRA.kept(configuration)
    }

    private static func kept(_ configuration: AdapterConfiguration) throws(PEFTError) -> [String: Int] {
        var kept: [String: Int] = [:]
        for (key, value) in (try configuration.values.object("rank_pattern") ?? JSONObject()).pairs {
            guard let list = value.arrayValue, list.allSatisfy({ $0.boolValue != nil }) else {
                throw PEFTError(.argument, "\"rank_pattern\": '\(key)' is \(value.text()); a list of true and false is expected")
            }
            kept[key] = list.count { $0.boolValue == true }
        }
        return kept
    }

    package mutating func prepare(for targets: [any Layer], _ configuration: inout AdapterConfiguration, _ model: Model) throws(PEFTError) {
        try configuration.matchLayout(of: targets) { model.engine.warn($0) }
    }

    package func module(for layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule {
        let target = try MatrixTarget(layer, of: AdaLoRA.self, inGroups: false)
        try AdapterConfiguration.checkRank(rank, layer)
        let rank = kept[layer.name + ".lora_E"] ?? self.rank
        let factor = (alpha > 0 ? alpha : Double(self.rank)) / (Double(self.rank) + 1e-5)
        return try AdaLoRAModule(target, key: key, rank: rank, factor: factor, dropout: dropout, isIdentity: isIdentity, model.engine)
    }

    package func companion(of modules: [any AdapterModule], _ model: Model) throws(PEFTError) -> (any AdapterCompanion)? {
        try RankAllocator(modules.compactMap { $0 as? AdaLoRAModule }, schedule, orthogonality: orthogonality, model.engine)
    }
}

final class AdaLoRAModule: MatrixModule {
    let target: MatrixTarget
    /// f32 `[r, in]`, `[r, 1]`, `[out, r]`
    let (a, e, b): (Parameter, Parameter, Parameter)
    /// Which ranks are left.
    let mask: RankMask
    private let factor: Double
    private let dropout: Float
    private let isIdentity: Bool

    init(_ target: MatrixTarget, key: String, rank: Int, factor: Double, dropout: Float, isIdentity: Bool, _ engine: Engine) throws(PEFTError) {
        self.target = target
        (self.factor, self.dropout, self.isIdentity) = (factor, dropout, isIdentity)
        a = Parameter(name: key + ".lora_A", value: try .zeros(engine, [rank, target.inputSize], .f32, .adapters))
        e = Parameter(name: key + ".lora_E", value: try .zeros(engine, [rank, 1], .f32, .adapters))
        b = Parameter(name: key + ".lora_B", value: try .zeros(engine, [target.outputSize, rank], .f32, .adapters))
        mask = try RankMask(rank, engine)
    }

    let isLowRank = true
    var parameters: [Parameter] { [a, e, b] }
    var scaling: Double? { factor }
    /// Without the ranks that were given up.
    var saved: [SavedTensor] { [SavedTensor(a, rows: mask), SavedTensor(e, rows: mask), SavedTensor(b, columns: mask)] }

    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        var random = random
        let deviation: Float = isIdentity ? 0.02 : 1
        a.value.fillNormal(deviation, &random)
        b.value.fillNormal(deviation, &random)
        if !isIdentity { e.value.fillNormal(1, &random) }
        return [:]
    }

    func add(to y: consuming Variable, input x: Variable, scale: Float, _ site: HookSite) throws(PEFTError) -> Variable {
        guard a.value.rows > 0 else { return y }
        let tape = site.tape
        let scaled = try tape.scaleRows(tape.variable(a), try tape.vector(e))
        return try tape.addLowRank(to: y, input: x, a: scaled, b: tape.variable(b), scale: Float(factor) * scale, dropout: dropout)
    }
}
