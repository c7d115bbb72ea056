internal import Autograd
package import Models
package import Platform
package import Tensors

/// LoRA (Hu et al., arXiv:2106.09685): a branch of low rank beside a frozen layer,
///
///     y = W·x + b + s·B·(A·drop(x))        A [r, in]   B [out, r]   s = α/r, with rsLoRA α/√r
///
/// for linear layers, Conv1D and convolutions (`LinearLoRA`), embeddings (`EmbeddingLoRA`), and the matrices of experts (`ExpertLoRA`).
package struct LoRA: AdapterMethod {
    package static let peftType = "LORA"
    package static let layerKinds = MatrixTarget.linears + ["Embedding"] + MatrixTarget.convolutions + [MatrixTarget.attention]

    package static let defaults: JSONObject = [
        "alora_invocation_tokens": .null, "alpha_pattern": .object([:]), "arrow_config": .null, "bias": .string("none"),
        "corda_config": .null, "dylora_block_size": .null,
        "ensure_weight_tying": .bool(false), "eva_config": .null, "exclude_modules": .null,
        "fan_in_fan_out": .bool(false), "init_lora_weights": .bool(true),
        "kasa_config": .null, "layer_replication": .null, "layers_pattern": .null, "layers_to_transform": .null,
        "loftq_config": .object([:]),
        "lora_alpha": .integer(8), "lora_bias": .bool(false), "lora_dropout": .number(0), "lora_ga_config": .null,
        "megatron_config": .null,
        "megatron_core": .string("megatron.core"), "modules_to_save": .null, "monteclora_config": .null,
        "qalora_group_size": .integer(16), "r": .integer(8),
        "rank_pattern": .object([:]), "target_modules": .null, "target_parameters": .null,
        "trainable_token_indices": .null, "use_bdlora": .null,
        "use_dora": .bool(false), "use_gating": .bool(false), "use_qalora": .bool(false), "use_rslora": .bool(false), "velora_config": .null,
    ]

    private let rank: Int
    private let alpha: Double
    private let ranks: PatternTable
    private let alphas: PatternTable
    let isRankStabilized: Bool
    private let settings: LoRASettings
    let variant: LoRAVariant?
    private let targetParameters: TargetParameters
    private let mixtures: [Experts]

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        try configuration.refuse(LoRA.missing)
        mixtures = model.layers.compactMap { $0 as? Experts }
        try MixtureTargets.convert(&configuration, mixtures, model)
        rank = try configuration.integer("r")
        alpha = try configuration.number("lora_alpha")
        ranks = try PatternTable(configuration, "rank_pattern")
        alphas = try PatternTable(configuration, "alpha_pattern")
        isRankStabilized = try configuration.flag("use_rslora")
        settings = try LoRASettings(configuration, isNew: isNew)
        variant = try LoRAVariant.chosen(configuration, isNew: isNew)
        targetParameters = try TargetParameters(configuration, isNew: isNew) { model.engine.warn($0) }
        try configuration.checkBias()
        try WeightTying.prepare(&configuration, model)
    }

    package func read(_ tensors: [(name: String, tensor: Tensor)], _ engine: Engine) throws(PEFTError) -> [(name: String, tensor: Tensor)] {
        mixtures.isEmpty ? tensors : try MixtureTargets.stacked(tensors, mixtures, engine)
    }

    /// Options that this version does not have yet.
    static let missing = ["megatron_config"]

    package mutating func prepare(for targets: [any Layer], _ configuration: inout AdapterConfiguration, _ model: Model)
        throws(PEFTError)
    {
        let warn = { (message: String) in model.engine.warn(message) }
        let names = targets.map(\.name) + targetParameters.matches(model).map(\.name)
        try ranks.check(names, warn: warn)
        try alphas.check(names, warn: warn)
        try configuration.matchLayout(of: targets, warn)
    }

    package func module(for layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule {
        let (rank, scaling) = try strength(layer, layer.name)
        if variant != nil, !(layer is Linear) {
            throw PEFTError(.argument, "'\(layer.name)' is \(layer.kind); variants of LoRA are for Linear")
        }
        if let embedding = layer as? Embedding {
            if settings.hasBias {
                throw PEFTError(.argument, "lora_bias is not possible for an embedding, '\(layer.name)'")
            }
            return try EmbeddingLoRA(embedding, key: key, rank: rank, scaling: scaling, settings, model)
        }
        let target = try MatrixTarget(layer, of: LoRA.self)
        if layer.kind == MatrixTarget.attention, variant != nil || settings.hasMagnitude || settings.hasBias || settings.dropout > 0 {
            throw PEFTError(.argument, "'\(layer.name)' is \(layer.kind), for which there is plain LoRA without dropout, biases and variants")
        }
        if let variant { return try variant.module(target.linear, key: key, rank: rank, scaling: scaling, settings, model) }
        if settings.hasBias, target.linear.bias == nil {
            model.engine.warn("lora_bias: '\(layer.name)' has no bias, so this adapter cannot be merged")
        }
        if layer is Convolution { try settings.check(target) }
        return try LinearLoRA(target, key: key, rank: rank, scaling: scaling, settings, model)
    }

    package func calibrate(_ modules: [any AdapterModule], by calibration: (any Calibration)?, seed: UInt64, _ configuration: JSONObject, _ model: Model)
        throws(PEFTError) -> CalibratedStart?
    {
        let name = configuration["init_lora_weights"]?.stringValue ?? ""
        guard settings.start.isCalibrated else {
            guard calibration == nil else {
                throw PEFTError(.argument, "calibration batches were given, but only init_lora_weights 'lora_ga', 'corda' and 'eva' are computed from data")
            }
            return nil
        }
        guard let calibration, calibration.batchCount > 0 else {
            throw PEFTError(.argument, "init_lora_weights '\(name)' is computed from data: calibration batches are needed")
        }
        let linears = modules.compactMap { $0 as? LinearLoRA }
        guard linears.count == modules.count else {
            throw PEFTError(.unsupported, "init_lora_weights '\(name)' is for linear layers alone")
        }
        return try Decompositions.session { () throws(PEFTError) in
            switch settings.start {
            case .gradient(let start):
                try calibration.eachWeightGradient(linears.map(\.linear), model) { (index, gradient) throws(PEFTError) in
                    try linears[index].begin(along: gradient, start, RandomStream(seed: seed, purpose: linears[index].linear.name))
                }
            case .covariance(let start):
                try calibration.eachCovariance(linears.map(\.linear), model) { (index, covariance) throws(PEFTError) in
                    try linears[index].begin(along: covariance, start)
                }
            case .variance(let start): return try componentStart(linears, by: calibration, start, configuration, model)
            default: break
            }
            return nil
        }
    }

    /// Rank and factor of the branch at a module or parameter of that name.
    private func strength(_ layer: any Layer, _ name: String) throws(PEFTError) -> (rank: Int, scaling: Double) {
        let rank = try ranks.value(for: name).map { Int(exactly: $0) ?? 0 } ?? self.rank
        try AdapterConfiguration.checkRank(rank, layer)
        let alpha = try alphas.value(for: name) ?? self.alpha
        return (rank, isRankStabilized ? alpha / Double(rank).squareRoot() : alpha / Double(rank))
    }

    package func act(on adaptation: inout Adaptation, scale: Float) throws(PEFTError) {
        if case .gated? = variant { adaptation.readsWholeText = true }
    }

    package func others(beside modules: [any AdapterModule], _ model: Model) throws(PEFTError) -> [any AdapterModule] {
        let parameters = try targetParameters.checked(model, beside: modules.map(\.layer)).map { (match) throws(PEFTError) in
            try module(for: match, model)
        }
        let projections = try modules.filter { $0.layer.kind == MatrixTarget.attention }.map { (module) throws(PEFTError) in try outputProjection(of: module.layer, model) }
        guard settings.tiesHead else { return parameters + projections }
        return parameters + projections + modules.compactMap { $0 as? EmbeddingLoRA }.flatMap { twin in
            WeightTying.heads(of: twin.embedding, model).map { TiedHeadLoRA($0, twin) }
        }
    }
}

