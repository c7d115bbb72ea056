internal import Autograd
internal import Models
internal import Platform
internal import Tensors

/// A parameter that stands in for a layer's own tensor while the adapter is active.
package struct Replacement: Sendable {
    /// `tuned`: a target of LN tuning.
    enum Reason { case savedModule, bias, base, tuned }

    let layer: any Layer
    /// "weight", "bias"
    let tensor: String
    let parameter: Parameter
    /// Under which the parameter is saved for this layer.
    let key: String
    let reason: Reason
}

/// What an adapter trains or keeps of the base model itself: `modules_to_save`, `bias`.
enum SavedModules {
    /// Heads that are always saved, because a task's head is made anew.
    private static let heads = [
        "SEQ_CLS": ["classifier", "score"], "TOKEN_CLS": ["classifier", "score"], "QUESTION_ANS": ["qa_outputs"],
    ]

    /// Adds the heads of the task to `modules_to_save`.
    static func addHeads(_ configuration: inout AdapterConfiguration) throws(PEFTError) {
        guard let heads = configuration.taskType.flatMap({ heads[$0] }) else { return }
        let names = try configuration.values.strings("modules_to_save") ?? []
        configuration.values["modules_to_save"] = .array(
            (names + heads.filter { !names.contains($0) }).map { .string($0) })
    }

    /// Copies of all modules whose names end in an entry of `modules_to_save` (without regard to dots, as in PEFT), and of
    /// the biases that train.
    static func replacements(_ configuration: AdapterConfiguration, targets: [any Layer], _ model: Model)
        throws(PEFTError) -> [Replacement]
    {
        let saved = try layers(configuration, model)
        for target in targets where saved.contains(where: { $0.index == target.index }) {
            throw PEFTError(
                .argument, "'\(target.name)' is named by target_modules and by modules_to_save; it can be one of them")
        }
        var result: [Replacement] = []
        for layer in saved {
            for (name, tensor) in layer.tensors {
                result.append(try copy(tensor, of: layer, name, key: "\(configuration.keyPrefix)\(layer.name).\(name)", .savedModule, model))
            }
            guard try configuration.flag("ensure_weight_tying"), let embedding = layer as? Embedding,
                let table = result.last
            else { continue }
            // The head that shares the embedding's matrix shares the copy.
            for head in WeightTying.heads(of: embedding, model) {
                let key = "\(configuration.keyPrefix)\(head.name).weight"
                result.append(
                    Replacement(
                        layer: head, tensor: "weight", parameter: table.parameter, key: key, reason: .savedModule))
            }
        }
        for layer in try layersWithTrainedBias(configuration, targets, model)
        where !saved.contains(where: { $0.index == layer.index }) {
            guard let bias = layer.tensor("bias") else { continue }
            let isTarget = targets.contains { $0.index == layer.index }
            result.append(
                try copy(
                    bias, of: layer, "bias", key: configuration.keyPrefix + layer.name + (isTarget ? ".base_layer.bias" : ".bias"), .bias, model))
        }
        return result
    }

    private static func copy(
        _ tensor: Tensor, of layer: any Layer, _ name: String, key: String, _ reason: Replacement.Reason, _ model: Model
    ) throws(PEFTError) -> Replacement {
        let value = try tensor.converted(to: .f32, model.engine, .adapters)
        return Replacement(
            layer: layer, tensor: name, parameter: Parameter(name: key, value: value), key: key, reason: reason)
    }

    private static func layers(_ configuration: AdapterConfiguration, _ model: Model) throws(PEFTError) -> [any Layer] {
        let entries = try configuration.values.strings("modules_to_save") ?? []
        guard !entries.isEmpty else { return [] }
        let modules = ModuleNames(model.layers)
        var found: Set<String> = []
        for name in modules.all where entries.contains(where: { name.hasSuffix($0) }) {
            if modules.isList(name) {
                throw PEFTError(
                    .argument, "modules_to_save names '\(name)', which is a list of modules; name the modules in it")
            }
            found.insert(name)
        }
        // The heads of a task are there under one of their names, so they are not missed.
        let expected = Set(configuration.taskType.flatMap { heads[$0] } ?? [])
        for entry in entries where !expected.contains(entry) && !found.contains(where: { $0.hasSuffix(entry) }) {
            model.engine.warn("modules_to_save: the model has no module named '\(entry)'")
        }
        return model.layers.filter { layer in found.contains { layer.name == $0 || layer.name.hasPrefix($0 + ".") } }
    }

    private static func layersWithTrainedBias(
        _ configuration: AdapterConfiguration, _ targets: [any Layer], _ model: Model
    ) throws(PEFTError) -> [any Layer] {
        guard let bias = try configuration.values.text("bias"), bias != "none" else { return [] }
        if bias == "all" { return model.layers }
        guard bias.hasSuffix("_only") else {
            throw PEFTError(
                .argument, "bias is '\(bias)'; it can be none, all, \(configuration.method.peftType.lowercased())_only")
        }
        return targets
    }
}
