package import Autograd
package import Platform
internal import Tensors

/// Whisper (arXiv:2212.04356), after transformers' `modeling_whisper.py`: an encoder that hears a log-mel spectrogram through two
/// convolutions, and a decoder that writes what was said; blocks that normalise first, positions added to what the blocks read.
package final class Whisper: Architecture {
    package static let modelTypes = ["whisper"]

    /// The second has a stride of 2: one position for two frames.
    private let ears: [Convolution]
    private let heard: Embedding
    private let words: Embedding
    private let places: Embedding
    private let encoder: WhisperStack
    private let decoder: WhisperStack
    package let head: Linear?
    private let dropout: Float

    package init(_ configuration: ModelConfiguration, _ build: LayerBuilder) throws(PEFTError) {
        let name = configuration.headClass ?? "WhisperForConditionalGeneration"
        let isWriting = name.hasSuffix("ForConditionalGeneration")
        guard isWriting || name.hasSuffix("Model") else { throw configuration.unsupported("architectures", "…ForConditionalGeneration, …Model") }
        let hidden = try configuration.size("d_model")
        let prefix = isWriting || build.has("model.encoder.conv1.weight") ? "model." : ""
        dropout = Float(try configuration.number("dropout", or: 0))
        try configuration.warnOfAttentionDropout("attention_dropout", build)
        let (channels, frames) = (try configuration.size("num_mel_bins", or: 80), try configuration.size("max_source_positions", or: 1500, most: 1 << 20))
        ears = try [(channels, 1), (hidden, 2)].enumerated().map { (number, sizes) throws(PEFTError) in
            let geometry = PatchGeometry(kernel: [3], stride: [sizes.1], padding: [1], dilation: [1])
            return try build.convolution("\(prefix)encoder.conv\(number + 1)", sizes.0, hidden, geometry, bias: .required)
        }
        heard = try build.embedding(prefix + "encoder.embed_positions", frames, hidden)
        encoder = try WhisperStack(prefix + "encoder", behind: nil, hidden, configuration, build)
        words = try build.embedding(prefix + "decoder.embed_tokens", try configuration.size("vocab_size"), hidden)
        places = try build.embedding(prefix + "decoder.embed_positions", try configuration.size("max_target_positions", or: 448, most: 1 << 20), hidden)
        decoder = try WhisperStack(prefix + "decoder", behind: encoder.blocks.count, hidden, configuration, build)
        let isTied = try configuration.flag("tie_word_embeddings", or: true)
        head = isWriting ? try build.head("proj_out", tiedTo: isTied ? words : nil, hidden, words.count) : nil
    }

    package var task: ModelTask { head == nil ? .features : .conditionalGeneration }
    package var readsSource: Bool { true }
    package var sourceShape: [Int]? { [ears[0].inputChannels, 2 * heard.count] }
    package var blockCount: Int { max(encoder.blocks.count, decoder.blocks.count) }
    package var joins: [BlockPlace] { (encoder.blocks + decoder.blocks).flatMap(\.joins) }
    package var cacheShape: CacheShape? {
        head.map { _ in CacheShape(layerCount: decoder.blocks.count, keyValueHeads: decoder.heads, headSize: places.dimension / decoder.heads, maximumLength: places.count, rotary: nil) }
    }

    package func hidden(_ input: ModelInput, _ context: ForwardContext) throws(PEFTError) -> Variable {
        guard context.positionCount <= places.count else { throw PEFTError(.argument, "a text of \(context.positionCount) tokens; this model writes at most \(places.count)") }
        let tape = context.tape
        let sum = try tape.add(try input.embedded(by: words, context), try places(context.positions, context))
        return try decoder(try tape.dropout(sum, dropout), states: context.caches.isEmpty ? try encoded(context) : nil, context)
    }

    package func readSource(into cache: KeyValueCache, _ context: ForwardContext) throws(PEFTError) {
        let states = try encoded(context)
        for (layer, block) in decoder.blocks.enumerated() {
            guard let across = block.across else { continue }
            try cache.setSource(try across.key(states, context).value, try across.value(states, context).value, layer: layer)
        }
    }

    /// What the encoder makes of the recording.
    private func encoded(_ context: ForwardContext) throws(PEFTError) -> Variable {
        guard case .features(let frames)? = context.source?.input else { throw PEFTError(.argument, "this model hears recordings: 'input_features' are needed") }
        let (tape, count) = (context.tape, heard.count)
        guard Array(frames.shape.dropFirst()) == sourceShape else {
            throw PEFTError(.argument, "input_features has the shape \(frames.shape); [batch, \(ears[0].inputChannels), \(2 * count)] is needed (peft_model_preprocess makes it of samples)")
        }
        var (x, size) = (try tape.cast(frames, to: tape.precision.activation), [2 * count])
        for (number, convolution) in ears.enumerated() {
            (x, size) = try convolution(x, size: size, layout: number == 0 ? .channelsFirst : .channelsLast, context)
            x = try tape.activation(x, .gelu)
        }
        let inner = context.tokens(count)
        let positions = try Tensor(tape.engine, (0..<context.batch).flatMap { _ in 0..<Int32(clamping: count) }, shape: [context.batch * count])
        return try encoder(try tape.dropout(try tape.add(x, try heard(positions, inner)), dropout), states: nil, inner)
    }

    package func logits(_ hidden: Variable, of input: ModelInput, rows: LogitRows, _ context: ForwardContext) throws(PEFTError) -> Variable {
        guard let head else { return hidden }
        guard case .last = rows else { return try head(hidden, context, as: .f32) }
        return try head(try context.tape.gatherRows(hidden, (0..<context.batch).map { Int32(clamping: ($0 + 1) * context.length - 1) }), context, as: .f32)
    }
}