extension LoRA {
    package func companion(of modules: [any AdapterModule], _ model: Model) throws(PEFTError) -> (any AdapterCompanion)? {
        let forms = modules.compactMap { ($0 as? VariantLoRA)?.form }
        let directions = forms.compactMap { if case .compressed(let direction) = $0 { direction } else { nil } }
        let samplers = forms.compactMap { if case .sampled(let sampler) = $0 { sampler } else { nil } }
        if !directions.isEmpty { return VeLoRACompanion(directions) }
        return samplers.isEmpty ? nil : MonteCarloPenalty(samplers)
    }

    /// PEFT adds its change twice, and adapters are trained with that.
    private func outputProjection(of attention: any Layer, _ model: Model) throws(PEFTError) -> any AdapterModule {
        guard let layer = model.layer(named: attention.name + ".out_proj") else { throw PEFTError(.unsupported, "'\(attention.name)' has no out_proj") }
        let (rank, scaling) = try strength(layer, attention.name)
        let key = "\(Adapter.prefix)\(attention.name).base_layer.out_proj"
        return try LinearLoRA(try MatrixTarget(layer, of: LoRA.self), key: key, rank: rank, scaling: 2 * scaling, settings, model)
    }

    private func module(for match: TargetParameters.Match, _ model: Model) throws(PEFTError) -> any AdapterModule {
        guard [.standard, .gaussian, .random].contains(settings.start) else {
            throw PEFTError(.argument, "'\(match.name)' is a parameter; init_lora_weights can be true, false or 'gaussian' for it")
        }
        let (rank, scaling) = try strength(match.layer, match.name)
        if let experts = match.layer as? Experts, let stack = experts.stack(match.tensor) {
            return try ExpertLoRA(experts, stack, key: match.key, rank: rank, scaling: scaling, settings.start, model)
        }
        guard let linear = match.layer as? Linear, ["Linear", "TopKRouter"].contains(linear.kind), match.tensor == "weight" else {
            throw PEFTError(.unsupported, "'\(match.name)' is a parameter of a \(match.layer.kind); target_parameters adapts the stacks of experts and the weights of linear layers and routers")
        }
        var settings = settings
        settings.dropout = 0  // a file's: see TargetParameters
        return try LinearLoRA(MatrixTarget(linear), key: match.key, rank: rank, scaling: scaling, settings, model)
    }
}

