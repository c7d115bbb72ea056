package import Platform
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
}

/// Called while a model is opened, with bytes done and bytes in all; false cancels.
package typealias LoadProgress = (_ done: Int64, _ total: Int64) -> Bool

extension OpenedModel {
    /// Opens a GGUF file or a Hugging Face folder. Weights stay in the mapped files wherever their format allows.
    /// - Throws: `.notFound`, `.format` naming a missing or misshapen tensor, `.unsupported` naming the architecture or the
    ///   setting, `.cancelled`, `.memory`.
    package static func open(path: String, _ engine: Engine, compute: ComputeChoice = .automatic, progress: LoadProgress? = nil) throws(PEFTError) -> OpenedModel {
        throw PEFTError(.unsupported, "opening \(path)")
    }

    /// Opens a GGUF image in memory, which must not change while the model lives.
    package static func open(_ image: MappedFile, _ engine: Engine, compute: ComputeChoice = .automatic, progress: LoadProgress? = nil) throws(PEFTError) -> OpenedModel {
        throw PEFTError(.unsupported, "opening \(image.name)")
    }

    /// Writes the model as it is now as a Hugging Face folder: config.json, model.safetensors, the tokenizer's files where they are known.
    /// - Parameter dtype: f32, bf16 or f16; nil: as stored, quantised formats as f32.
    package func export(to folder: String, dtype: DType? = nil) throws(PEFTError) {
        throw PEFTError(.unsupported, "exporting")
    }
}