/// The encoder, or the decoder, with the norm behind its blocks.
private final class WhisperStack: Sendable {
    let blocks: [WhisperBlock]
    let heads: Int
    private let norm: LayerNorm

    /// - Parameter encoderCount: of a decoder: how many blocks its encoder has.
    init(_ name: String, behind encoderCount: Int?, _ hidden: Int, _ configuration: ModelConfiguration, _ build: LayerBuilder) throws(PEFTError) {
        let kind = encoderCount == nil ? "encoder" : "decoder"
        heads = try configuration.size("\(kind)_attention_heads")
        guard hidden % heads == 0 else { throw PEFTError(.format, "\(configuration.origin): d_model \(hidden) does not divide into \(heads) heads") }
        // Whole layers left out at random.
        guard try configuration.number("\(kind)_layerdrop", or: 0) == 0 else { throw configuration.unsupported("\(kind)_layerdrop", "0") }
        let inner = try configuration.size("\(kind)_ffn_dim")
        var blocks: [WhisperBlock] = []
        for layer in 0..<(try configuration.size("\(kind)_layers", most: 4096)) {
            blocks.append(try WhisperBlock(layer, "\(name).layers.\(layer)", behind: encoderCount, hidden, heads, inner, configuration, build))
        }
        self.blocks = blocks
        norm = try build.layerNorm(name + ".layer_norm", hidden, epsilon: 1e-5)
    }

    /// - Parameter states: of the encoder; nil: `self` is the encoder, or the caches have what was made of them.
    func callAsFunction(_ x: consuming Variable, states: Variable?, _ context: ForwardContext) throws(PEFTError) -> Variable {
        var x = x
        for (number, block) in blocks.enumerated() {
            x = try context.block(number, consume x, states.map { [$0] } ?? []) { (x, others, context) throws(PEFTError) in
                try block(x, states: others.first, context)
            }
        }
        return try norm(x, context)
    }
}

