internal import Checkpoints
package import Platform
package import Tensors

extension OpenedModel {
    /// Writes the model as it is now as a Hugging Face folder: config.json, model.safetensors, and the tokenizer's files if the
    /// model came from such a folder. At no moment is more than one decoded tensor in memory.
    /// - Parameter dtype: f32, bf16 or f16; nil: as stored, quantised formats as f32.
    package func export(to folder: String, dtype: DType? = nil) throws(PEFTError) {
        if let dtype, !dtype.isFloat { throw PEFTError(.argument, "a model is exported as float32, bfloat16 or float16, not \(dtype.name)") }
        let output = try AtomicFolder(folder)
        var config = try output.file("config.json")
        var weights = try output.file("model.safetensors")
        let (parameters, engine) = (model.parameters, model.engine)
        let types = parameters.map { dtype ?? ($0.tensor.dtype.isQuantized ? .f32 : $0.tensor.dtype) }
        let descriptions = zip(parameters, types).map { TensorDescription($0.name, $1, $0.tensor.shape) }
        try Safetensors.write(descriptions, into: &weights) { (index) throws(PEFTError) -> Tensor in
            let tensor = parameters[index].tensor
            return tensor.dtype == types[index] ? tensor : try tensor.converted(to: types[index], engine, .scratch)
        }
        try config.write(JSONValue.object(configuration(types)).text(indent: 2, sortKeys: true))
        try weights.finish()
        try config.finish()
        try weights.publish()
        try config.publish()
        for name in OpenedModel.tokenizerFiles where Files.isFile(Files.join(path, name)) {
            var copy = try output.file(name)
            let source = try MappedFile(path: Files.join(path, name), .read)
            unsafe try copy.write(source.bytes)
            try copy.finish()
            try copy.publish()
        }
        try output.commit()
    }

    private static let tokenizerFiles = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "chat_template.jinja"]

    /// The configuration with the type most weights are written in.
    private func configuration(_ types: [DType]) -> JSONObject {
        var configuration = model.configuration
        let names: [DType: String] = [.f32: "float32", .bf16: "bfloat16", .f16: "float16"]
        let widest = types.contains(.f32) ? DType.f32 : types.first ?? .f32
        configuration["dtype"] = names[widest].map { .string($0) }
        return configuration
    }
}
