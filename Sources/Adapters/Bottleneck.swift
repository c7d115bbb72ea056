internal import Autograd
package import Models
package import Platform
package import Tensors

/// Bottleneck adapters with the vocabulary of AdapterHub's `adapters` library: a small network behind each block's attention or
/// feed-forward (Houlsby et al., arXiv:1902.00751; Pfeiffer et al., arXiv:2005.00247), or beside it (He et al., arXiv:2110.04366),
///
///     up(f(down(x)))·s
///
/// with norms, residuals and gates where the configuration puts them (`BnConfig`).
package struct Bottleneck: AdapterMethod {
    package static let peftType = "BOTTLENECK"
    /// null: what `config` names, else the library's default.
    package static let defaults: JSONObject = {
        var keys: JSONObject = ["config": .null]
        for (key, _) in BottleneckSettings.defaults.pairs { keys[key] = .null }
        return keys
    }()
    package static let layerKinds: [String] = []
    package static let defaultTargets: [String: JSONValue] = [:]
    package static let isMergeable = false

    let modules: [BottleneckModule]
    private let hypercomplex: SharedHypercomplex?
    let inverse: InvertibleAdapter?
    package var shared: [SavedTensor] {
        ((inverse?.parameters ?? []) + modules.flatMap(\.parameters) + (hypercomplex?.parameters ?? [])).map { SavedTensor($0) }
    }

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        let places = model.network.joins
        guard let width = Bottleneck.width(of: model), let first = places.first else {
            throw PEFTError(.unsupported, "BOTTLENECK for a \(model.architecture) model; it is for decoders, BERT and its family, T5 and ViT")
        }
        let settings = try BottleneckSettings(&configuration)
        // What is no block's is kept beside the blocks, in the base model's own name.
        let root = first.module.split(separator: ".").first.map(String.init) ?? ""
        let prefix = ["encoder", "decoder", "layers", "h"].contains(root) ? "" : root + "."
        let engine = model.engine
        let sizes = try places.filter { settings.stands(at: $0) }.map { (place) throws(PEFTError) in try settings.size(width, at: place) }
        hypercomplex = try settings.hypercomplex.map { (own) throws(PEFTError) in
            try SharedHypercomplex(prefix + "shared_parameters.", width: width, sizes: sizes, settings, own, engine)
        }
        inverse = try settings.inverse.map { (own) throws(PEFTError) in
            guard model.layers.contains(where: { $0 is Embedding }), model.architecture != "whisper" else { throw PEFTError(.unsupported, "inv_adapter for a \(model.architecture) model, whose first states are no embeddings of tokens") }
            let place = model.network.readsSource ? "encoder." : prefix
            return try InvertibleAdapter(place + "invertible_adapters.", width: width, isGlow: own.isGlow, factor: own.factor, settings.activation, engine)
        }
        var modules: [BottleneckModule] = []
        for place in places where settings.stands(at: place) {
            modules.append(try BottleneckModule(place, width: width, settings, hypercomplex, engine))
        }
        guard !modules.isEmpty else {
            throw PEFTError(.argument, "mh_adapter, output_adapter and cross_adapter are false, or leave_out names every layer: there is no place for an adapter")
        }
        self.modules = modules
    }

    /// Of the states its blocks hand on.
    static func width(of model: Model) -> Int? {
        model.layers.lazy.compactMap { ($0 as? Embedding)?.dimension }.first ?? model.configuration["hidden_size"]?.intValue
    }

    package func initializeShared(_ random: RandomStream) {
        var random = random
        for module in modules { module.initialize(&random) }
        hypercomplex?.initialize(&random)
        inverse?.initialize(&random)
    }

    package func act(on adaptation: inout Adaptation, scale: Float) throws(PEFTError) {
        // As in the library, of several the first one's.
        if adaptation.coupling == nil { adaptation.coupling = inverse }
        if modules.contains(where: { $0.gate != nil }) { adaptation.readsWholeText = true }
        for module in modules { adaptation.joins[module.place, default: []].append(BottleneckHook(module, scale)) }
    }

    // MARK: The library's files

    /// The library's adapter_config.json as one of ours; nil: it is none.
    static func configuration(from json: JSONObject) -> JSONObject? {
        guard json["peft_type"] == nil, let own = json["config"]?.objectValue else { return nil }
        var configuration: JSONObject = ["peft_type": .string(peftType)]
        for (key, value) in own.pairs where key != "architecture" { configuration[key] = value }
        return configuration
    }

    /// The other way round.
    static func library(_ configuration: JSONObject, _ name: String, _ model: Model) -> JSONObject {
        var own: JSONObject = ["architecture": .null]
        for (key, _) in BottleneckSettings.defaults.pairs { own[key] = configuration[key] ?? .null }
        return [
            "config": .object(own), "config_id": .null, "hidden_size": .integer(Int64(width(of: model) ?? 0)), "model_class": model.configuration["architectures"]?.arrayValue?.first ?? .null,
            "model_name": configuration["base_model_name_or_path"] ?? .null, "model_type": .string(model.architecture), "name": .string(name), "version": .string("adapters.1.3.0"),
        ]
    }

    /// "…output.adapters.adapter_up.weight" with the adapter's name behind "adapters", as the library has it.
    static func named(_ key: String, _ name: String) -> String {
        var parts = key.split(separator: ".").map { String($0) }
        guard let place = parts.firstIndex(where: { folders.contains($0) }) else { return key }
        parts.insert(name, at: place + 1)
        return parts.joined(separator: ".")
    }

    package func read(_ tensors: [(name: String, tensor: Tensor)], _ engine: Engine) throws(PEFTError) -> [(name: String, tensor: Tensor)] {
        Bottleneck.read(tensors, shared.map(\.key))
    }

    static func read(_ tensors: [(name: String, tensor: Tensor)], _ keys: [String]) -> [(name: String, tensor: Tensor)] {
        tensors.map { item in
            let name = unnamed(item.name)
            if keys.contains(name) { return (name, item.tensor) }
            // A model with a head has the base model's name in front ("bert."), the base model alone has not; the library reads both in both.
            let same = keys.filter { name.hasSuffix("." + $0) || $0.hasSuffix("." + name) }
            return (same.count == 1 ? same[0] : item.name, item.tensor)
        }
    }

    /// What the library calls the modules of adapters and of fusions at a place.
    static let fusionFolder = "adapter_fusion_layer"
    private static let folders = ["adapters", fusionFolder, "invertible_adapters", "shared_parameters"]
    private static let modules = ["gate", "scaling", "query", "key", "value", "F", "G", "s1", "s2"]

    /// Without the adapter's name, which may have dots: behind it stands a module of an adapter.
    private static func unnamed(_ key: String) -> String {
        var parts = key.split(separator: ".").map { String($0) }
        guard let place = parts.firstIndex(where: { folders.contains($0) }),
            let end = parts[(place + 1)...].firstIndex(where: { part in Bottleneck.modules.contains(part) || ["adapter_", "phm_rule", "W_"].contains { part.hasPrefix($0) } })
        else { return key }
        parts.removeSubrange(place + 1..<end)
        return parts.joined(separator: ".")
    }
}
