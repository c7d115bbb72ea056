internal import Autograd
internal import Models
internal import Platform
internal import Tensors
internal import Tokenizers

/// One adapter of a model: what it is at every layer, and what it saves. Its parts do not change once it is made; the values
/// of its parameters do, under the model's write lock.
final class Adapter: Sendable {
    /// In front of a module's name in every saved key.
    static let prefix = "base_model.model."

    let configuration: AdapterConfiguration
    let modules: [any AdapterModule]
    let companion: (any AdapterCompanion)?
    let method: any AdapterMethod
    /// The order its blocks run in, where that is not the model's.
    let replication: LayerReplication?
    /// By the base layers that they stand in for.
    let replacements: [Replacement]
    /// What is saved, in the order of the model.
    let saved: [SavedTensor]
    /// What it is made of while it trains: `saved`, but for what files have in another form (virtual tokens).
    let state: [SavedTensor]
    /// Learned rows that stand in front of something.
    let prompt: PromptEncoder?
    /// Those that a trainable adapter trains (a method may freeze some for good).
    private let trainable: [Parameter]

    /// Of the right shapes; the values are those of no adapter until `initialize` or a file gives them.
    /// - Throws: what is wrong with the configuration, or with it and this model.
    init(_ configuration: AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        var configuration = configuration
        var method = try configuration.method.init(&configuration, model, isNew: isNew)
        try SavedModules.addHeads(&configuration)
        replication = try LayerReplication(configuration, model)
        prompt = (method as? any PromptMethod)?.encoder
        let targets = configuration.method.layerKinds.isEmpty ? [] : try TargetMatching.targets(
            &configuration, among: replication?.layers(model) ?? model.layers, model)
        try method.prepare(for: targets, &configuration, model)
        var modules = try targets.map { (layer) throws(PEFTError) in
            try method.module(for: layer, key: Adapter.prefix + layer.name, model)
        }
        modules += try method.others(beside: modules, model)
        if replication != nil, modules.contains(where: \.changesBase) {
            throw PEFTError(
                .unsupported,
                "layer_replication together with an initialisation that changes the base weights, which copies share")
        }
        modules += try TokenRows.modules(configuration, modules.map(\.layer), model)
        self.modules = modules
        self.method = method
        companion = try method.companion(of: modules, model)
        replacements = try modules.flatMap(\.replacements) + SavedModules.replacements(configuration, targets: modules.map(\.layer), model)
        if let replication, let inside = replacements.first(where: { replication.run(of: $0.layer) != nil }) {
            throw PEFTError(
                .unsupported,
                "layer_replication: '\(inside.layer.name).\(inside.tensor)' cannot be trained in full, its copies share it"
            )
        }
        self.configuration = configuration
        let own = try replacements.map { SavedTensor($0.parameter, key: $0.key) } + SavedModules.copies(configuration, replacements)
        saved =
            modules.flatMap(\.saved) + method.shared + (prompt?.saved ?? []) + own
            + Adapter.savedEmbeddings(configuration, modules.map(\.layer), model)
        state = prompt.map { $0.parameters.map { SavedTensor($0) } + own } ?? saved
        trainable = state.compactMap(\.parameter).filter(\.isTrainable)
    }

    /// PEFT saves the base weights of embeddings and heads that `target_modules` names by these names.
    private static func savedEmbeddings(_ configuration: AdapterConfiguration, _ targets: [any Layer], _ model: Model)
        -> [SavedTensor]
    {
        let names = ["embed_tokens", "lm_head"]
        let isNamed =
            switch configuration.values["target_modules"] {
            case .array(let list): list.contains { names.contains($0.stringValue ?? "") }
            case .string: targets.contains { target in names.contains { target.name.isNamed($0) } }
            default: false
            }
        guard isNamed, !configuration.isSet("trainable_token_indices"), configuration.method != TrainableTokens.self else { return [] }
        let ends = [model.layers.first { $0 is Embedding }, model.network.head].compactMap { $0 as (any Layer)? }
        return ends.filter { end in targets.contains { $0.index == end.index } }.map { SavedTensor(base: $0, "weight") }
    }

    /// Fresh values.
    /// - Parameter tokenizer: of the base model.
    /// - Returns: what the base layers must be changed to with them.
    func initialize(seed: UInt64, _ tokenizer: Tokenizer?) throws(PEFTError) -> [BaseChange] {
        try prompt?.initialize(RandomStream(seed: seed, purpose: "prompt"), tokenizer)
        method.initializeShared(RandomStream(seed: seed, purpose: "shared"))
        return try initialize(modules, seed: seed)
    }

    /// Whatever a file may have of it.
    var known: [SavedTensor] { (prompt == nil ? saved : saved + state) + derived }

    /// What is beside PEFT's file.
    var derived: [SavedTensor] { modules.flatMap(\.derived) }

    /// Computes what modules take from the base weights, but for those whose tensors a file has.
    func derive(without keys: Set<String>) throws(PEFTError) {
        try Decompositions.session { () throws(PEFTError) in
            for module in modules where module.derived.isEmpty || !module.derived.allSatisfy({ keys.contains($0.key) }) {
                try module.derive()
            }
        }
    }

