package import Adapters
package import Autograd
package import Models
package import Platform

/// What a trainer changes and what it runs: the parameters of one adapter (or of several active ones) and the adaptation
/// they act through.
package struct Trainee: Sendable {
    /// The adapter's name; names joined by "|" when there are several.
    package let name: String
    /// Everything the adapter saves: key and parameter, trainable or not. Keys are unique.
    package let entries: [(key: String, parameter: Parameter)]
    /// Asked for in every step, inside the read lock: adapters may be scaled, renamed or merged between two steps.
    package let adaptation: @Sendable () throws(PEFTError) -> Adaptation
    /// The same where each sample of a batch has an adapter of its own (nil: none).
    package let routing: @Sendable (_ samples: [String?]) throws(PEFTError) -> Routing
    /// The same for the rows of a batch, where it is not the same on all; nil: it is.
    package let rows: (@Sendable (_ count: Int) throws(PEFTError) -> Routing)?
    /// adapter_config.json.
    package let configuration: JSONObject
    /// LoRA's factor of the layer that a parameter key belongs to; nil where there is none.
    package let scaling: @Sendable (_ key: String) -> Double?
    /// Told of steps.
    package let companions: [any AdapterCompanion]

    package init(
        name: String, entries: [(key: String, parameter: Parameter)], adaptation: @escaping @Sendable () throws(PEFTError) -> Adaptation,
        routing: @escaping @Sendable ([String?]) throws(PEFTError) -> Routing = { (_) throws(PEFTError) in throw PEFTError(.unsupported, "adapters by name") },
        rows: (@Sendable (Int) throws(PEFTError) -> Routing)? = nil, configuration: JSONObject, scaling: @escaping @Sendable (String) -> Double? = { _ in nil }, companions: [any AdapterCompanion] = []
    ) {
        self.name = name
        self.entries = entries
        self.adaptation = adaptation
        self.routing = routing
        self.rows = rows
        self.configuration = configuration
        self.scaling = scaling
        self.companions = companions
    }

    /// Who acts on the samples of a batch.
    func routing(of batch: Batch) throws(PEFTError) -> Routing {
        if let samples = batch.adapters { return try routing(samples) }
        return if let rows { try rows(batch.rows) } else { .all(try adaptation()) }
    }

    /// Each once, also when it is saved under several keys.
    var trainableParameters: [Parameter] {
        var seen: Set<ObjectIdentifier> = []
        return entries.map(\.parameter).filter { $0.isTrainable && seen.insert(ObjectIdentifier($0)).inserted }
    }

    /// Makes LoRA's A untrainable for good, as PEFT's `create_lorafa_optimizer` does. The caller holds the write lock.
    func fixForLoRAFA() {
        for (key, parameter) in entries where LoRAFA.isFixed(key) { parameter.isTrainable = false }
    }

    func key(of parameter: Parameter) -> String { entries.first { $0.parameter === parameter }?.key ?? parameter.name }

    /// "base_model.model.model.norm.weight" stands in for a tensor of an nn.LayerNorm.
    func isLayerNorm(_ key: String, _ model: Model) -> Bool {
        let path = key.split(separator: ".").dropLast()
        for start in path.indices {
            if let layer = model.layer(named: path[start...].joined(separator: ".")) { return layer.kind == "LayerNorm" }
        }
        return false
    }
}
