internal import Autograd
package import Models
package import Platform
internal import Tensors

/// (IA)³ (Liu et al., arXiv:2205.05638): a vector that scales what a layer gives, or what a feed-forward layer sees,
///
///     y = l ⊙ (W·x + b)        y = W·(l ⊙ x) + b
///
/// for linear layers, Conv1D and convolutions (by channel).
package struct IA3: AdapterMethod {
    package static let peftType = "IA3"
    package static let layerKinds = MatrixTarget.linears + ["Conv2d", "Conv3d"]

    package static let defaults: JSONObject = [
        "exclude_modules": .null, "fan_in_fan_out": .bool(false), "feedforward_modules": .null, "init_ia3_weights": .bool(true),
        "modules_to_save": .null, "target_modules": .null,
    ]

    package static var defaultTargets: [String: JSONValue] { DefaultTargets.ia3 }

    private let isIdentity: Bool
    private var feedforward: Feedforward

    private enum Feedforward {
        /// Ends of names, without regard to dots, as in PEFT.
        case ends([String])
        case pattern(Pattern)

        func contains(_ name: String) throws(PEFTError) -> Bool {
            switch self {
            case .ends(let ends): ends.contains { name.hasSuffix($0) }
            case .pattern(let pattern): try pattern.matchesWhole(name)
            }
        }
    }

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        isIdentity = try configuration.flag("init_ia3_weights")
        feedforward = .ends([])
        try IA3.resolve(&configuration, model)
        switch configuration.values["feedforward_modules"] {
        case nil, .null: break
        case .string(let text): feedforward = .pattern(try Pattern.configured(text, "feedforward_modules"))
        default:
            let names = try configuration.values.strings("feedforward_modules") ?? []
            feedforward = .ends(names)
            guard let targets = configuration.values["target_modules"]?.arrayValue else { return }
            for name in names where !targets.contains(.string(name)) {
                throw PEFTError(.argument, "feedforward_modules names '\(name)', which target_modules does not; it must be a subset")
            }
        }
    }

    /// Null `feedforward_modules` are those of the model's family.
    private static func resolve(_ configuration: inout AdapterConfiguration, _ model: Model) throws(PEFTError) {
        let family = model.configuration["model_type"]?.stringValue ?? model.architecture
        guard configuration.values["feedforward_modules"]?.isNull ?? true, let names = DefaultTargets.ia3Feedforward[family] else { return }
        if configuration.values["target_modules"]?.isNull ?? true { configuration.values["feedforward_modules"] = names }
    }

    package mutating func prepare(for targets: [any Layer], _ configuration: inout AdapterConfiguration, _ model: Model)
        throws(PEFTError)
    {
        try configuration.matchLayout(of: targets) { model.engine.warn($0) }
    }

    package func module(for layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule {
        let target = try MatrixTarget(layer, of: IA3.self)
        return try IA3Module(target, key: key, isFeedforward: try feedforward.contains(layer.name), isIdentity: isIdentity, model.engine)
    }
}

final class IA3Module: MatrixModule {
    let target: MatrixTarget
    /// f32 `[out, 1]` or `[1, in]`; `[1, channels, 1…]` of a convolution.
    private let scale: Parameter
    let isFeedforward: Bool
    private let isIdentity: Bool
    /// Channels of a convolution's patches; nil where each column has a value of its own.
    private let channels: ColumnMap?

    fileprivate init(_ target: MatrixTarget, key: String, isFeedforward: Bool, isIdentity: Bool, _ engine: Engine) throws(PEFTError) {
        self.target = target
        self.isFeedforward = isFeedforward
        self.isIdentity = isIdentity
        let size = isFeedforward ? target.channels : target.outputSize
        let shape = target.kernel.isEmpty ? (isFeedforward ? [1, size] : [size, 1]) : [1, size] + target.kernel.map { _ in 1 }
        scale = Parameter(name: key + ".ia3_l", value: try .zeros(engine, shape, .f32, .adapters))
        channels =
            isFeedforward && target.taps > 1
            ? try ColumnMap(engine, (0..<target.inputSize).map { $0 / target.taps }, of: target.channels) : nil
    }

    let isElementwise = true
    var parameters: [Parameter] { [scale] }

    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        var random = random
        scale.value.fill { isIdentity ? 1 : random.normal() }
        return [:]
    }

    private func vector(_ tape: Tape) throws(PEFTError) -> Variable {
        guard let channels else { return try tape.vector(scale) }
        return try tape.gatherColumns(try tape.reshaped(tape.variable(scale), [1, target.channels]), channels)
    }

    func input(_ x: Variable, _ site: HookSite) throws(PEFTError) -> Variable {
        isFeedforward ? try site.tape.scaleColumns(x, scale: try vector(site.tape)) : x
    }

    func output(_ y: consuming Variable, _ site: HookSite) throws(PEFTError) -> Variable {
        isFeedforward ? y : try site.tape.scaleColumns(y, scale: try vector(site.tape))
    }
}
