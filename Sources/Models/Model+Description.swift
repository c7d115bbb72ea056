internal import Autograd
package import Platform
internal import Synchronization
package import Tensors

/// What hosts see of a model.
extension Model {
    /// As `peft_model_describe` has it.
    package func description() -> JSONObject {
        let parameters = lock.read { self.parameters }
        var (count, bytes) = (0, 0)
        var formats: [String: Int64] = [:]
        for (_, tensor) in parameters {
            count += tensor.count
            bytes += tensor.byteCount
            formats[tensor.dtype.name, default: 0] += 1
        }
        var formatCounts = JSONObject()
        for name in formats.keys.sorted() { formatCounts[name] = formats[name].map { .integer($0) } }
        return [
            "architecture": .string(architecture), "config": .object(configuration), "parameters": .integer(Int64(count)), "bytes": .integer(Int64(bytes)),
            "formats": .object(formatCounts), "layers": .array(layers.map { .object(["name": .string($0.name), "kind": .string($0.kind)]) }),
            "compute": .object(["training": .string("\(precision.compute)"), "generation": .string("\(generationPrecision.compute)")]),
            "load_report": .object(["unused": .array(unusedTensors.map { .string($0) }), "new": .array(newLayers.map { .string($0) })]),
            "quantization": quantization.withLock { $0.map { .object($0) } } ?? .null,
        ]
    }

    /// The base parameters (or the one named) with their present values; quantised ones decoded to f32.
    ///
    /// What is not quantised is no copy: a merge replaces tensors, it does not write into them.
    package func state(named name: String? = nil) throws(PEFTError) -> [(name: String, tensor: Tensor)] {
        var state = lock.read { parameters }
        if let name {
            guard let found = state.first(where: { $0.name == name }) else {
                throw PEFTError(.notFound, "the model has no parameter \"\(name)\"; it has \(state.count), such as \"\(state.first?.name ?? "none")\"")
            }
            state = [found]
        }
        for index in state.indices where state[index].tensor.dtype.isQuantized {
            state[index].tensor = try state[index].tensor.converted(to: .f32, engine, .scratch)
        }
        return state
    }
}