/// What is the same for all layers of a LoRA adapter.
struct LoRASettings: Sendable {
    var dropout: Float
    /// B has a bias of its own.
    let hasBias: Bool
    /// DoRA.
    let hasMagnitude: Bool
    let start: LoRAStart
    /// `ensure_weight_tying`
    let tiesHead: Bool

    init(_ configuration: AdapterConfiguration, isNew: Bool) throws(PEFTError) {
        dropout = try configuration.probability("lora_dropout")
        hasBias = try configuration.flag("lora_bias")
        hasMagnitude = try configuration.flag("use_dora")
        start = try LoRAStart(configuration, isNew: isNew)
        tiesHead = try configuration.flag("ensure_weight_tying")
        if hasBias, hasMagnitude { throw PEFTError(.argument, "lora_bias and use_dora do not go together") }
        if hasBias, start != .standard, start != .random {
            throw PEFTError(
                .argument,
                "lora_bias goes with init_lora_weights true or false, not \(configuration.values["init_lora_weights"]?.text() ?? "")"
            )
        }
        if hasMagnitude, start == .mica {
            throw PEFTError(.argument, "use_dora and init_lora_weights 'mica' do not go together")
        }
    }
    /// - Throws: for what there is not for a convolution.
    func check(_ target: MatrixTarget) throws(PEFTError) {
        guard [.standard, .gaussian, .random].contains(start) else {
            throw PEFTError(.argument, "'\(target.name)' is \(target.layer.kind); init_lora_weights can be true, false or 'gaussian' for it")
        }
        if hasMagnitude, target.groups > 1 {
            throw PEFTError(.unsupported, "'\(target.name)' has \(target.groups) groups; use_dora is not possible for it")
        }
    }
}
