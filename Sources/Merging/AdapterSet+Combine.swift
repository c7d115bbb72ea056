package import Adapters
internal import Checkpoints
internal import Models
package import Platform
internal import Tensors

// Adapters of a model become one: LoRA from LoRAs by PEFT's formulas, LoRA from whatever methods by their exact changes of the
// weights, (IA)³ from (IA)³.
extension AdapterSet {
    /// A new adapter, not active, not trained, of adapters of this model.
    /// - Returns: as `peft_adapter_combine` reports it.
    /// - Throws: `.notFound`, `.argument`, `.mismatch`, `.unsupported`, `.numeric`, `.cancelled`; nothing has changed then.
    package func combine(
        _ adapters: [(name: String, weight: Double)], into newName: String, _ options: JSONObject, progress: MergeProgress? = nil
    ) throws(PEFTError) -> JSONObject {
        try checkIsFree(newName)
        let (files, report) = try combined(adapters, options, progress: progress)
        try load(newName, files, trainable: false)
        return report
    }

    /// The same without adding it.
    func combined(_ adapters: [(name: String, weight: Double)], _ options: JSONObject, progress: MergeProgress?) throws(PEFTError) -> (
        AdapterFiles, JSONObject
    ) {
        var names: Set<String> = []
        for (name, _) in adapters where !names.insert(name).inserted { throw PEFTError(.argument, "'\(name)' is named twice") }
        return try model.lock.read { () throws(PEFTError) in
            let parts = try adapters.map { (item) throws(PEFTError) in try contribution(of: item.name) }
            if let first = parts.first, parts.allSatisfy({ $0.configuration["peft_type"] == .string("IA3") }),
                options.pairs.allSatisfy({ $0.value.isNull })
            {
                return try summed(parts, adapters.map(\.weight), first.configuration)
            }
            var combination = try Combination(options, count: adapters.count)
            // As PEFT converts it: exactly, at its own rank.
            if parts.count == 1, parts[0].isLoRAInDisguise, combination.name == "svd" { combination = try Combination(["combination_type": .string("cat")], count: 1) }
            let ranks = parts.map { LoRAFile.rank(of: $0.configuration) }
            let source = try ModelChanges(parts, adapters.map(\.weight), combination, model)
            let run = try MergeRun(source, combination, rank: try combination.commonRank(ranks), engine, progress)
            let others = try SavedTogether(try parts.map { (part) throws(PEFTError) in (part.name, try part.savedModules()) })
            let file = LoRAFile(
                run.modules, try settings(parts.map(\.configuration), combination), targets: targets(naming: run.modules.map(\.name)), others: others.tensors)
            return (try file.files("the combination", engine), run.report)
        }
    }

    /// What the new configuration takes over from the first.
    private func settings(_ configurations: [JSONObject], _ combination: Combination) throws(PEFTError) -> JSONObject {
        let settings = try Combination.settings(configurations, combination)
        if settings["use_rslora"] == .bool(true) {
            engine.warn("use_rslora is kept, as in PEFT: the combination acts √r times as strongly as its adapters together")
        }
        return settings
    }

    /// (IA)³: l = Σ wᵢ·lᵢ, over the adapters that have the layer.
    private func summed(_ parts: [Contribution], _ weights: [Double], _ first: JSONObject) throws(PEFTError) -> (AdapterFiles, JSONObject) {
        let others = try SavedTogether(try parts.map { (part) throws(PEFTError) in (part.name, try part.savedModules()) })
        let kept = Set(others.tensors.map(\.name))
        var sums: [String: Tensor] = [:]
        var order: [String] = []
        for (part, weight) in zip(parts, weights) {
            for (key, value) in try part.values() where !kept.contains(key) {
                if let sum = sums[key] {
                    guard sum.shape == value.shape else {
                        throw PEFTError(.mismatch, "'\(key)' is \(sum.shape) in one adapter and \(value.shape) in '\(part.name)'")
                    }
                    engine.axpby(Float(weight), value, 1, into: sum)
                } else {
                    engine.axpby(0, value, Float(weight), into: value)
                    sums[key] = value
                    order.append(key)
                }
            }
        }
        var configuration = first
        for key in ["target_modules", "feedforward_modules", "modules_to_save"] {
            configuration[key] = try Combination.union(parts.map { $0.configuration[key] ?? .null }, key)
        }
        let excluded = parts.map { $0.configuration["exclude_modules"] ?? .null }
        if excluded.contains(where: { $0 != excluded.first }) {
            // What one leaves out another has: the layers that there are, by name; those of feedforward_modules must be among the entries.
            let entries = configuration["feedforward_modules"]?.arrayValue?.compactMap(\.stringValue) ?? []
            let names = Set(parts.flatMap { $0.layers.map(\.name) }).sorted()
            let isFeedforward = { (name: String) in entries.contains { name == $0 || name.hasSuffix("." + $0) } }
            let feedforward = targets(naming: names.filter(isFeedforward)).map { JSONValue.string($0) }
            configuration["exclude_modules"] = .null
            configuration["target_modules"] = .array(targets(naming: names.filter { !isFeedforward($0) }).map { .string($0) } + feedforward)
            if !entries.isEmpty { configuration["feedforward_modules"] = .array(feedforward) }
        }
        let tensors = order.compactMap { key in sums[key].map { NamedTensor(key, $0) } } + others.tensors
        let report: JSONObject = ["layers": .array([]), "error": .number(0), "rank": .null]
        return (AdapterFiles(config: configuration, tensors: try TensorSource(origin: "the combination", tensors)), report)
    }
}

