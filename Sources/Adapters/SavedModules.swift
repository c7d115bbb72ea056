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
    /// Of a saved module: the module that an entry of `modules_to_save` names, which the layer is or is in.
    var wrapper: String?
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
        for target in targets where saved.contains(where: { $0.layer.index == target.index }) {
            throw PEFTError(
                .argument, "'\(target.name)' is named by target_modules and by modules_to_save; it can be one of them")
        }
        var result: [Replacement] = []
        for (layer, wrapper) in saved {
            for (name, tensor) in layer.tensors {
                var own = try copy(tensor, of: layer, name, key: "\(configuration.keyPrefix)\(layer.name).\(name)", .savedModule, model)
                own.wrapper = wrapper
                result.append(own)
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
        where !saved.contains(where: { $0.layer.index == layer.index }) {
            guard let bias = layer.tensor("bias"), let key = biasKey(of: layer, targets) else { continue }
            result.append(try copy(bias, of: layer, "bias", key: configuration.keyPrefix + key, .bias, model))
        }
        return result
    }

    /// With `bias: "all"` PEFT writes whatever of the model ends in ".bias": of saved modules also the copy's and the original's, by their places in the wrapper.
    static func copies(_ configuration: AdapterConfiguration, _ replacements: [Replacement]) throws(PEFTError) -> [SavedTensor] {
        guard try configuration.values.text("bias") == "all" else { return [] }
        return replacements.filter { $0.tensor == "bias" }.flatMap { own -> [SavedTensor] in
            guard let wrapper = own.wrapper else { return [] }
            let (module, rest) = (configuration.keyPrefix + wrapper, own.layer.name.dropFirst(wrapper.count))
            return [
                SavedTensor(own.parameter, key: "\(module).modules_to_save\(rest.isEmpty ? "" : "." + copiesName)\(rest).bias"),
                SavedTensor(base: own.layer, "bias", key: "\(module).original_module\(rest).bias"),
            ]
        }
    }

    /// PEFT leaves an adapter's name in the names of `copies` that are deeper in a module; this is the one it gives itself.
    private static let copiesName = "default"

    /// The name that `copies` would have, of one with another adapter's name in it.
    static func copyName(_ name: String) -> String? {
        var parts = name.split(separator: ".", omittingEmptySubsequences: false)
        guard let place = parts.firstIndex(of: "modules_to_save"), place + 2 < parts.count else { return nil }
        parts[place + 1] = copiesName[...]
        return parts.joined(separator: ".")
    }

    private static func copy(
        _ tensor: Tensor, of layer: any Layer, _ name: String, key: String, _ reason: Replacement.Reason, _ model: Model
    ) throws(PEFTError) -> Replacement {
        let value = try tensor.converted(to: .f32, model.engine, .adapters)
        return Replacement(
            layer: layer, tensor: name, parameter: Parameter(name: key, value: value), key: key, reason: reason)
    }

    /// Layers that are saved whole, and the module whose name is an entry's that each is (in).
    private static func layers(_ configuration: AdapterConfiguration, _ model: Model) throws(PEFTError) -> [(layer: any Layer, wrapper: String)] {
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
        return model.layers.compactMap { layer in
            found.filter { layer.name == $0 || layer.name.hasPrefix($0 + ".") }.min { $0.utf8.count < $1.utf8.count }.map { (layer, $0) }
        }
    }

    /// What its bias is called beside adapters; nil for torch's packed projection of an attention, "in_proj_bias", which PEFT does not count among them.
    private static func biasKey(of layer: any Layer, _ targets: [any Layer]) -> String? {
        if layer.kind == MatrixTarget.attention { return nil }
        if let attention = targets.first(where: { $0.kind == MatrixTarget.attention && layer.name == $0.name + ".out_proj" }) {
            return attention.name + ".base_layer.out_proj.base_layer.bias"
        }
        return layer.name + (targets.contains { $0.index == layer.index } ? ".base_layer.bias" : ".bias")
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
