package import Autograd
package import Platform
package import Synchronization
package import Tensors

/// A network with its weights: immutable while sessions and trainers run over it, except under the write lock.
package final class Model: Sendable {
    package let engine: Engine
    /// How activations are stored and products computed in training and in forward passes.
    package let precision: Precision
    /// The same while generating.
    package let generationPrecision: Precision
    /// The keys of Hugging Face's config.json, also when the weights came from GGUF.
    package let configuration: JSONObject
    /// "llama", "qwen2" …: `model_type`
    package let architecture: String
    /// In the order of the module tree.
    package let layers: [any Layer]
    package let network: any Network
    /// Readers: computations, from their first layer to their last. Writers: optimizer steps, merges, loads.
    package let lock = ReadWriteLock()
    /// Tensors of the files that the architecture did not ask for.
    package let unusedTensors: [String]
    /// Layers that the files did not have.
    package let newLayers: [String]
    /// What the last quantising of weights lost; nil: they are as the files have them.
    package let quantization = Mutex<JSONObject?>(nil)
    /// nf4 and fp4 are made as bitsandbytes reads them on a processor (`BlockScaling.followsCPU`).
    package let followsCPU: Bool
    private let indexByName: [String: Int]

    init(
        engine: Engine, precision: Precision, generationPrecision: Precision? = nil, configuration: JSONObject, architecture: String, layers: [any Layer], network: any Network, unusedTensors: [String] = [], newLayers: [String] = [], followsCPU: Bool = false
    ) {
        self.engine = engine
        self.precision = precision
        self.generationPrecision = generationPrecision ?? precision
        self.configuration = configuration
        self.architecture = architecture
        self.layers = layers
        self.network = network
        self.unusedTensors = unusedTensors
        self.newLayers = newLayers
        self.followsCPU = followsCPU
        indexByName = Dictionary(layers.enumerated().map { ($0.element.name, $0.offset) }, uniquingKeysWith: { first, _ in first })
    }

    package var task: ModelTask { network.task }

    /// "model.layers.0.self_attn.q_proj"
    package func layer(named name: String) -> (any Layer)? { indexByName[name].map { layers[$0] } }

    /// The base parameters under transformers' names as they are now, in the order of the layers; a tied head has none of its own.
    package var parameters: [(name: String, tensor: Tensor)] {
        layers.flatMap { layer in
            (layer as? Linear)?.tiedEmbedding != nil ? [] : layer.tensors.map { (name: "\(layer.name).\($0.name)", tensor: $0.tensor) }
        }
    }

    /// Nothing adapted: the base model.
    package var unadapted: Adaptation { Adaptation(layerCount: layers.count) }

    package func logits(_ hidden: Variable, of input: ModelInput, rows: LogitRows = .all, _ context: ForwardContext) throws(PEFTError) -> Variable {
        try network.logits(hidden, of: input, rows: rows, context)
    }

    /// What a pooler makes of the states; nil without one.
    package func pooled(_ hidden: Variable, _ context: ForwardContext) throws(PEFTError) -> Variable? { try network.pooled(hidden, context) }

    /// What the decoder of an encoder-decoder reads first.
    package var decoderStart: Int32 {
        let id = configuration["decoder_start_token_id"]?.intValue ?? configuration["pad_token_id"]?.intValue ?? configuration["bos_token_id"]?.intValue
        return Int32(clamping: id ?? 0)
    }

    /// An empty cache for one sequence.
    /// - Parameters:
    ///   - runs: through the network's blocks, where adapters have more of them run than there are.
    ///   - format: nil: as activations are.
    /// - Throws: `.unsupported` when the network has none.
    package func makeCache(capacity: Int, runs: Int? = nil, format: CacheFormat? = nil) throws(PEFTError) -> KeyValueCache {
        guard let shape = network.cacheShape else { throw PEFTError(.unsupported, "a \(architecture) model does not generate") }
        return try KeyValueCache(
            engine, layerCount: runs ?? shape.layerCount, capacity: capacity, keyValueHeads: shape.keyValueHeads, headSize: shape.headSize, dtype: generationPrecision.activation, format: format)
    }
}
