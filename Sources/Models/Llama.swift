package import Autograd
package import Platform
internal import Tensors

/// Llama (arXiv:2302.13971) and the families that differ from it by a switch: Mistral (sliding window), Qwen2 (biases),
/// Qwen3 (norms on queries and keys), SmolLM. After transformers' `modeling_llama.py` and its relatives.
///
///     x ← x + o(attention(rope(q(n)), rope(k(n)), v(n)))    n = norm(x)
///     x ← x + down(silu(gate(n))·up(n))                     n = norm(x)
package final class Llama: Architecture {
    package static let modelTypes = ["llama", "mistral", "qwen2", "qwen3"]

    private let embedding: Embedding
    private let blocks: [LlamaBlock]
    private let norm: RMSNorm
    private let decoderHead: DecoderHead
    private let rotary: RotaryTable
    package let cacheShape: CacheShape?

    package init(_ configuration: ModelConfiguration, _ build: LayerBuilder) throws(PEFTError) {
        let sizes = try LlamaSizes(configuration)
        rotary = try RotaryTable(build.engine, dimension: sizes.headSize, configuration)
        build.ignore { $0.hasSuffix(".rotary_emb.inv_freq") }
        embedding = try build.embedding("model.embed_tokens", try configuration.size("vocab_size"), sizes.hiddenSize)
        var blocks: [LlamaBlock] = []
        for layer in 0..<sizes.layerCount { blocks.append(try LlamaBlock(layer, sizes, rotary, build)) }
        self.blocks = blocks
        norm = try build.rmsNorm("model.norm", sizes.hiddenSize, epsilon: sizes.epsilon)
        decoderHead = try DecoderHead(configuration, build, embedding: embedding, hiddenSize: sizes.hiddenSize)
        cacheShape = CacheShape(
            layerCount: sizes.layerCount, keyValueHeads: sizes.keyValueHeads, headSize: sizes.headSize,
            maximumLength: try configuration.size("max_position_embeddings", or: 2048), rotary: rotary)
    }

    package var blockList: (name: String, count: Int)? { ("model.layers", blocks.count) }
    package var task: ModelTask { decoderHead.task }
    package var head: Linear? { task == .causalLM ? decoderHead.linear : nil }

    package func hidden(_ input: ModelInput, _ context: ForwardContext) throws(PEFTError) -> Variable {
        var x = try input.embedded(by: embedding, context)
        for (number, context) in try context.runs(of: blocks.count) {
            let block = blocks[number]
            if context.recomputesBlocks {
                x = try context.tape.recomputed([x]) { (tape, inputs) throws(PEFTError) in try block(inputs[0], context.on(tape)) }
            } else {
                x = try block(consume x, context)
            }
        }
        return try norm(x, context)
    }

    package func logits(_ hidden: Variable, of input: ModelInput, rows: LogitRows, _ context: ForwardContext) throws(PEFTError) -> Variable {
        try decoderHead(hidden, of: input, rows: rows, context)
    }
}

/// The numbers of a configuration.
private struct LlamaSizes {
    let hiddenSize: Int
    let layerCount: Int
    let heads: Int
    let keyValueHeads: Int
    let headSize: Int
    let intermediateSize: Int
    let epsilon: Double
    let activation: ActivationKind
    let attentionBias: LayerBuilder.Bias
    let outputBias: LayerBuilder.Bias
    let feedForwardBias: LayerBuilder.Bias
    let normsQueriesAndKeys: Bool
    /// Per layer; 0: none.
    let windows: [Int]

    init(_ configuration: ModelConfiguration) throws(PEFTError) {
        hiddenSize = try configuration.size("hidden_size")
        layerCount = try configuration.size("num_hidden_layers", most: 4096)
        heads = try configuration.size("num_attention_heads")
        keyValueHeads = try configuration.size("num_key_value_heads", or: heads)
        headSize = try configuration.size("head_dim", or: hiddenSize / heads, most: 8192)
        intermediateSize = try configuration.size("intermediate_size")
        epsilon = try configuration.number("rms_norm_eps", or: 1e-6)
        activation = try ActivationKind("hidden_act", of: configuration, or: "silu")
        guard heads % keyValueHeads == 0 else {
            throw PEFTError(.format, "\(configuration.origin): \(heads) attention heads cannot share \(keyValueHeads) key-value heads")
        }
        let family = configuration.modelType
        // Qwen2 has biases on queries, keys and values without saying so.
        attentionBias = family == "qwen2" ? .required : try configuration.flag("attention_bias", or: false) ? .required : .none
        outputBias = family == "qwen2" ? .none : attentionBias
        feedForwardBias = try configuration.flag("mlp_bias", or: false) ? .required : .none
        normsQueriesAndKeys = family == "qwen3"
        windows = try LlamaSizes.windows(configuration, layerCount)
    }

