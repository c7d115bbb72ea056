internal import Autograd
internal import Platform
internal import Tensors

/// What a family of decoders asks of `GatedDecoder`.
struct DecoderSettings {
    /// What differs between layers.
    struct PerLayer {
        var rotary: RotaryTable
        /// Keys a query sees, counted back from itself; 0: all.
        var window = 0
    }

    let hiddenSize: Int
    let layerCount: Int
    let heads: Int
    let keyValueHeads: Int
    let headSize: Int
    let intermediateSize: Int
    let epsilon: Double
    var activation: ActivationKind
    var attentionBias = LayerBuilder.Bias.none
    var outputBias = LayerBuilder.Bias.none
    var feedForwardBias = LayerBuilder.Bias.none
    var normsQueriesAndKeys = false
    /// Queries, keys and values in one matrix, gate and up in another.
    var isFused = false
    /// The feed-forward is a mixture: of how many experts, and to how many a row is sent.
    var experts: (count: Int, chosen: Int)?
    /// Added to the weights of norms.
    var normOffset: Float = 0
    /// What each half of a block adds is normalised.
    var normsOutputs = false
    var embeddingScale: Float = 1
    /// nil: 1/√headSize.
    var attentionScale: Float?
    /// 0: none.
    var attentionSoftcap: Float = 0
    var logitSoftcap: Float = 0
    /// Of what each half of a block adds.
    var dropout: Float = 0
    /// What the modules of the question-answering class are under.
    var answersPrefix = "model."
    var layers: [PerLayer]

    /// What is called the same everywhere.
    init(_ configuration: ModelConfiguration, _ engine: Engine, activation key: String = "hidden_act", or fallback: String = "silu") throws(PEFTError) {
        hiddenSize = try configuration.size("hidden_size")
        layerCount = try configuration.size("num_hidden_layers", most: 4096)
        heads = try configuration.size("num_attention_heads")
        keyValueHeads = try configuration.size("num_key_value_heads", or: heads)
        headSize = try configuration.size("head_dim", or: max(hiddenSize / heads, 1), most: 8192)
        intermediateSize = try configuration.size("intermediate_size")
        epsilon = try configuration.number("rms_norm_eps", or: 1e-6)
        activation = try ActivationKind(key, of: configuration, or: fallback)
        guard heads % keyValueHeads == 0 else {
            throw PEFTError(.format, "\(configuration.origin): \(heads) attention heads cannot share \(keyValueHeads) key-value heads")
        }
        layers = Array(repeating: PerLayer(rotary: try RotaryTable(engine, headSize: headSize, configuration)), count: layerCount)
    }

    /// `layer_types` of the configuration: for each layer whether it slides; nil: it says nothing.
    func slides(_ configuration: ModelConfiguration) throws(PEFTError) -> [Bool]? {
        guard let types = try configuration.texts("layer_types") else { return nil }
        guard types.count == layerCount, types.allSatisfy({ ["full_attention", "sliding_attention"].contains($0) }) else {
            throw configuration.unsupported("layer_types", "full_attention and sliding_attention, one for each of the \(layerCount) layers")
        }
        return types.map { $0 == "sliding_attention" }
    }

    /// `sliding_window` for the layers that slide.
    mutating func setWindows(_ configuration: ModelConfiguration, slides: [Bool]) throws(PEFTError) {
        guard let window = try configuration.optionalSize("sliding_window") else { return }
        for layer in layers.indices where slides[layer] { layers[layer].window = window }
    }
}

/// A family of decoders: its configurations and their settings.
struct DecoderFamily {
    let modelTypes: [String]
    let settings: (_ configuration: ModelConfiguration, _ engine: Engine) throws(PEFTError) -> DecoderSettings

    static var all: [DecoderFamily] { [.llama, .gemma, .phi3, .mixtral] }

    static func of(_ configuration: ModelConfiguration) throws(PEFTError) -> DecoderFamily {
        guard let family = all.first(where: { $0.modelTypes.contains(configuration.modelType) }) else { throw configuration.unsupported("model_type", "…") }
        return family
    }

    /// Mixtral's module was renamed in transformers 5; files have either.
    static func moduleName(_ name: String) -> String {
        let parts = name.split(separator: ".", omittingEmptySubsequences: false)
        guard parts.contains("block_sparse_moe") else { return name }
        return parts.map { $0 == "block_sparse_moe" ? "mlp" : $0 }.joined(separator: ".")
    }
}
