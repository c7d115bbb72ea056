internal import Autograd
package import Checkpoints
internal import Kernels
package import Platform
internal import Synchronization
package import Tensors
package import Tokenizers

/// Which arithmetic a host asks for (PEFT_COMPUTE_… of the header).
package enum ComputeChoice: Int32, Sendable, CaseIterable {
    /// int8 for generation and bf16 for training where the processor has them and the weights are quantised or 16 bit; else f32.
    case automatic = 0
    case f32 = 1
    case bf16 = 2
    case int8 = 3
}

/// A model, and what its files held beside the weights.
package struct OpenedModel: Sendable {
    package let model: Model
    /// nil: the files have none.
    package let tokenizer: Tokenizer?
    /// Where the files lie; empty for a model from memory.
    package let path: String
    /// preprocessor_config.json; nil: there is none.
    package var preprocessing: JSONObject?
}

/// Called while a model is opened or quantised, with bytes done and bytes in all; false cancels.
package typealias LoadProgress = (_ done: Int64, _ total: Int64) -> Bool

/// How a model is opened.
private struct OpenSettings {
    let compute: ComputeChoice
    /// Weights become other formats as soon as they are read; nil: they stay as the files have them.
    let quantization: QuantizationRules?
    /// `BlockScaling.followsCPU`
    let followsCPU: Bool
    /// The options of a head that the files do not have.
    let newHead: JSONObject?
    let progress: LoadProgress?
}

extension OpenedModel {
    /// Opens a GGUF file or a Hugging Face folder. Weights stay in the mapped files wherever their format allows.
    /// - Throws: `.notFound`, `.format` naming a missing or misshapen tensor, `.unsupported` naming the architecture or the
    ///   setting, `.cancelled`, `.memory`.
    package static func open(
        path: String, _ engine: Engine, compute: ComputeChoice = .automatic, quantization: QuantizationRules? = nil, followsCPU: Bool = false, newHead: JSONObject? = nil, progress: LoadProgress? = nil
    ) throws(PEFTError) -> OpenedModel {
        let settings = OpenSettings(compute: compute, quantization: quantization, followsCPU: followsCPU, newHead: newHead, progress: progress)
        switch try Files.kind(of: path) {
        case .file: return try open(try GGUF(path: path, budget: engine.budget), path, engine, settings)
        case .folder:
            let folder = try ModelFolder(path: path, budget: engine.budget)
            let total = bytes(of: folder.tensors)
            try report(0, of: total, folder.tensors, settings)
            let tensors = try QuantizedFolder.restored(folder.tensors, folder.config, engine)
            let model = try make(ModelConfiguration(folder.config, origin: path), tensors, engine, settings)
            let tokenizer = try Tokenizer(folder: path)
            try report(1, of: total, folder.tensors, settings)
            let preprocessing = try folder.existing("preprocessor_config.json").map { (path) throws(PEFTError) in try Files.jsonObject(at: path) }
            return OpenedModel(model: model, tokenizer: tokenizer, path: path, preprocessing: preprocessing)
        default: throw PEFTError(.notFound, "there is no model at '\(path)': neither a GGUF file nor a folder")
        }
    }

    /// Opens a GGUF image in memory, which must not change while the model lives.
    package static func open(
        _ image: MappedFile, _ engine: Engine, compute: ComputeChoice = .automatic, quantization: QuantizationRules? = nil, followsCPU: Bool = false, newHead: JSONObject? = nil, progress: LoadProgress? = nil
    ) throws(PEFTError) -> OpenedModel {
        let settings = OpenSettings(compute: compute, quantization: quantization, followsCPU: followsCPU, newHead: newHead, progress: progress)
        return try open(try GGUF(image, budget: engine.budget), "", engine, settings)
    }

    private static func open(_ gguf: GGUF, _ path: String, _ engine: Engine, _ settings: OpenSettings) throws(PEFTError) -> OpenedModel {
        let total = bytes(of: gguf.tensors)
        try report(0, of: total, gguf.tensors, settings)
        let converted = try GGUFModel(gguf, engine)
        let model = try make(converted.configuration, converted.tensors, engine, settings)
        let tokenizer = try Tokenizer(gguf)
        gguf.dropPages()
        try report(1, of: total, gguf.tensors, settings)
        return OpenedModel(model: model, tokenizer: tokenizer, path: path)
    }

