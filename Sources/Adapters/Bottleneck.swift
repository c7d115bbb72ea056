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

    private let modules: [BottleneckModule]
    package var shared: [SavedTensor] { modules.flatMap { $0.parameters.map { SavedTensor($0) } } }

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        let places = model.network.joins
        guard let embedding = model.layers.first(where: { $0 is Embedding }) as? Embedding, !places.isEmpty else {
            throw PEFTError(.unsupported, "BOTTLENECK for a \(model.architecture) model; it is for decoders, BERT and its family, and T5")
        }
        let settings = try BottleneckSettings(&configuration)
        var modules: [BottleneckModule] = []
        for place in places where settings.stands(at: place) {
            modules.append(try BottleneckModule(place, width: embedding.dimension, settings, model.engine))
        }
        guard !modules.isEmpty else {
            throw PEFTError(.argument, "mh_adapter, output_adapter and cross_adapter are false, or leave_out names every layer: there is no place for an adapter")
        }
        self.modules = modules
    }

    package func initializeShared(_ random: RandomStream) {
        var random = random
        for module in modules { module.initialize(&random) }
    }

    package func module(for layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule {
        throw PEFTError(.unsupported, "BOTTLENECK adapts blocks, no layers")
    }

    package func act(on adaptation: inout Adaptation, scale: Float) throws(PEFTError) {
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
        let size = model.layers.lazy.compactMap { ($0 as? Embedding)?.dimension }.first ?? 0
        return [
            "config": .object(own), "config_id": .null, "hidden_size": .integer(Int64(size)), "model_class": model.configuration["architectures"]?.arrayValue?.first ?? .null,
            "model_name": configuration["base_model_name_or_path"] ?? .null, "model_type": .string(model.architecture), "name": .string(name), "version": .string("adapters.1.3.0"),
        ]
    }

    /// "…output.adapters.adapter_up.weight" with the adapter's name behind "adapters", as the library has it.
    static func named(_ key: String, _ name: String) -> String {
        var parts = key.split(separator: ".").map { String($0) }
        guard let place = parts.firstIndex(of: "adapters") else { return key }
        parts.insert(name, at: place + 1)
        return parts.joined(separator: ".")
    }

    package func read(_ tensors: [(name: String, tensor: Tensor)], _ engine: Engine) throws(PEFTError) -> [(name: String, tensor: Tensor)] {
        let keys = shared.map(\.key)
        return tensors.map { item in
            let name = Bottleneck.unnamed(item.name)
            if keys.contains(name) { return (name, item.tensor) }
            // A model with a head has the base model's name in front ("bert."), the base model alone has not; the library reads both in both.
            let same = keys.filter { name.hasSuffix("." + $0) || $0.hasSuffix("." + name) }
            return (same.count == 1 ? same[0] : item.name, item.tensor)
        }
    }

    /// Without the adapter's name, which may have dots: behind it stands a module of an adapter.
    private static func unnamed(_ key: String) -> String {
        var parts = key.split(separator: ".").map { String($0) }
        guard let place = parts.firstIndex(of: "adapters"),
            let end = parts[(place + 1)...].firstIndex(where: { ["gate", "scaling"].contains($0) || $0.hasPrefix("adapter_") })
        else { return key }
        parts.removeSubrange(place + 1..<end)
        return parts.joined(separator: ".")
    }
}