    /// Mistral: `sliding_window` on all layers. Qwen: on those that `layer_types` names, or from `max_window_layers` on.
    private static func windows(_ configuration: ModelConfiguration, _ layerCount: Int) throws(PEFTError) -> [Int] {
        let none = Array(repeating: 0, count: layerCount)
        let isQwen = configuration.modelType.hasPrefix("qwen")
        let hasWindow = try configuration.flag("use_sliding_window", or: configuration.modelType == "mistral")
        guard configuration.modelType == "mistral" || isQwen && hasWindow, let window = try configuration.optionalSize("sliding_window") else { return none }
        if let types = try configuration.texts("layer_types") {
            guard types.count == layerCount, types.allSatisfy({ ["full_attention", "sliding_attention"].contains($0) }) else {
                throw configuration.unsupported("layer_types", "full_attention and sliding_attention, one for each of the \(layerCount) layers")
            }
            return types.map { $0 == "sliding_attention" ? window : 0 }
        }
        let first = isQwen ? configuration.json["max_window_layers"]?.intValue ?? 28 : 0
        return (0..<layerCount).map { $0 >= first ? window : 0 }
    }
}

/// One layer of the decoder.
private final class LlamaBlock: Sendable {
    private let query: Linear, key: Linear, value: Linear, output: Linear
    private let queryNorm: RMSNorm?, keyNorm: RMSNorm?
    private let gate: Linear, up: Linear, down: Linear
    private let inputNorm: RMSNorm, attentionNorm: RMSNorm
    private let attention: SelfAttention
    private let activation: ActivationKind
    private let rotary: RotaryTable

    init(_ layer: Int, _ sizes: LlamaSizes, _ rotary: RotaryTable, _ build: LayerBuilder) throws(PEFTError) {
        let name = "model.layers.\(layer)"
        let (hidden, queries, keys) = (sizes.hiddenSize, sizes.heads * sizes.headSize, sizes.keyValueHeads * sizes.headSize)
        query = try build.linear(name + ".self_attn.q_proj", hidden, queries, bias: sizes.attentionBias)
        key = try build.linear(name + ".self_attn.k_proj", hidden, keys, bias: sizes.attentionBias)
        value = try build.linear(name + ".self_attn.v_proj", hidden, keys, bias: sizes.attentionBias)
        output = try build.linear(name + ".self_attn.o_proj", queries, hidden, bias: sizes.outputBias)
        let norms = sizes.normsQueriesAndKeys
        queryNorm = norms ? try build.rmsNorm(name + ".self_attn.q_norm", sizes.headSize, epsilon: sizes.epsilon) : nil
        keyNorm = norms ? try build.rmsNorm(name + ".self_attn.k_norm", sizes.headSize, epsilon: sizes.epsilon) : nil
        gate = try build.linear(name + ".mlp.gate_proj", hidden, sizes.intermediateSize, bias: sizes.feedForwardBias)
        up = try build.linear(name + ".mlp.up_proj", hidden, sizes.intermediateSize, bias: sizes.feedForwardBias)
        down = try build.linear(name + ".mlp.down_proj", sizes.intermediateSize, hidden, bias: sizes.feedForwardBias)
        inputNorm = try build.rmsNorm(name + ".input_layernorm", hidden, epsilon: sizes.epsilon)
        attentionNorm = try build.rmsNorm(name + ".post_attention_layernorm", hidden, epsilon: sizes.epsilon)
        attention = SelfAttention(
            layer: layer, heads: sizes.heads, keyValueHeads: sizes.keyValueHeads, headSize: sizes.headSize, window: sizes.windows[layer])
        activation = sizes.activation
        self.rotary = rotary
    }

    func callAsFunction(_ x: consuming Variable, _ context: ForwardContext) throws(PEFTError) -> Variable {
        let tape = context.tape
        let attended = try attend(try inputNorm(x, context), context)
        let middle = try tape.add(x, attended)
        let normed = try attentionNorm(middle, context)
        let product = try tape.glu(try gate(normed, context), try up(normed, context), activation)
        return try tape.add(middle, try down(product, context))
    }

    private func attend(_ x: Variable, _ context: ForwardContext) throws(PEFTError) -> Variable {
        let q = try rotated(try normed(try query(x, context), queryNorm, context), attention.heads, context)
        let k = try rotated(try normed(try key(x, context), keyNorm, context), attention.keyValueHeads, context)
        return try output(try attention(q, k, try value(x, context), context), context)
    }

    /// Each head by itself.
    private func normed(_ x: consuming Variable, _ norm: RMSNorm?, _ context: ForwardContext) throws(PEFTError) -> Variable {
        guard let norm else { return x }
        let shape = x.shape
        let heads = try context.tape.reshaped(x, [x.value.count / attention.headSize, attention.headSize])
        return try context.tape.reshaped(try norm(heads, context), shape)
    }

    private func rotated(_ x: consuming Variable, _ heads: Int, _ context: ForwardContext) throws(PEFTError) -> Variable {
        let (cos, sin) = try rotary.table(positions: context.positionCount)
        return try context.tape.rope(x, heads: heads, headDim: attention.headSize, rotary: rotary.dimension, cos: cos, sin: sin, positions: context.positions)
    }
}
