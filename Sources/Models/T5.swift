package import Autograd
package import Platform
internal import Glibc
internal import Tensors

/// T5 (arXiv:1910.10683), its version 1.1 with gated feed-forward, Flan-T5 and mT5, after transformers' `modeling_t5.py`: an
/// encoder and a decoder of pre-norm blocks without biases, whose attention adds a learned value for the distance of query
/// and key and does not scale.
package final class T5: Architecture {
    package static let modelTypes = ["t5", "mt5"]

    private let shared: Embedding
    private let encoder: T5Stack
    /// nil: only the encoder is there.
    private let decoder: T5Stack?
    private let finish: Finish
    private let dropout: Float
    package let task: ModelTask
    package let cacheShape: CacheShape?

    /// What comes after the last block.
    private enum Finish {
        case states
        /// `lm_head`, on states times `scale`.
        case language(Linear, scale: Float)
        case tokens(Linear)
        /// `output(tanh(dense(x)))` of the state at the last end-of-sequence token of the source.
        case text(dense: Linear, output: Linear, endID: Int32)
    }

    package init(_ configuration: ModelConfiguration, _ build: LayerBuilder) throws(PEFTError) {
        let name = configuration.headClass ?? "T5ForConditionalGeneration"
        let endings = ["ForConditionalGeneration", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "Model"]
        guard endings.contains(where: { name.hasSuffix($0) }) else { throw configuration.unsupported("architectures", endings.map { "…\($0)" }.joined(separator: ", ")) }
        let hidden = try configuration.size("d_model")
        let isWhole = !name.hasSuffix("EncoderModel") && !name.hasSuffix("ForTokenClassification")
        let prefix = name.hasSuffix("ForSequenceClassification") || name.hasSuffix("ForTokenClassification") ? "transformer." : ""
        dropout = Float(try configuration.number("dropout_rate", or: 0.1))
        try configuration.warnOfAttentionDropout("dropout_rate", build)
        // Copies of `shared`, and a table of the cross-attention that the first T5 files hold and nothing reads.
        build.ignore { $0.hasSuffix("coder.embed_tokens.weight") || $0.hasSuffix("EncDecAttention.relative_attention_bias.weight") }
        shared = try build.embedding(prefix + "shared", try configuration.size("vocab_size"), hidden)
        let blocks = try configuration.size("num_layers", most: 4096)
        encoder = try T5Stack(prefix + "encoder", blocks, isDecoder: false, configuration, build)
        decoder = isWhole ? try T5Stack(prefix + "decoder", try configuration.size("num_decoder_layers", or: blocks, most: 4096), isDecoder: true, behind: blocks, configuration, build) : nil
        if name.hasSuffix("ForConditionalGeneration") {
            task = .conditionalGeneration
            let isTied = try configuration.flag("tie_word_embeddings", or: true)
            // transformers 5 says by itself whether states are scaled; before it, tied weights meant it.
            let scales = try configuration.flag("scale_decoder_outputs", or: isTied)
            let hasOwn = !isTied && build.has("lm_head.weight")
            finish = .language(try build.head("lm_head", tiedTo: hasOwn ? nil : shared, hidden, shared.count), scale: scales ? 1 / Float(hidden).squareRoot() : 1)
        } else if name.hasSuffix("ForSequenceClassification") {
            task = .classification
            let dense = try build.linear("classification_head.dense", hidden, hidden, bias: .required)
            let output = try build.linear("classification_head.out_proj", hidden, try configuration.labelCount(), bias: .required)
            finish = .text(dense: dense, output: output, endID: Int32(clamping: configuration.json["eos_token_id"]?.intValue ?? 1))
        } else if name.hasSuffix("ForTokenClassification") {
            task = .tokenClassification
            finish = .tokens(try build.linear("classifier", hidden, try configuration.labelCount(), bias: .required))
        } else if name.hasSuffix("ForQuestionAnswering") {
            task = .questionAnswering
            finish = .tokens(try build.linear("qa_outputs", hidden, 2, bias: .required))
        } else {
            task = .features
            finish = .states
        }
        cacheShape = if let decoder, case .language = finish {
            CacheShape(layerCount: decoder.blocks.count, keyValueHeads: decoder.sizes.heads, headSize: decoder.sizes.headSize, maximumLength: T5.longest, rotary: nil)
        } else {
            nil
        }
    }

    /// Distances have no limit of their own; tables of them should.
    private static let longest = 1 << 16

    package var readsSource: Bool { decoder != nil }
    package var head: Linear? { if case .language(let linear, _) = finish { linear } else { nil } }

    package var joins: [BlockPlace] { (encoder.blocks + (decoder?.blocks ?? [])).flatMap(\.places) }
    package var blockCount: Int { max(encoder.blocks.count, decoder?.blocks.count ?? 0) }
    package func hidden(_ input: ModelInput, _ context: ForwardContext) throws(PEFTError) -> Variable {
        guard context.length <= T5.longest else { throw PEFTError(.argument, "a text of \(context.length) tokens; this model reads at most \(T5.longest)") }
        guard let decoder else { return try run(encoder, input, context, states: nil) }
        return try run(decoder, input, context, states: context.caches.isEmpty ? try encoded(context) : nil)
    }

    package func readSource(into cache: KeyValueCache, _ context: ForwardContext) throws(PEFTError) {
        guard let decoder else { throw PEFTError(.internal, "a source without a decoder") }
        let states = try encoded(context)
        for (layer, block) in decoder.blocks.enumerated() {
            guard let across = block.across else { continue }
            try cache.setSource(try across.key(states, context).value, try across.value(states, context).value, layer: layer)
        }
    }

    /// What the encoder makes of the source.
    private func encoded(_ context: ForwardContext) throws(PEFTError) -> Variable {
        guard let source = context.source else { throw PEFTError(.argument, "this model reads a source (input_ids) beside what it writes") }
        return try run(encoder, source.input, context.onSource(source), states: nil)
    }

    private func run(_ stack: T5Stack, _ input: ModelInput, _ context: ForwardContext, states: Variable?) throws(PEFTError) -> Variable {
        let embedded = try input.embedded(by: shared, context)
        return try stack(try context.tape.dropout(stack === encoder ? try context.entered(embedded) : embedded, dropout), states: states, context)
    }

    package func logits(_ hidden: Variable, of input: ModelInput, rows: LogitRows, _ context: ForwardContext) throws(PEFTError) -> Variable {
        let tape = context.tape
        switch finish {
        case .states: return hidden
        case .tokens(let linear): return try linear(hidden, context, as: .f32)
        case .language(let linear, let scale):
            var states = hidden
            if case .last = rows { states = try tape.gatherRows(states, (0..<context.batch).map { Int32(clamping: ($0 + 1) * context.length - 1) }) }
            return try linear(scale == 1 ? states : try tape.scaled(states, by: scale), context, as: .f32)
        case .text(let dense, let output, let endID):
            let state = try tape.gatherRows(hidden, try ends(endID, context))
            return try output(try tape.activation(try dense(state, context), .tanh), context, as: .f32)
        }
    }

    /// The row of each sample's last end-of-sequence token, of which all must have the same number.
    private func ends(_ endID: Int32, _ context: ForwardContext) throws(PEFTError) -> [Int32] {
        let length = context.length
        if case .prompted = context.source?.input { throw PEFTError(.unsupported, "virtual tokens in front of a T5 classifier's text, which reads the state at an id") }
        guard case .ids(let ids) = context.source?.input, ids.count == context.batch * length, !context.tape.engine.isPlanning else {
            return (0..<context.batch).map { Int32(clamping: ($0 + 1) * length - 1) }
        }
        let places = unsafe ids.withInt32s { ids in (0..<context.batch).map { sample in (0..<length).filter { unsafe ids[sample * length + $0] == endID } } }
        guard let count = places.first?.count, count > 0, places.allSatisfy({ $0.count == count }) else {
            throw PEFTError(.argument, "each text must have the same number of end-of-sequence tokens (\(endID)), and at least one; there are \(places.map(\.count))")
        }
        return places.enumerated().map { Int32(clamping: $0 * length + ($1.last ?? 0)) }
    }
}

