internal import Models
internal import Platform
internal import Tensors

/// `target_parameters`: parameters that are adapted by their own names, for modules that are no linear layers.
struct TargetParameters: Sendable {
    /// Whole names or dotted ends of them.
    private let names: [String]

    /// A parameter that was found.
    struct Match {
        let layer: any Layer
        let tensor: String
        /// In front of the names of what adapts it. Of several parameters of a module PEFT wraps the first innermost.
        let key: String
        var name: String { "\(layer.name).\(tensor)" }
    }

    /// - Parameter isNew: a file's dropout is told of and not applied; PEFT refuses it.
    init(_ configuration: AdapterConfiguration, isNew: Bool, _ warn: (String) -> Void) throws(PEFTError) {
        switch configuration.values["target_parameters"] {
        case .string(let name): throw PEFTError(.argument, "\"target_parameters\" is \"\(name)\"; a list of names is expected")
        default: names = try configuration.values.strings("target_parameters") ?? []
        }
        guard !names.isEmpty else { return }
        for key in ["lora_dropout", "lora_bias", "fan_in_fan_out", "use_dora", "layer_replication"] + LoRAVariant.keys
        where configuration.isSet(key) && configuration.values[key]?.doubleValue != 0 {
            if key == "lora_dropout", !isNew {
                warn("lora_dropout does nothing at target_parameters, \(names.joined(separator: ", "))")
                continue
            }
            throw PEFTError(.argument, "\"target_parameters\" and \"\(key)\" do not go together (\"all-linear\" has some where experts are stacks)")
        }
    }

    func matches(_ model: Model) -> [Match] {
        if names.isEmpty { return [] }
        return model.layers.flatMap { layer in
            let found = layer.tensors.map(\.name).filter { tensor in names.contains { "\(layer.name).\(tensor)".isNamed($0) } }
            return found.enumerated().map { number, tensor in
                let depth = found.count - 1 - number
                return Match(layer: layer, tensor: tensor, key: Adapter.prefix + layer.name + String(repeating: ".base_layer", count: depth))
            }
        }
    }

    /// - Parameter targets: what `target_modules` found.
    /// - Throws: `.notFound` when there is nothing to adapt, `.argument` for a module that is a target itself.
    func checked(_ model: Model, beside targets: [any Layer]) throws(PEFTError) -> [Match] {
        let found = matches(model)
        if found.isEmpty, !names.isEmpty {
            let message = "target_parameters \(names) is not found in the base model"
            guard !targets.isEmpty else {
                let known = model.layers.filter { $0 is Experts }.prefix(1).flatMap { layer in layer.tensors.map { "\(layer.name).\($0.name)" } }
                throw PEFTError(.notFound, "\(message); it has \(known.isEmpty ? "no stacks of experts" : known.joined(separator: ", "))")
            }
            model.engine.warn(message)
        }
        if let twice = found.first(where: { match in targets.contains { $0.index == match.layer.index } }) {
            throw PEFTError(.argument, "'\(twice.name)' is named by target_parameters, and its module by target_modules; it can be one of them")
        }
        return found
    }
}