    /// A model from a configuration and its tensors in memory, which are used where they are.
    package static func make(
        _ configuration: JSONObject, _ tensors: [NamedTensor], _ engine: Engine, compute: ComputeChoice = .automatic, quantization: QuantizationRules? = nil, followsCPU: Bool = false, newHead: JSONObject? = nil, progress: LoadProgress? = nil
    ) throws(PEFTError) -> OpenedModel {
        let settings = OpenSettings(compute: compute, quantization: quantization, followsCPU: followsCPU, newHead: newHead, progress: progress)
        let origin = "the model in memory"
        let model = try make(ModelConfiguration(configuration, origin: origin), try TensorSource(origin: origin, tensors), engine, settings)
        return OpenedModel(model: model, tokenizer: nil, path: "")
    }

    private static func bytes(of tensors: TensorSource) -> Int64 { tensors.all.reduce(0) { $0 + Int64($1.tensor.byteCount) } }

    private static func report(_ part: Int64, of total: Int64, _ tensors: TensorSource, _ settings: OpenSettings) throws(PEFTError) {
        guard let progress = settings.progress else { return }
        guard progress(part * total, total) else { throw PEFTError(.cancelled, "opening \(tensors.origin) was cancelled") }
    }

    private static func make(
        _ configuration: ModelConfiguration, _ given: TensorSource, _ engine: Engine, _ settings: OpenSettings
    ) throws(PEFTError) -> Model {
        let architecture = try Architectures.named(configuration.modelType, origin: configuration.origin)
        let tensors = try TensorSource(origin: given.origin, given.all.map { NamedTensor(architecture.moduleName($0.name), $0.tensor) })
        let newHead = try settings.newHead.map { (options) throws(PEFTError) in try NewHead(options, configuration) }
        let configuration = newHead?.configuration ?? configuration
        let builder = LayerBuilder(tensors, engine, newHead: newHead)
        let network: any Network
        do throws(PEFTError) {
            network = try architecture.init(configuration, builder)
        } catch {
            // A file that lacks a tensor, or has another shape, is a malformed model.
            throw error.kind == .notFound || error.kind == .mismatch ? PEFTError(.format, error.message, detail: error.detail) : error
        }
        let unused = tensors.unusedNames
        if !unused.isEmpty { engine.warn("\(tensors.origin): \(unused.count) tensors are not used: \(TensorSource.list(unused))") }
        var report: JSONObject?
        if let rules = settings.quantization {
            guard rules.calibrationText == nil else { throw PEFTError(.argument, "calibration_text is for quantising a model that is open") }
            // The layers have their tensors: an old one goes as soon as its layer has another.
            given.release()
            tensors.release()
            report = try rules.apply(to: builder.layers, engine, followsCPU: settings.followsCPU, settings.progress) { (layer, weight) throws(PEFTError) in
                try layer.setTensor("weight", weight)
            }
        }
        let precisions = precisions(settings.compute, builder.layers, engine)
        let model = Model(
            engine: engine, precision: precisions.training, generationPrecision: precisions.generation, configuration: configuration.json,
            architecture: configuration.modelType, layers: builder.layers, network: network, unusedTensors: unused,
            newLayers: builder.newLayers, followsCPU: settings.followsCPU)
        model.quantization.withLock { $0 = report }
        return model
    }

    private static func precisions(_ compute: ComputeChoice, _ layers: [any Layer], _ engine: Engine) -> (training: Precision, generation: Precision) {
        let int8 = Precision(activation: .bf16, compute: .int8)
        switch compute {
        case .f32: return (.f32, .f32)
        case .bf16: return (.bf16, .bf16)
        case .int8: return (.bf16, int8)
        case .automatic:
            let isNarrow = layers.contains { layer in layer is Linear && (layer.tensor("weight").map { $0.dtype != .f32 } ?? false) }
            guard isNarrow, engine.level >= PK_LEVEL_AVX2 else { return (.f32, .f32) }
            return (engine.level >= PK_LEVEL_AVX512_BF16 ? .bf16 : .f32, int8)
        }
    }
}