/// The numbers of a configuration.
private struct T5Sizes {
    let hiddenSize: Int, innerSize: Int
    let heads: Int, headSize: Int
    let epsilon: Double
    let activation: ActivationKind
    let isGated: Bool
    let dropout: Float
    let buckets: Int, maximumDistance: Int

    init(_ configuration: ModelConfiguration) throws(PEFTError) {
        hiddenSize = try configuration.size("d_model")
        innerSize = try configuration.size("d_ff")
        heads = try configuration.size("num_heads")
        headSize = try configuration.size("d_kv", most: 8192)
        epsilon = try configuration.number("layer_norm_epsilon", or: 1e-6)
        dropout = Float(try configuration.number("dropout_rate", or: 0.1))
        buckets = try configuration.size("relative_attention_num_buckets", or: 32, most: 1 << 16)
        maximumDistance = try configuration.size("relative_attention_max_distance", or: 128)
        guard buckets % 4 == 0, maximumDistance > buckets / 2 else {
            throw PEFTError(.format, "\(configuration.origin): \(buckets) buckets for distances up to \(maximumDistance); a multiple of 4 below twice the distance is needed")
        }
        // "relu", "gated-gelu", "gated-silu": the GELU of version 1.1 is GPT-2's.
        let kind = try configuration.text("feed_forward_proj", or: "relu")
        isGated = kind.hasPrefix("gated-")
        var names = ModelConfiguration(["feed_forward_proj": .string(isGated ? String(kind.dropFirst("gated-".count)) : kind)], origin: configuration.origin)
        if kind == "gated-gelu" { names = ModelConfiguration(["feed_forward_proj": .string("gelu_new")], origin: configuration.origin) }
        activation = try ActivationKind("feed_forward_proj", of: names)
    }
}