    /// The same where something that layers share was set.
    func deriveFromShared(set values: [String: Tensor]) throws(PEFTError) {
        guard method.shared.contains(where: { values[$0.key] != nil }) else { return }
        try Decompositions.session { () throws(PEFTError) in
            for module in modules where module.derivesFromShared { try module.derive() }
        }
    }

    /// What base layers must be changed to for an adapter whose own values come from a file.
    func takeFromBase() throws(PEFTError) -> [BaseChange] {
        try initialize(modules.filter(\.changesBase), seed: 0)
    }

    private func initialize(_ modules: [any AdapterModule], seed: UInt64) throws(PEFTError) -> [BaseChange] {
        try Decompositions.session { () throws(PEFTError) in
            var changes: [BaseChange] = []
            for module in modules {
                let tensors = try module.initialize(RandomStream(seed: seed, purpose: module.layer.name))
                changes += tensors.map { BaseChange(layer: module.layer, tensor: $0.key, value: $0.value) }
            }
            return changes
        }
    }

    /// The adapter with base weights of its own, where its file has others than the model: it was trained over those.
    func withBase(_ tensors: [(key: String, layer: any Layer, tensor: String, value: Tensor)], _ model: Model)
        throws(PEFTError) -> Adapter
    {
        var own: [Replacement] = []
        for item in tensors where !isReplaced(item.layer, item.tensor) {
            if try Adapter.isPresent(item.value, item.layer, item.tensor, model.engine) { continue }
            model.engine.info(
                "the adapter has '\(item.layer.name).\(item.tensor)' of its own, which differs from the model's")
            let parameter = Parameter(
                name: item.key, value: try item.value.converted(to: .f32, model.engine, .adapters), isTrainable: false)
            own.append(
                Replacement(layer: item.layer, tensor: item.tensor, parameter: parameter, key: item.key, reason: .base))
        }
        return own.isEmpty ? self : Adapter(self, own)
    }

    private func isReplaced(_ layer: any Layer, _ tensor: String) -> Bool { replacements.contains { $0.layer.index == layer.index && $0.tensor == tensor } }

    /// Whether the model has these very values (after decoding).
    static func isPresent(_ value: Tensor, _ layer: any Layer, _ name: String, _ engine: Engine) throws(PEFTError)
        -> Bool
    {
        guard let present = layer.tensor(name), present.shape == value.shape else { return false }
        let (a, b) = (
            try value.converted(to: .f32, engine, .scratch), try present.converted(to: .f32, engine, .scratch)
        )
        return unsafe a.withFloats { a in unsafe b.withFloats { b in unsafe a.elementsEqual(b) } }
    }

    private init(_ other: Adapter, _ own: [Replacement]) {
        configuration = other.configuration
        modules = other.modules
        companion = other.companion
        method = other.method
        replication = other.replication
        replacements = other.replacements + own
        let keys = Set(own.map(\.key))
        (prompt, state) = (other.prompt, other.state)
        saved = other.saved.filter { !keys.contains($0.key) } + own.map { SavedTensor($0.parameter) }
        trainable = other.trainable
    }

    // MARK: Acting

    /// Adds what stands in for the base layers' own tensors.
    /// - Parameter isMerged: the adapter is folded into the weights; only modules trained in full still act.
    /// - Throws: `.state` when another active adapter stands in for the same module.
    func addReplacements(to adaptation: inout Adaptation, isMerged: Bool) throws(PEFTError) {
        for replacement in replacements where !isMerged || replacement.reason == .savedModule {
            let index = replacement.layer.index
            guard
                adaptation.layers[index].replacements.updateValue(replacement.parameter, forKey: replacement.tensor)
                    == nil
            else {
                throw PEFTError(
                    .state,
                    "two active adapters have a '\(replacement.layer.name).\(replacement.tensor)' of their own; only one can act"
                )
            }
        }
    }

    /// Adds what it does at each layer, beside all replacements of all active adapters.
    /// - Throws: `.unsupported` where that cannot be beside what acts already.
    func addHooks(to adaptation: inout Adaptation, scale: Float) throws(PEFTError) {
        if let penalty = companion?.penalty { adaptation.penalties.append(penalty) }
        try method.act(on: &adaptation, scale: scale)
        if adaptation.runs == nil { adaptation.runs = replication?.runs(layerCount: adaptation.layers.count) }
        for tokens in modules.lazy.compactMap(\.invocation).prefix(1) where !adaptation.invocations.contains(tokens) { adaptation.invocations.append(tokens) }
        for module in modules {
            let index = module.layer.index
            let hook = module.hook(scale: scale, beside: adaptation.layers[index].replacements)
            if let run = replication?.run(of: module.layer) {
                adaptation.runs?[run].layers[index].hooks.append(hook)
            } else {
                adaptation.layers[index].hooks.append(hook)
            }
        }
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
        return state.compactMap { item in
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
