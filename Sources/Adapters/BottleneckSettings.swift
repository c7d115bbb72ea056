internal import Autograd
internal import Models
internal import Platform

/// The `adapters` library's BnConfig.
struct BottleneckSettings: Sendable {
    /// The library's own.
    static let defaults: JSONObject = [
        "adapter_residual_before_ln": .bool(false), "cross_adapter": .bool(false), "dropout": .number(0), "factorized_phm_W": .bool(true), "factorized_phm_rule": .bool(false),
        "hypercomplex_nonlinearity": .string("glorot-uniform"), "init_weights": .string("bert"), "init_weights_seed": .null, "inv_adapter": .null,
        "inv_adapter_reduction_factor": .null, "is_parallel": .bool(false), "learn_phm": .bool(true), "leave_out": .array([]), "ln_after": .bool(false), "ln_before": .bool(false),
        "mh_adapter": .bool(false), "non_linearity": .string("relu"), "original_ln_after": .bool(true), "original_ln_before": .bool(false), "output_adapter": .bool(true),
        "phm_bias": .bool(true), "phm_c_init": .string("normal"), "phm_dim": .integer(4), "phm_init_range": .number(0.0001), "phm_layer": .bool(false), "phm_rank": .integer(1),
        "reduction_factor": .number(16), "residual_before_ln": .bool(true), "scaling": .number(1), "shared_W_phm": .bool(false), "shared_phm_rule": .bool(true),
        "stochastic_depth": .number(0), "use_gating": .bool(false),
    ]

    /// What differs from the defaults by the names the library has for whole configurations.
    private static let presets: [String: JSONObject] = [
        "double_seq_bn": ["mh_adapter": .bool(true), "non_linearity": .string("swish")],
        "seq_bn": ["original_ln_before": .bool(true)],
        "par_bn": ["init_weights": .string("mam_adapter"), "is_parallel": .bool(true), "reduction_factor": .number(2), "scaling": .number(4)],
        "seq_bn_inv": ["original_ln_before": .bool(true), "inv_adapter": .string("nice"), "inv_adapter_reduction_factor": .number(2)],
        "double_seq_bn_inv": [
            "mh_adapter": .bool(true), "non_linearity": .string("swish"), "inv_adapter": .string("nice"), "inv_adapter_reduction_factor": .number(2),
        ],
        "compacter": ["mh_adapter": .bool(true), "phm_layer": .bool(true), "reduction_factor": .number(32), "non_linearity": .string("gelu")],
        "compacter++": ["original_ln_before": .bool(true), "phm_layer": .bool(true), "reduction_factor": .number(32), "non_linearity": .string("gelu")],
        "adapter_plus": [
            "original_ln_after": .bool(false), "original_ln_before": .bool(true), "residual_before_ln": .bool(false), "stochastic_depth": .number(0.1),
            "init_weights": .string("houlsby"), "scaling": .string("channel"), "reduction_factor": .number(96), "non_linearity": .string("gelu"),
        ],
        "scaled_par_bn": ["init_weights": .string("mam_adapter"), "is_parallel": .bool(true), "reduction_factor": .number(2), "scaling": .string("learned")],
    ]
    private static let olderNames = [
        "houlsby": "double_seq_bn", "pfeiffer": "seq_bn", "parallel": "par_bn", "scaled_parallel": "scaled_par_bn", "houlsby+inv": "double_seq_bn_inv", "pfeiffer+inv": "seq_bn_inv",
    ]

    /// Where its residual is taken: before the block's own residual is added, behind that, or behind the norm too.
    enum ResidualPoint: Sendable { case beforeJoin, afterSum, afterJoin }
    enum Scaling: Sendable { case fixed(Float), learned, channels }

    let parts: Set<BlockPlace.Part>
    private let leftOut: Set<Int>
    private let factors: [Int: Double]
    private let factor: Double
    let activation: ActivationKind
    let normsFirst: Bool, normsLast: Bool
    let joinsBefore: Bool, joinsAfter: Bool
    let residual: ResidualPoint
    let residualBeforeNorm: Bool
    let isParallel: Bool
    let scaling: Scaling
    let hasGate: Bool
    let dropout: Float
    /// The library has none beside blocks.
    let dropPath: Float
    /// Compacter; nil: plain linear layers.
    let hypercomplex: HypercomplexSettings?
    /// At the two ends of the model; nil: none.
    let inverse: (isGlow: Bool, factor: Double)?
    let start: String
    let seed: Int?