/// The encoder, or the decoder: blocks that share one table of distances.
private final class T5Stack: Sendable {
    let blocks: [T5Block]
    let sizes: T5Sizes
    private let norm: RMSNorm
    private let isDecoder: Bool
    /// `[buckets, heads]`
    private let distances: Embedding

    init(_ name: String, _ count: Int, isDecoder: Bool, behind encoderCount: Int = 0, _ configuration: ModelConfiguration, _ build: LayerBuilder) throws(PEFTError) {
        let sizes = try T5Sizes(configuration)
        var blocks: [T5Block] = []
        var distances: Embedding?
        for layer in 0..<count {
            let block = try T5Block(layer, "\(name).block.\(layer)", sizes, isDecoder: isDecoder, behind: encoderCount, build) { (attention) throws(PEFTError) in
                if distances == nil { distances = try build.embedding(attention + ".relative_attention_bias", sizes.buckets, sizes.heads) }
            }
            blocks.append(block)
        }
        guard let distances else { throw PEFTError(.internal, "a stack without blocks") }
        (self.blocks, self.sizes, self.distances, self.isDecoder) = (blocks, sizes, distances, isDecoder)
        norm = try build.rmsNorm(name + ".final_layer_norm", sizes.hiddenSize, epsilon: sizes.epsilon)
    }

    /// - Parameter states: of the encoder; nil: `self` is the encoder, or the caches have what was made of them.
    func callAsFunction(_ x: consuming Variable, states: Variable?, _ context: ForwardContext) throws(PEFTError) -> Variable {
        var x = x
        let bias = RelativeBias(values: try values(context), heads: sizes.heads, maximumDistance: sizes.maximumDistance, isDirected: isDecoder)
        // A table that trains is one of the block's inputs: a recomputed block has variables of its own.
        let (isLearned, hasStates) = (bias.values.needsGradient, states != nil)
        for (number, block) in blocks.enumerated() {
            x = try context.block(number, consume x, (states.map { [$0] } ?? []) + (isLearned ? [bias.values] : [])) { (x, others, context) throws(PEFTError) in
                let own = if isLearned, let values = others.last { bias.on(values) } else { bias }
                return try block(x, states: hasStates ? others.first : nil, own, context)
            }
        }
        return try context.tape.dropout(try norm(x, context), sizes.dropout)
    }

    /// The table's values with whatever adapts it, f32.
    private func values(_ context: ForwardContext) throws(PEFTError) -> Variable {
        let tape = context.tape
        guard context.isCommon(at: distances) else {
            throw PEFTError(.unsupported, "'\(distances.name)' is adapted for some samples of a batch and not for others")
        }
        guard let adaptation = context.common(at: distances) else {
            return Variable(distances.weight.dtype == .f32 ? distances.weight : try distances.weight.converted(to: .f32, tape.engine))
        }
        if adaptation.hooks.isEmpty, let own = context.common(at: distances).own("weight", tape) { return own }
        let all = try Tensor(tape.engine, (0..<Int32(clamping: sizes.buckets)).map { $0 }, shape: [sizes.buckets])
        return try tape.cast(try distances(all, context), to: .f32)
    }
}

/// One layer: attention over itself, over the encoder's states (decoder), feed-forward; a norm before each.
private final class T5Block: Sendable {
    private let attention: T5Attention
    let across: T5Attention?
    private let norm: RMSNorm
    private let gate: Linear?, up: Linear, down: Linear
    private let activation: ActivationKind
    private let dropout: Float
    /// Of attention, of attention over the source, of the feed-forward.
    let places: [BlockPlace]