/// The changes of a model's adapters.
private struct ModelChanges: ChangeSource {
    private let parts: [Contribution]
    private let weights: [Double]
    private let combination: Combination
    private let layers: [any Layer]

    init(_ parts: [Contribution], _ weights: [Double], _ combination: Combination, _ model: Model) throws(PEFTError) {
        (self.parts, self.combination) = (parts, combination)
        self.weights = try combination.normalized(weights)
        let indices = Set(parts.flatMap { $0.layers.map(\.index) })
        layers = model.layers.filter { indices.contains($0.index) }
    }

    var layerCount: Int { layers.count }

    func changes(at index: Int) throws(PEFTError) -> LayerChanges? {
        let layer = layers[index]
        let weights = try combination.weights(weights, at: layer.name)
        var result = LayerChanges(name: layer.name, form: try LoRAFile.Form(layer), parts: [])
        for (part, weight) in zip(parts, weights) {
            if let change = try part.change(of: layer) { result.parts.append((part.name, weight, change)) }
        }
        return result.parts.isEmpty ? nil : result
    }
}

/// Modules trained in full: a combination keeps them as they are, from the one adapter that has them.
struct SavedTogether {
    private(set) var tensors: [NamedTensor] = []

    init(_ adapters: [(name: String, others: [NamedTensor])]) throws(PEFTError) {
        var owners: [String: String] = [:]
        for (name, others) in adapters {
            for item in others {
                if let owner = owners.updateValue(name, forKey: item.name) {
                    throw PEFTError(.unsupported, "'\(owner)' and '\(name)' both trained '\(item.name)' in full; only one of the adapters can have it")
                }
                tensors.append(item)
            }
        }
    }
}

extension Combination {
    /// The rank that layers of a combination have, where it is one for all.
    func commonRank(_ ranks: [Int?]) throws(PEFTError) -> Int {
        let known = ranks.compactMap { $0 }
        if space == .concatenated { return known.reduce(0, +) }
        guard let largest = known.max() else {
            if rank != nil { return 1 }
            throw PEFTError(.argument, "none of the adapters is LoRA, which would have a rank: svd_rank or svd_energy is needed")
        }
        return largest
    }

    /// Weights of the ends of an arc are shares.
    func normalized(_ weights: [Double]) throws(PEFTError) -> [Double] {
        guard let wrong = weights.first(where: { !$0.isFinite }) else {
            guard space == .arc else { return weights }
            let total = weights.reduce(0, +)
            guard total != 0 else { throw PEFTError(.argument, "the weights of slerp add up to 0") }
            return weights.map { $0 / total }
        }
        throw PEFTError(.argument, "a weight is \(wrong); finite numbers are needed")
    }

    /// What a combination's configuration takes over: of LoRAs, PEFT's copy of the first without what has gone into the factors.
    static func settings(_ configurations: [JSONObject], _ combination: Combination) throws(PEFTError) -> JSONObject {
        guard let first = configurations.first else { return JSONObject() }
        var settings = JSONObject()
        for key in ["task_type", "base_model_name_or_path", "revision", "auto_mapping"] { settings[key] = first[key] }
        settings["modules_to_save"] = try union(configurations.map { $0["modules_to_save"] ?? .null }, "modules_to_save")
        guard first["peft_type"] == .string("LORA") else { return settings }
        for key in ["lora_dropout", "fan_in_fan_out"] { settings[key] = first[key] }
        if configurations.count > 1, peftNames.contains(combination.name) { settings["use_rslora"] = first["use_rslora"] }
        return settings
    }

    /// Lists are united; regular expressions become alternatives.
    static func union(_ values: [JSONValue], _ key: String) throws(PEFTError) -> JSONValue {
        let given = values.filter { !$0.isNull }
        if given.allSatisfy({ $0.arrayValue != nil }) {
            var seen: Set<String> = []
            let names = given.flatMap { $0.arrayValue ?? [] }.compactMap(\.stringValue).filter { seen.insert($0).inserted }
            return given.isEmpty ? .null : .array(names.sorted().map { .string($0) })
        }
        let texts = given.compactMap(\.stringValue)
        guard texts.count == given.count else { throw PEFTError(.argument, "\(key) is a list in one adapter and a regular expression in another") }
        return .string(Set(texts).count == 1 ? texts[0] : texts.map { "(\($0))" }.joined(separator: "|"))
    }
}
