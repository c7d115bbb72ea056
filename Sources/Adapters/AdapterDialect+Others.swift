internal import Autograd
internal import Checkpoints
internal import Models
internal import Platform
internal import Tensors

/// OFT, (IA)³ and norms of LyCORIS' files.
extension AdapterDialect {
    func oft(_ config: inout JSONObject) throws(PEFTError) -> [NamedTensor] {
        let sizes = modules.map { $0.parts["oft_blocks"]?.shape ?? [] }
        let bounds = try modules.map { (module) throws(PEFTError) in try alpha(module.parts) ?? 0 }
        let isRescaled = modules.first?.parts["rescale"] != nil
        guard let first = sizes.first, sizes.allSatisfy({ $0.count == first.count && (3...4).contains($0.count) }), Set(bounds).count == 1,
            modules.allSatisfy({ ($0.parts["rescale"] != nil) == isRescaled })
        else {
            throw PEFTError(
                .unsupported, "\(origin): its modules have oft_blocks of the shapes \(Set(sizes).sorted { $0.count < $1.count }.prefix(3)); all with one form, rescale and alpha (constraint) are read")
        }
        setRanks(sizes.map { $0.last ?? 0 }, sizes.map { _ in nil }, "alpha", &config)
        for key in ["alpha", "alpha_pattern"] { config[key] = nil }
        config["butterfly"] = .bool(first.count == 4)
        config["rescaled"] = .bool(isRescaled)
        config["constraint"] = .number(bounds[0])
        return ownNames()
    }

    /// Their vector is what PEFT's is beside 1.
    func ia3(_ config: inout JSONObject) throws(PEFTError) -> [NamedTensor] {
        var (tensors, feedforward): ([NamedTensor], [JSONValue]) = ([], [])
        for (layer, parts) in modules {
            guard let weight = parts["weight"], weight.dtype.isWeightFormat else { throw missing("weight", layer) }
            guard let flag = parts["on_input"]?.integers(), flag.count == 1, let onInput = flag.first else { throw missing("on_input", layer) }
            let target = try MatrixTarget(layer, of: IA3.self)
            try AdapterDialect.checkBias(target, isFeedforward: onInput != 0, origin)
            if onInput != 0 { feedforward.append(.string(layer.name)) }
            let shape = target.kernel.isEmpty ? (onInput != 0 ? [1, weight.count] : [weight.count, 1]) : [1, weight.count] + target.kernel.map { _ in 1 }
            let values = try weight.converted(to: .f32, engine, .scratch).floats(engine).map { $0 + 1 }
            tensors.append(NamedTensor("\(Adapter.prefix)\(layer.name).ia3_l", try Tensor(engine, values, shape: shape)))
        }
        config["feedforward_modules"] = .array(feedforward)
        return tensors
    }

    /// PEFT scales the bias with the outputs, LyCORIS does not.
    static func checkBias(_ target: MatrixTarget, isFeedforward: Bool, _ what: String) throws(PEFTError) {
        guard isFeedforward || target.linear.bias == nil else {
            throw PEFTError(.unsupported, "\(what): (IA)³ of LyCORIS scales the outputs of '\(target.name)' without its bias, PEFT's with it: one cannot be the other")
        }
    }

    /// Changes of a norm's weight and bias become the norm's own.
    func norms() throws(PEFTError) -> [NamedTensor] {
        var tensors: [NamedTensor] = []
        for (layer, parts) in modules {
            for (name, tensor) in layer.tensors {
                let change = try parts[AdapterDialect.normParts[name] ?? ""].map { (part) throws(PEFTError) in
                    guard part.shape == tensor.shape, part.dtype.isWeightFormat else {
                        throw PEFTError(.mismatch, "\(origin): '\(layer.name)' has a change of the shape \(part.shape) for its \(name) \(tensor.shape)")
                    }
                    return try part.converted(to: .f32, engine, .scratch)
                }
                let sum = try tensor.converted(to: .f32, engine, .adapters)
                if let change { engine.axpby(1, change, 1, into: sum) }
                tensors.append(NamedTensor("\(Adapter.prefix)\(layer.name).ln_tuning_layers.\(name)", sum))
            }
            guard parts["b_norm"] == nil || layer.tensor("bias") != nil, layer.tensor("weight") != nil else {
                throw PEFTError(.mismatch, "\(origin): '\(layer.name)' has no \(layer.tensor("weight") == nil ? "weight" : "bias") that w_norm, b_norm could change")
            }
        }
        return tensors
    }

    static let normParts = ["weight": "w_norm", "bias": "b_norm"]
}
