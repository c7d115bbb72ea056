package import Autograd
package import Platform
internal import Tensors

/// GPT-2 (Radford et al. 2019), after transformers' `modeling_gpt2.py`: learned positions, LayerNorm before each half of a
/// block, one projection for queries, keys and values, weights stored `[in, out]` (Conv1D).
package final class GPT2: Architecture {
    package static let modelTypes = ["gpt2"]

    private let tokens: Embedding
    private let places: Embedding
    private let blocks: [GPT2Block]
    private let norm: LayerNorm
    private let decoderHead: DecoderHead
    package let cacheShape: CacheShape?
    package let attentionNames: [String]

    package init(_ configuration: ModelConfiguration, _ build: LayerBuilder) throws(PEFTError) {
        let hidden = try configuration.size("n_embd", "hidden_size")
        let heads = try configuration.size("n_head", "num_attention_heads")
        let positions = try configuration.size("n_positions", "max_position_embeddings")
        guard hidden % heads == 0 else { throw PEFTError(.format, "\(configuration.origin): n_embd \(hidden) does not divide into \(heads) heads") }
        try configuration.require("add_cross_attention", .bool(false))
        try configuration.require("scale_attn_weights", .bool(true))
        try configuration.require("scale_attn_by_inverse_layer_idx", .bool(false))
        build.ignore { $0.hasSuffix(".attn.bias") || $0.hasSuffix(".attn.masked_bias") }  // masks of older checkpoints
        let prefix = DecoderHead.prefix(configuration, "transformer.", usual: "transformer.", build)
        tokens = try build.embedding(prefix + "wte", try configuration.size("vocab_size"), hidden)
        places = try build.embedding(prefix + "wpe", positions, hidden)
        var blocks: [GPT2Block] = []
        for layer in 0..<(try configuration.size("n_layer", "num_hidden_layers", most: 4096)) { blocks.append(try GPT2Block(layer, "\(prefix)h.\(layer)", hidden, heads, configuration, build)) }
        self.blocks = blocks
        attentionNames = blocks.indices.map { "\(prefix)h.\($0).attn" }
        norm = try build.layerNorm(prefix + "ln_f", hidden, epsilon: try configuration.number("layer_norm_epsilon", or: 1e-5))
        decoderHead = try DecoderHead(configuration, build, embedding: tokens, hiddenSize: hidden, perToken: "classifier")
        cacheShape = CacheShape(layerCount: blocks.count, keyValueHeads: heads, headSize: hidden / heads, maximumLength: positions, rotary: nil)
    }

    package var blockCount: Int { blocks.count }
    package var joins: [BlockPlace] { blocks.flatMap { [$0.places.attention, $0.places.output] } }
    package var task: ModelTask { decoderHead.task }
    package var head: Linear? { decoderHead.languageHead }

    package func hidden(_ input: ModelInput, _ context: ForwardContext) throws(PEFTError) -> Variable {
        guard context.positionCount <= places.count else {
            throw PEFTError(.argument, "position \(context.positionCount - 1); this model's are 0 to \(places.count - 1)")
        }
        var x = try context.entered(try context.tape.add(try input.embedded(by: tokens, context), try places(context.positions, context)))
        for (number, block) in blocks.enumerated() {
            x = try context.block(number, consume x) { (x, _, context) throws(PEFTError) in try block(x, context) }
        }
        return try norm(x, context)
    }

    package func logits(_ hidden: Variable, of input: ModelInput, rows: LogitRows, _ context: ForwardContext) throws(PEFTError) -> Variable {
        try decoderHead(hidden, of: input, rows: rows, context)
    }
}

/// One layer of the decoder.
private final class GPT2Block: KeyProjection, Sendable {
    private let attentionNorm: LayerNorm, projection: Linear, attentionOutput: Linear
    private let feedForwardNorm: LayerNorm, expansion: Linear, contraction: Linear
    private let attention: SelfAttention
    private let activation: ActivationKind
    let places: (attention: BlockPlace, output: BlockPlace)

    init(_ layer: Int, _ name: String, _ hidden: Int, _ heads: Int, _ configuration: ModelConfiguration, _ build: LayerBuilder) throws(PEFTError) {
        let epsilon = try configuration.number("layer_norm_epsilon", or: 1e-5)
        let inner = try configuration.size("n_inner", or: 4 * hidden)
        places = (BlockPlace(.attention, layer, name + ".attention_adapters"), BlockPlace(.output, layer, name + ".output_adapters"))
        attentionNorm = try build.layerNorm(name + ".ln_1", hidden, epsilon: epsilon)
        projection = try build.linear(name + ".attn.c_attn", hidden, 3 * hidden, bias: .required, transposed: true)
        attentionOutput = try build.linear(name + ".attn.c_proj", hidden, hidden, bias: .required, transposed: true)
        feedForwardNorm = try build.layerNorm(name + ".ln_2", hidden, epsilon: epsilon)
        expansion = try build.linear(name + ".mlp.c_fc", hidden, inner, bias: .required, transposed: true)
        contraction = try build.linear(name + ".mlp.c_proj", inner, hidden, bias: .required, transposed: true)
        attention = SelfAttention(layer: layer, heads: heads, keyValueHeads: heads, headSize: hidden / heads)
        activation = try ActivationKind("activation_function", of: configuration, or: "gelu_new")
    }

    func callAsFunction(_ x: consuming Variable, _ context: ForwardContext) throws(PEFTError) -> Variable {
        let tape = context.tape
        let width = attention.heads * attention.headSize
        let normed = try attentionNorm(x, context)
        let parts = try tape.splitColumns(try projection(normed, context), [width, width, width])
        var attended = try attentionOutput(try attention(parts[0], parts[1], parts[2], of: normed, context), context)
        // PEFT's prompts beside GPT-2's attention are not projected.
        if let beside = try attention.beside(parts[0], self, context) { attended = try tape.add(attended, beside) }
        let middle = try context.join(attended, to: x, at: places.attention)
        let inner = try tape.activation(try expansion(try feedForwardNorm(middle, context), context), activation)
        return try context.join(try contraction(inner, context), to: middle, at: places.output)
    }

    func keysAndValues(_ x: Variable, _ tape: Tape) throws(PEFTError) -> (keys: Variable, values: Variable) {
        let width = attention.heads * attention.headSize
        let parts = try tape.splitColumns(try projection(x, nil, tape), [width, width, width])
        return (parts[1], parts[2])
    }
}
