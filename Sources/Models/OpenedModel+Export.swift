internal import Checkpoints
package import Platform
package import Tensors

extension OpenedModel {
    /// Writes the model as it is now as a Hugging Face folder: config.json, model.safetensors, and the tokenizer's files if the
    /// model came from such a folder. At no moment is more than one decoded tensor in memory.
    /// - Parameter dtype: f32, bf16 or f16; nil: as stored; nf4, fp4 and int8 as bitsandbytes writes them, other quantised
    ///   formats as f32.
    package func export(to folder: String, dtype: DType? = nil) throws(PEFTError) {
        if let dtype, !dtype.isFloat { throw PEFTError(.argument, "a model is exported as float32, bfloat16 or float16, not \(dtype.name)") }
        let output = try AtomicFolder(folder)
        var config = try output.file("config.json")
        var weights = try output.file("model.safetensors")
        let (entries, types) = try entries(dtype)
        try Safetensors.write(entries.map(\.description), into: &weights) { (index) throws(PEFTError) -> Tensor in try made(entries[index]) }
        try config.write(JSONValue.object(try configuration(types, dtype)).text(indent: 2, sortKeys: true))
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

    private static let tokenizerFiles = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "chat_template.jinja", "preprocessor_config.json"]

    // MARK: Tensors

    /// A tensor of the file.
    private struct Entry {
        let description: TensorDescription
        let name: String
        let tensor: Tensor
        /// Which of what bitsandbytes writes of it; nil: the tensor itself.
        var part: Int?
    }

    /// All of the file, and the type each parameter is written in.
    private func entries(_ dtype: DType?) throws(PEFTError) -> (entries: [Entry], types: [DType]) {
        var (entries, types): ([Entry], [DType]) = ([], [])
        for (name, tensor) in model.parameters {
            let type = dtype ?? OpenedModel.type(of: tensor, in: model.layer(named: String(name.dropLast(".weight".count))))
            types.append(type)
            guard BitsAndBytes.has(type) else {
                entries.append(Entry(description: TensorDescription(name, type, tensor.shape), name: name, tensor: tensor))
                continue
            }
            for (part, item) in try BitsAndBytes.parts(of: tensor, name, model.engine).enumerated() {
                entries.append(Entry(description: TensorDescription(item.name, item.tensor.dtype, item.tensor.shape), name: name, tensor: tensor, part: part))
            }
        }
        return (entries, types)
    }

    private static func type(of tensor: Tensor, in layer: (any Layer)?) -> DType {
        // transformers has bitsandbytes in linear layers only, stored the usual way round.
        if [.nf4, .fp4, .int8].contains(tensor.dtype), let linear = layer as? Linear, !linear.isTransposed { return tensor.dtype }
        return tensor.dtype.isQuantized ? .f32 : tensor.dtype
    }

    private func made(_ entry: Entry) throws(PEFTError) -> Tensor {
        if let part = entry.part { return try BitsAndBytes.parts(of: entry.tensor, entry.name, model.engine)[part].tensor }
        return entry.tensor.dtype == entry.description.dtype ? entry.tensor : try entry.tensor.converted(to: entry.description.dtype, model.engine, .scratch)
    }

    // MARK: Configuration

    /// The configuration with the type most weights are written in, and what transformers must know of bitsandbytes.
    private func configuration(_ types: [DType], _ dtype: DType?) throws(PEFTError) -> JSONObject {
        var configuration = model.configuration
        let names: [DType: String] = [.f32: "float32", .bf16: "bfloat16", .f16: "float16"]
        let plain = types.filter { names[$0] != nil }
        let widest = plain.contains(.f32) ? DType.f32 : plain.first ?? .f32
        configuration["dtype"] = names[widest].map { .string($0) }
        configuration["quantization_config"] = nil
        let formats = Set(types.filter { BitsAndBytes.has($0) })
        guard let format = formats.first else { return configuration }
        guard formats.count == 1 else {
            throw PEFTError(.unsupported, "weights are \(formats.map(\.name).sorted().joined(separator: " and ")); a folder of bitsandbytes has one of them")
        }
        let threshold = model.parameters.reduce(Float(0)) { max($0, $1.tensor.dtype == .int8 ? $1.tensor.scaling.outlierThreshold : 0) }
        let doubled = model.parameters.contains { $0.tensor.dtype == format && $0.tensor.scaling.isDouble }
        let skipped = model.layers.filter { layer in layer is Linear && layer.tensor("weight")?.dtype != format }
        configuration["quantization_config"] = .object([
            "quant_method": .string("bitsandbytes"), "load_in_4bit": .bool(format != .int8), "load_in_8bit": .bool(format == .int8),
            "bnb_4bit_quant_type": .string(format == .int8 ? "fp4" : format.name), "bnb_4bit_use_double_quant": .bool(doubled),
            "bnb_4bit_compute_dtype": .string(names[widest] ?? "float32"), "bnb_4bit_quant_storage": .string("uint8"),
            "llm_int8_skip_modules": .array(skipped.map { .string($0.name) }), "llm_int8_threshold": .number(threshold > 0 ? Double(threshold) : 6),
            "llm_int8_has_fp16_weight": .bool(false), "llm_int8_enable_fp32_cpu_offload": .bool(false),
        ])
        return configuration
    }
}
