internal import Autograd
internal import Models
internal import Platform
internal import Tensors

/// One adapter of a model: what it is at every layer, and what it saves. Its parts do not change once it is made; the values
/// of its parameters do, under the model's write lock.
final class Adapter: Sendable {
    /// In front of a module's name in every saved key.
    static let prefix = "base_model.model."

    let configuration: AdapterConfiguration
    let modules: [any AdapterModule]
    /// By the base layers that they stand in for.
    let replacements: [Replacement]
    /// What is saved, in the order of the model.
    let saved: [SavedTensor]
    /// Those that a trainable adapter trains (a method may freeze some for good).
    private let trainable: [Parameter]

    /// Of the right shapes; the values are those of no adapter until `initialize` or a file gives them.
    /// - Throws: what is wrong with the configuration, or with it and this model.
    init(_ configuration: AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        var configuration = configuration
        let warn = { (message: String) in model.engine.warn(message) }
        var method = try configuration.method.init(&configuration, isNew: isNew, warn: warn)
        try SavedModules.addHeads(&configuration)
        let targets = try TargetMatching.targets(&configuration, model)
        try method.prepare(for: targets, &configuration, warn: warn)
        modules = try targets.map { (layer) throws(PEFTError) in try method.module(for: layer, key: Adapter.prefix + layer.name, model) }
        replacements = try SavedModules.replacements(configuration, targets: targets, model)
        self.configuration = configuration
        saved = modules.flatMap { $0.parameters.map { SavedTensor($0) } } + replacements.map { SavedTensor($0.parameter) }
            + Adapter.savedEmbeddings(configuration, targets, model)
        trainable = saved.compactMap(\.parameter).filter(\.isTrainable)
    }

    /// PEFT saves the base weights of embeddings and heads that `target_modules` names by these names.
    private static func savedEmbeddings(_ configuration: AdapterConfiguration, _ targets: [any Layer], _ model: Model) -> [SavedTensor] {
        let names = ["embed_tokens", "lm_head"]
        let isNamed = switch configuration.values["target_modules"] {
        case .array(let list): list.contains { names.contains($0.stringValue ?? "") }
        case .string: targets.contains { target in names.contains { target.name.isNamed($0) } }
        default: false
        }
        guard isNamed, !configuration.isSet("trainable_token_indices") else { return [] }
        let ends = [model.layers.first { $0 is Embedding }, model.network.head].compactMap { $0 as (any Layer)? }
        return ends.filter { end in targets.contains { $0.index == end.index } }.map { SavedTensor(base: $0, "weight") }
    }

    /// Fresh values.
    /// - Returns: what the base layers must be changed to with them.
    func initialize(seed: UInt64) throws(PEFTError) -> [BaseChange] {
        var changes: [BaseChange] = []
        for module in modules {
            let tensors = try module.initialize(RandomStream(seed: seed, purpose: module.layer.name))
            changes += tensors.map { BaseChange(layer: module.layer, tensor: $0.key, value: $0.value) }
        }
        return changes
    }

    // MARK: Acting

    /// Adds what the adapter does.
    /// - Parameter isMerged: it is folded into the weights; only modules trained in full still act.
    /// - Throws: `.state` when another active adapter stands in for the same module.
    func contribute(to adaptation: inout Adaptation, scale: Float, isMerged: Bool) throws(PEFTError) {
        for replacement in replacements where !isMerged || replacement.reason == .savedModule {
            let index = replacement.layer.index
            guard adaptation.layers[index].replacements.updateValue(replacement.parameter, forKey: replacement.tensor) == nil else {
                throw PEFTError(.state, "two active adapters have a '\(replacement.layer.name).\(replacement.tensor)' of their own; only one can act")
            }
        }
        guard !isMerged else { return }
        for module in modules { adaptation.layers[module.layer.index].hooks.append(module.hook(scale: scale)) }
    }

    // MARK: Facts

    /// The caller holds the write lock.
    func setTrainable(_ isTrainable: Bool) {
        for parameter in trainable { parameter.isTrainable = isTrainable }
    }

    var isTrainable: Bool { trainable.contains(where: \.isTrainable) }

    /// Each once, also when it is saved under two keys.
    var parameters: [(key: String, parameter: Parameter)] {
        var seen: Set<ObjectIdentifier> = []
        return saved.compactMap { item in
            guard let parameter = item.parameter, seen.insert(ObjectIdentifier(parameter)).inserted else { return nil }
            return (item.key, parameter)
        }
    }

    /// Values, all parameters together.
    var parameterCount: Int { parameters.reduce(0) { $0 + $1.parameter.value.count } }

    var trainsBiases: Bool { replacements.contains { $0.reason == .bias } }

    /// LoRA's factor of the layer that a parameter belongs to.
    func scaling(of parameter: Parameter) -> Double? {
        modules.first { module in module.parameters.contains { $0 === parameter } }?.scaling
    }
}

/// A new tensor for a base layer.
struct BaseChange: Sendable {
    let layer: any Layer
    let tensor: String
    let value: Tensor
}