/// One layer:
///
///     x ← x + drop(attention(norm(x)))
///     x ← x + drop(attention over the encoder's states(norm(x)))     (decoder)
///     x ← x + drop(fc2(f(fc1(norm(x)))))
private final class WhisperBlock: Sendable {
    private let attention: WhisperAttention
    let across: WhisperAttention?
    private let expansion: Linear, contraction: Linear
    private let norm: LayerNorm
    private let activation: ActivationKind
    private let dropout: Float, innerDropout: Float
    let joins: [BlockPlace]

    init(
        _ layer: Int, _ name: String, behind encoderCount: Int?, _ hidden: Int, _ heads: Int, _ inner: Int, _ configuration: ModelConfiguration, _ build: LayerBuilder
    ) throws(PEFTError) {
        let number = layer + (encoderCount ?? 0)
        joins = [BlockPlace(.attention, number, name + ".attention_adapters")] + (encoderCount == nil ? [] : [BlockPlace(.cross, number, name + ".cross_attention_adapters")])
            + [BlockPlace(.output, number, name + ".output_adapters")]
        attention = try WhisperAttention(layer, name + ".self_attn", hidden, heads, isCausal: encoderCount != nil, build)
        across = encoderCount == nil ? nil : try WhisperAttention(layer, name + ".encoder_attn", hidden, heads, isCausal: false, build)
        expansion = try build.linear(name + ".fc1", hidden, inner, bias: .required)
        contraction = try build.linear(name + ".fc2", inner, hidden, bias: .required)
        norm = try build.layerNorm(name + ".final_layer_norm", hidden, epsilon: 1e-5)
        activation = try ActivationKind("activation_function", of: configuration, or: "gelu")
        dropout = Float(try configuration.number("dropout", or: 0))
        innerDropout = Float(try configuration.number("activation_dropout", or: 0))
    }

    func callAsFunction(_ x: consuming Variable, states: Variable?, _ context: ForwardContext) throws(PEFTError) -> Variable {
        let tape = context.tape
        let computed = try attention(x, context)
        var x = try context.join(try tape.dropout(computed, dropout), to: x, at: joins[0])
        if let across {
            let computed = try across(x, states: states, context)
            x = try context.join(try tape.dropout(computed, dropout), to: x, at: joins[1])
        }
        let inner = try tape.dropout(try tape.activation(try expansion(try norm(x, context), context), activation), innerDropout)
        return try context.join(try tape.dropout(try contraction(inner, context), dropout), to: x, at: joins[joins.count - 1])
    }
}

/// Attention with its norm in front: over the sequence itself, or over the encoder's states. Keys have no bias.
private final class WhisperAttention: Sendable {
    private let query: Linear, output: Linear
    let key: Linear, value: Linear
    private let norm: LayerNorm
    private let attention: SelfAttention

    init(_ layer: Int, _ name: String, _ hidden: Int, _ heads: Int, isCausal: Bool, _ build: LayerBuilder) throws(PEFTError) {
        key = try build.linear(name + ".k_proj", hidden, hidden)
        value = try build.linear(name + ".v_proj", hidden, hidden, bias: .required)
        query = try build.linear(name + ".q_proj", hidden, hidden, bias: .required)
        output = try build.linear(name + ".out_proj", hidden, hidden, bias: .required)
        norm = try build.layerNorm(name + "_layer_norm", hidden, epsilon: 1e-5)
        attention = SelfAttention(layer: layer, heads: heads, keyValueHeads: heads, headSize: hidden / heads, isCausal: isCausal)
    }

    func callAsFunction(_ x: Variable, _ context: ForwardContext) throws(PEFTError) -> Variable {
        let normed = try norm(x, context)
        return try output(try attention(try query(normed, context), try key(normed, context), try value(normed, context), context), context)
    }

    func callAsFunction(_ x: Variable, states: Variable?, _ context: ForwardContext) throws(PEFTError) -> Variable {
        let q = try query(try norm(x, context), context)
        guard let states else { return try output(try attention.overCachedSource(q, context), context) }
        return try output(try attention.overSource(q, try key(states, context), try value(states, context), context), context)
    }
}
