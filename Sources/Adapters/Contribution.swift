internal import Autograd
package import Checkpoints
package import Models
package import Platform
internal import Synchronization
package import Tensors

/// What one adapter of a model does to its weights, layer by layer.
package struct Contribution {
    package let name: String
    package let configuration: JSONObject
    private let adapter: Adapter
    private let scale: Float
    /// By layer, what it had before adapters were merged.
    private let originals: [Int: [String: Tensor]]
    private let model: Model

    /// - Throws: `.unsupported` for what does more than change weights.
    init(_ name: String, _ entry: AdapterTable.Entry, originals: [Int: [String: Tensor]], _ model: Model) throws(PEFTError) {
        (self.name, adapter, scale, self.originals, self.model) = (name, entry.adapter, entry.scale, originals, model)
        configuration = adapter.configuration.values
        let reason: String? =
            if adapter.prompt != nil { "stands in front of the input" }
            else if !adapter.configuration.method.isMergeable { "acts beside the weights" }
            else if adapter.replication != nil { "has layer_replication" }
            else if configuration["target_parameters"]?.arrayValue?.isEmpty == false { "has target_parameters" }
            else if adapter.modules.contains(where: \.changesBase) { "took a part out of the base weights (init_lora_weights), which are not the ones it was made for without it" }
            else if adapter.modules.contains(where: \.isTwin) { "acts on a matrix that is embedding and head at once" }
            else { nil }
        if let reason { throw PEFTError(.unsupported, "'\(name)' \(reason); it cannot be combined or converted") }
    }

    /// It is LoRA under another name, with factors that are no larger: there is nothing to be gained by cutting its rank.
    package var isLoRAInDisguise: Bool { adapter.configuration.method == MiSS.self && configuration["init_weights"] != .string("bat") }

    /// Layers that it changes, in the order of the model.
    package var layers: [any Layer] {
        let indices = Set(adapter.modules.map(\.layer.index) + adapter.replacements.filter { $0.reason != .savedModule }.map(\.layer.index))
        return model.layers.filter { indices.contains($0.index) }
    }

    /// Modules trained in full, by saved key. The caller holds the model's lock.
    package func savedModules() throws(PEFTError) -> [NamedTensor] {
        try adapter.replacements.filter { $0.reason == .savedModule }.map { (own) throws(PEFTError) in
            NamedTensor(own.key, try own.parameter.value.converted(to: .f32, model.engine, .scratch))
        }
    }

    /// Its tensors by saved key; copies. The caller holds the model's lock.
    package func values() throws(PEFTError) -> [(key: String, value: Tensor)] {
        try adapter.saved.map { (item) throws(PEFTError) in (item.key, try item.value(model.engine)) }
    }

    /// Its change of one layer; nil: none. The caller holds the model's lock.
    /// - Throws: `.unsupported` naming the layer where the change is not one of a weight, `.numeric` for one that is not finite.
    package func change(of layer: any Layer) throws(PEFTError) -> WeightChange? {
        let modules = adapter.modules.filter { $0.layer.index == layer.index }
        let own = adapter.replacements.filter { $0.layer.index == layer.index && $0.reason != .savedModule }
        if modules.isEmpty, own.isEmpty { return nil }
        let known = modules.count == 1 && own.isEmpty ? try modules[0].change(scale: scale) : nil
        let change = if let known { known } else { try folded(layer, modules, own) }
        try change.matrix.checkIsFinite("'\(layer.name)' of '\(name)'")
        guard change.bias?.squaredNorm.isFinite ?? true else {
            throw PEFTError(.numeric, "the bias of '\(layer.name)' of '\(name)' has values that are NaN or infinite")
        }
        return change
    }

    /// New weights minus old ones.
    private func folded(_ layer: any Layer, _ modules: [any AdapterModule], _ own: [Replacement]) throws(PEFTError) -> WeightChange {
        let engine = model.engine
        let form = try LoRAFile.Form(layer)
        var start: [String: Tensor] = [:]
        for (name, tensor) in originals[layer.index] ?? [:] { start[name] = try tensor.converted(to: .f32, engine, .scratch) }
        for own in own { start[own.tensor] = try own.parameter.value.converted(to: .f32, engine, .scratch) }
        var weights = FoldedWeights(layer, originals: originals[layer.index] ?? [:], start: start, engine)
        for module in modules { try module.fold(into: &weights, scale: scale) }
        var result = WeightChange(.dense(try .zeros(engine, [0, 0], .f32, .scratch)))
        for (name, after) in weights.tensors {
            guard let before = weights.original(name) else { continue }
            engine.axpby(-1, try before.converted(to: .f32, engine, .scratch), 1, into: after)
            switch name {
            case "weight": result.matrix = .dense(try form.matrix(after, of: layer, engine))
            case "bias": if after.squaredNorm != 0 { result.bias = after }
            default: throw PEFTError(.unsupported, "'\(self.name)' changes '\(layer.name).\(name)', which LoRA has no place for")
            }
        }
        guard result.matrix.shape == [0, 0] else { return result }
        let size = try form.matrixShape(of: layer)
        result.matrix = .dense(try .zeros(engine, size, .f32, .scratch))
        return result
    }
}

extension AdapterSet {
    /// The caller holds the model's lock.
    package func contribution(of name: String) throws(PEFTError) -> Contribution {
        let (entry, originals) = try table.withLock { (table) throws(PEFTError) in (try table.entry(name), table.originals) }
        return try Contribution(name, entry, originals: originals, model)
    }

    package var hasMerged: Bool { table.withLock { $0.hasMerged } }

    /// The layers that a LoRA's `target_modules` names.
    package func layers(matching targets: JSONValue) throws(PEFTError) -> [any Layer] {
        var configuration = try AdapterConfiguration(["peft_type": .string(LoRA.peftType), "target_modules": targets], warn: { engine.warn($0) })
        return try TargetMatching.targets(&configuration, among: model.layers, model)
    }

    /// `target_modules` for these layers, as short as they can be.
    package func targets(naming layers: [String]) -> [String] { TargetMatching.suffixes(naming: layers, model) }
}

extension LoRAFile.Form {
    /// - Throws: `.unsupported` for a layer that LoRA does not adapt.
    package init(_ layer: any Layer) throws(PEFTError) {
        switch layer {
        case is Linear: self = .linear
        case is Embedding: self = .embedding
        case let layer as Convolution where layer.groups == 1: self = .kernel(layer.geometry.kernel)
        default: throw PEFTError(.unsupported, "'\(layer.name)' is \(layer.kind)\(layer is Convolution ? " with groups" : ""), whose change LoRA cannot hold; it has linear layers, embeddings and convolutions")
        }
    }

    fileprivate func matrixShape(of layer: any Layer) throws(PEFTError) -> [Int] {
        let shape = layer.tensor("weight")?.shape ?? []
        guard shape.count >= 2 else { throw PEFTError(.unsupported, "'\(layer.name)' has no weight matrix") }
        let matrix = [shape[0], shape.dropFirst().reduce(1, *)]
        return self == .embedding || (layer as? Linear)?.isTransposed == true ? matrix.reversed() : matrix
    }

    /// A weight of the layer as `WeightChange` has it.
    package func matrix(_ weight: Tensor, of layer: any Layer, _ engine: Engine) throws(PEFTError) -> Tensor {
        let isTransposed = self == .embedding || (layer as? Linear)?.isTransposed == true
        return isTransposed ? try weight.transposed(engine) : try weight.reshaped(try matrixShape(of: layer))
    }
}