    /// - Parameter table: makes the table of distances, with the name of the attention, where the module tree has it.
    init(_ layer: Int, _ name: String, _ sizes: T5Sizes, isDecoder: Bool, behind encoderCount: Int, _ build: LayerBuilder, table: (_ attention: String) throws(PEFTError) -> Void) throws(PEFTError) {
        let number = layer + (isDecoder ? encoderCount : 0)
        places = [BlockPlace(.attention, number, name + ".layer.0")] + (isDecoder ? [BlockPlace(.cross, number, name + ".layer.1")] : [])
            + [BlockPlace(.output, number, name + (isDecoder ? ".layer.2" : ".layer.1"))]
        attention = try T5Attention(layer, name + ".layer.0", "SelfAttention", sizes, isCausal: isDecoder, build, table)
        across = isDecoder ? try T5Attention(layer, name + ".layer.1", "EncDecAttention", sizes, isCausal: false, build) { (_) throws(PEFTError) in } : nil
        let last = name + (isDecoder ? ".layer.2" : ".layer.1")
        let inner = last + ".DenseReluDense"
        gate = sizes.isGated ? try build.linear(inner + ".wi_0", sizes.hiddenSize, sizes.innerSize) : nil
        up = try build.linear(inner + (sizes.isGated ? ".wi_1" : ".wi"), sizes.hiddenSize, sizes.innerSize)
        down = try build.linear(inner + ".wo", sizes.innerSize, sizes.hiddenSize)
        norm = try build.rmsNorm(last + ".layer_norm", sizes.hiddenSize, epsilon: sizes.epsilon)
        (activation, dropout) = (sizes.activation, sizes.dropout)
    }

    func callAsFunction(_ x: consuming Variable, states: Variable?, _ bias: RelativeBias, _ context: ForwardContext) throws(PEFTError) -> Variable {
        let tape = context.tape
        let computed = try tape.dropout(try attention(x, bias, context), dropout)
        var x = try context.join(computed, to: x, at: places[0])
        if let across {
            let computed = try tape.dropout(try across(x, states: states, context), dropout)
            x = try context.join(computed, to: x, at: places[1])
        }
        let normed = try norm(x, context)
        let inner = if let gate {
            try tape.glu(try gate(normed, context), try up(normed, context), activation)
        } else {
            try tape.activation(try up(normed, context), activation)
        }
        return try context.join(try tape.dropout(try down(try tape.dropout(inner, dropout), context), dropout), to: x, at: places[places.count - 1])
    }
}

/// Attention with its norm in front: over the sequence itself, or over the encoder's states.
private final class T5Attention: Sendable {
    private let query: Linear, output: Linear
    let key: Linear, value: Linear
    private let norm: RMSNorm
    private let attention: SelfAttention

    init(
        _ layer: Int, _ name: String, _ module: String, _ sizes: T5Sizes, isCausal: Bool, _ build: LayerBuilder, _ table: (_ attention: String) throws(PEFTError) -> Void
    ) throws(PEFTError) {
        let (width, module) = (sizes.heads * sizes.headSize, "\(name).\(module)")
        query = try build.linear(module + ".q", sizes.hiddenSize, width)
        key = try build.linear(module + ".k", sizes.hiddenSize, width)
        value = try build.linear(module + ".v", sizes.hiddenSize, width)
        output = try build.linear(module + ".o", width, sizes.hiddenSize)
        try table(module)
        norm = try build.rmsNorm(name + ".layer_norm", sizes.hiddenSize, epsilon: sizes.epsilon)
        attention = SelfAttention(layer: layer, heads: sizes.heads, keyValueHeads: sizes.heads, headSize: sizes.headSize, isCausal: isCausal, scale: 1)
    }

    func callAsFunction(_ x: Variable, _ bias: RelativeBias, _ context: ForwardContext) throws(PEFTError) -> Variable {
        let normed = try norm(x, context)
        return try output(try attention(try query(normed, context), try key(normed, context), try value(normed, context), bias: bias, context), context)
    }

    func callAsFunction(_ x: Variable, states: Variable?, _ context: ForwardContext) throws(PEFTError) -> Variable {
        let q = try query(try norm(x, context), context)
        guard let states else { return try output(try attention.overCachedSource(q, context), context) }
        return try output(try attention.overSource(q, try key(states, context), try value(states, context), context), context)
    }
}