    /// Reads the keys, filling in those that are null.
    init(_ configuration: inout AdapterConfiguration) throws(PEFTError) {
        var preset: JSONObject = [:]
        if let name = try configuration.values.text("config") {
            guard let found = BottleneckSettings.presets[BottleneckSettings.olderNames[name] ?? name] else {
                throw PEFTError(.argument, "config is \"\(name)\"; there are \(BottleneckSettings.presets.keys.sorted().joined(separator: ", "))")
            }
            preset = found
        }
        for (key, value) in BottleneckSettings.defaults.pairs where configuration.values[key]?.isNull ?? true { configuration.values[key] = preset[key] ?? value }
        configuration.values["config"] = .null
        var parts: Set<BlockPlace.Part> = []
        if try configuration.flag("mh_adapter") { parts.insert(.attention) }
        if try configuration.flag("output_adapter") { parts.insert(.output) }
        if try configuration.flag("cross_adapter") { parts.insert(.cross) }
        self.parts = parts
        guard let left = configuration.values["leave_out"]?.arrayValue else { throw PEFTError(.argument, "leave_out must be a list of layers") }
        leftOut = Set(try left.map { (item) throws(PEFTError) in
            guard let layer = item.intValue else { throw PEFTError(.argument, "leave_out has an entry that is no integer") }
            return layer
        })
        (factor, factors) = try BottleneckSettings.reduction(configuration.values["reduction_factor"] ?? .null)
        let function = try configuration.values.text("non_linearity") ?? ""
        guard let kind = ActivationKind(named: function) else {
            throw PEFTError(.unsupported, "non_linearity is \"\(function)\"; there are \(ActivationKind.names.joined(separator: ", "))")
        }
        activation = kind
        (normsFirst, normsLast) = (try configuration.flag("ln_before"), try configuration.flag("ln_after"))
        (joinsBefore, joinsAfter) = (try configuration.flag("original_ln_before"), try configuration.flag("original_ln_after"))
        residual =
            switch configuration.values["residual_before_ln"] {
            case .bool(true): .beforeJoin
            case .bool(false): .afterJoin
            case .string("post_add"): .afterSum
            case let value: throw PEFTError(.argument, "residual_before_ln is \(value?.text() ?? "null"); true, false and \"post_add\" are possible")
            }
        residualBeforeNorm = try configuration.flag("adapter_residual_before_ln")
        (isParallel, hasGate) = (try configuration.flag("is_parallel"), try configuration.flag("use_gating"))
        switch configuration.values["scaling"] {
        case .string("learned"): scaling = .learned
        case .string("channel"): scaling = .channels
        case let value:
            guard let number = value?.doubleValue, number.isFinite else { throw PEFTError(.argument, "scaling is \(value?.text() ?? "null"); a number, \"learned\" or \"channel\" is possible") }
            scaling = .fixed(Float(number))
        }
        dropout = try configuration.probability("dropout")
        let depth = try configuration.probability("stochastic_depth")
        dropPath = isParallel ? 0 : depth
        hypercomplex = try configuration.flag("phm_layer") ? try HypercomplexSettings(configuration) : nil
        if hypercomplex?.sharesWeights == true, !factors.isEmpty { throw PEFTError(.argument, "shared_W_phm needs one reduction_factor for all layers") }
        let inversion = configuration.isSet("inv_adapter") ? try configuration.choice("inv_adapter", ["nice", "glow"]) : nil
        let inverseFactor = inversion == nil ? 1 : try configuration.values.double("inv_adapter_reduction_factor") ?? 2
        guard inverseFactor.isFinite, inverseFactor > 0, inverseFactor <= 65536 else { throw PEFTError(.argument, "inv_adapter_reduction_factor is \(inverseFactor); a number above 0 is needed") }
        inverse = inversion.map { ($0 == "glow", inverseFactor) }
        start = try configuration.choice("init_weights", ["bert", "mam_adapter", "houlsby"])
        seed = try configuration.values.integer("init_weights_seed")
    }

    /// A number, or one for each layer with a "default" for the others.
    private static func reduction(_ value: JSONValue) throws(PEFTError) -> (default: Double, byLayer: [Int: Double]) {
        func checked(_ value: JSONValue?, _ key: String) throws(PEFTError) -> Double {
            guard let number = value?.doubleValue, number.isFinite, number > 0 else { throw PEFTError(.argument, "reduction_factor\(key) is \(value?.text() ?? "missing"); a number above 0 is needed") }
            return number
        }
        guard let object = value.objectValue else { return (try checked(value, ""), [:]) }
        var byLayer: [Int: Double] = [:]
        for (key, value) in object.pairs where key != "default" {
            guard let layer = Int(key) else { throw PEFTError(.argument, "reduction_factor has the key \"\(key)\"; numbers of layers and \"default\" are possible") }
            byLayer[layer] = try checked(value, " of layer \(layer)")
        }
        return (try checked(object["default"], "'s \"default\""), byLayer)
    }

    func stands(at place: BlockPlace) -> Bool { parts.contains(place.part) && !leftOut.contains(place.layer) }

    /// Values between down and up.
    func size(_ width: Int, at place: BlockPlace? = nil) throws(PEFTError) -> Int {
        let size = (Double(width) / (place.flatMap { factors[$0.layer] } ?? factor)).rounded(.down)
        guard size <= 1_048_576 else { throw PEFTError(.argument, "reduction_factor makes \(size) of \(width) values") }
        return max(Int(size), 1)
    }
}
