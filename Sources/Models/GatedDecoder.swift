package import Autograd
package import Platform
internal import Tensors

/// A decoder of blocks with rotary positions, RMSNorm and a gated feed-forward, which is what most language models are. The
/// families (`Llama.swift`, `Gemma.swift`, `Phi3.swift`, `Mixtral.swift`) are settings of it.
///
///     x ← x + o(attention(rope(q(n)), rope(k(n)), v(n)))    n = norm(x)
///     x ← x + down(f(gate(n))·up(n))                        n = norm(x)
package final class GatedDecoder: Architecture {
    package static let modelTypes = DecoderFamily.all.flatMap(\.modelTypes)

    package static func moduleName(_ name: String) -> String { DecoderFamily.moduleName(name) }

    private let embedding: Embedding
    private let embeddingScale: Float
    private let blocks: [GatedDecoderBlock]
    private let norm: RMSNorm
    private let decoderHead: DecoderHead
    private let listName: String
    package let cacheShape: CacheShape?
    package let attentionNames: [String]

    package init(_ configuration: ModelConfiguration, _ build: LayerBuilder) throws(PEFTError) {
        let settings = try DecoderFamily.of(configuration).settings(configuration, build.engine)
        let prefix = DecoderHead.prefix(configuration, settings.answersPrefix, build)
        listName = prefix + "layers"
        build.ignore { $0.hasSuffix(".rotary_emb.inv_freq") }
        embedding = try build.embedding(prefix + "embed_tokens", try configuration.size("vocab_size"), settings.hiddenSize)
        embeddingScale = settings.embeddingScale
        var blocks: [GatedDecoderBlock] = []
        for layer in 0..<settings.layerCount { blocks.append(try GatedDecoderBlock(layer, "\(listName).\(layer)", settings, build)) }
        self.blocks = blocks
        let listName = listName
        attentionNames = ["llama", "mistral"].contains(configuration.modelType) ? blocks.indices.map { "\(listName).\($0).self_attn" } : []
        norm = try build.rmsNorm(prefix + "norm", settings.hiddenSize, epsilon: settings.epsilon, offset: settings.normOffset)
        decoderHead = try DecoderHead(
            configuration, build, embedding: embedding, hiddenSize: settings.hiddenSize, perToken: "score", softcap: settings.logitSoftcap)
        let rotary = settings.layers.first?.rotary
        // Keys are turned back by one table when a full context is shifted.
        let isOneTable = settings.layers.allSatisfy { $0.rotary === rotary } && rotary?.border == nil
        cacheShape = CacheShape(
            layerCount: settings.layerCount, keyValueHeads: settings.keyValueHeads, headSize: settings.headSize,
            maximumLength: try configuration.size("max_position_embeddings", or: 2048), rotary: isOneTable ? rotary : nil)
    }

    package var blockList: (name: String, count: Int)? { (listName, blocks.count) }
    package var joins: [BlockPlace] { blocks.flatMap { [$0.places.attention, $0.places.output] } }
    package var task: ModelTask { decoderHead.task }
    package var head: Linear? { decoderHead.languageHead }

    package func hidden(_ input: ModelInput, _ context: ForwardContext) throws(PEFTError) -> Variable {
        var x = try context.entered(try input.embedded(by: embedding, scale: embeddingScale, context))
        let shadow = try context.shadow()
        var state = try shadow?.start(x, input, context)
        context.shadowStart = shadow.flatMap { shadow in state.map { ($0, shadow.lossWeight) } }
        for (number, run) in try context.runs(of: blocks.count).enumerated() {
            let block = blocks[run.block]
            if let shadow, let state { x = try shadow.injected(into: x, state, block: run.block, context.tape) }
            x = try run.context.block(number, consume x) { (x, _, context) throws(PEFTError) in try block(x, context) }
            if let shadow, let last = state { state = try shadow.updated(last, by: x, block: run.block, context.tape) }
        }
        return try norm(x, context)
    }

    package func logits(_ hidden: Variable, of input: ModelInput, rows: LogitRows, _ context: ForwardContext) throws(PEFTError) -> Variable {
        try decoderHead(hidden, of: input, rows: rows, context)
    }
}

/// One layer of the decoder.
private final class GatedDecoderBlock: Sendable {
    private let attention: GroupedAttention
    private let feedForward: any FeedForwardPart
    private let inputNorm: RMSNorm, middleNorm: RMSNorm
    /// Gemma 2 and 3 normalise what each half adds, too.
    private let attentionOutputNorm: RMSNorm?, outputNorm: RMSNorm?
    private let dropout: Float
    let places: (attention: BlockPlace, output: BlockPlace)

    init(_ layer: Int, _ name: String, _ settings: DecoderSettings, _ build: LayerBuilder) throws(PEFTError) {
        places = (BlockPlace(.attention, layer, name + ".attention_adapters"), BlockPlace(.output, layer, name + ".output_adapters"))
        func norm(_ module: String) throws(PEFTError) -> RMSNorm {
            try build.rmsNorm("\(name).\(module)", settings.hiddenSize, epsilon: settings.epsilon, offset: settings.normOffset)
        }
        attention = try GroupedAttention(layer, name + ".self_attn", settings, build)
        feedForward =
            if let experts = settings.experts {
                try MixtureOfExperts(name + ".mlp", settings, count: experts.count, chosen: experts.chosen, build)
            } else { try FeedForward(name + ".mlp", settings, build) }
        inputNorm = try norm("input_layernorm")
        if settings.normsOutputs {
            attentionOutputNorm = try norm("post_attention_layernorm")
            middleNorm = try norm("pre_feedforward_layernorm")
            outputNorm = try norm("post_feedforward_layernorm")
        } else {
            middleNorm = try norm("post_attention_layernorm")
            (attentionOutputNorm, outputNorm) = (nil, nil)
        }
        dropout = settings.dropout
    }

    func callAsFunction(_ x: consuming Variable, _ context: ForwardContext) throws(PEFTError) -> Variable {
        let tape = context.tape
        var attended = try attention(try inputNorm(x, context), context)
        if let attentionOutputNorm { attended = try attentionOutputNorm(attended, context) }
        let middle = try context.join(try tape.dropout(consume attended, dropout), to: x, at: places.attention)
        var product = try feedForward(try middleNorm(middle, context), context)
        if let outputNorm { product = try outputNorm(product, context) }
        return try context.join(try tape.dropout(consume product, dropout), to: middle, at: places.output)
    }
}

/// Attention with rotary positions, whose keys and values heads share in groups.
private final class GroupedAttention: KeyProjection, Sendable {
    private enum Projection {
        case each(query: Linear, key: Linear, value: Linear)
        /// All in one matrix, queries first.
        case fused(Linear)
    }

    private let projection: Projection
    private let output: Linear
    private let queryNorm: RMSNorm?, keyNorm: RMSNorm?
    private let attention: SelfAttention
    private let rotary: RotaryTable

    init(_ layer: Int, _ name: String, _ settings: DecoderSettings, _ build: LayerBuilder) throws(PEFTError) {
        let (hidden, queries, keys) = (settings.hiddenSize, settings.heads * settings.headSize, settings.keyValueHeads * settings.headSize)
        if settings.isFused {
            projection = .fused(try build.linear(name + ".qkv_proj", hidden, queries + 2 * keys, bias: settings.attentionBias))
        } else {
            let query = try build.linear(name + ".q_proj", hidden, queries, bias: settings.attentionBias)
            let key = try build.linear(name + ".k_proj", hidden, keys, bias: settings.attentionBias)
            projection = .each(query: query, key: key, value: try build.linear(name + ".v_proj", hidden, keys, bias: settings.attentionBias))
        }
        output = try build.linear(name + ".o_proj", queries, hidden, bias: settings.outputBias)
        func norm(_ module: String) throws(PEFTError) -> RMSNorm? {
            settings.normsQueriesAndKeys ? try build.rmsNorm(name + module, settings.headSize, epsilon: settings.epsilon, offset: settings.normOffset) : nil
        }
        queryNorm = try norm(".q_norm")
        keyNorm = try norm(".k_norm")
        attention = SelfAttention(
            layer: layer, heads: settings.heads, keyValueHeads: settings.keyValueHeads, headSize: settings.headSize, window: settings.layers[layer].window,
            scale: settings.attentionScale, softcap: settings.attentionSoftcap)
        rotary = settings.layers[layer].rotary
    }

    func callAsFunction(_ x: Variable, _ context: ForwardContext) throws(PEFTError) -> Variable {
        var (q, k, v): (Variable, Variable, Variable)
        switch projection {
        case .each(let query, let key, let value):
            // Taken out of the list, each is nobody else's: rotated in place.
            if var few = try Linear.together([query, key, value], x, context), let third = few.popLast(), let second = few.popLast(), let first = few.popLast() {
                (q, k, v) = (first, second, third)
            } else {
                (q, k, v) = (try query(x, context), try key(x, context), try value(x, context))
            }
        case .fused(let linear):
            let (queries, keys) = (attention.heads * attention.headSize, attention.keyValueHeads * attention.headSize)
            let parts = try context.tape.splitColumns(try linear(x, context), [queries, keys, keys])
            (q, k, v) = (parts[0], parts[1], parts[2])
        }
        q = try rotated(try normed(consume q, queryNorm, context), attention.heads, context)
        k = try rotated(try normed(consume k, keyNorm, context), attention.keyValueHeads, context)
        let attended = try attention(q, k, v, of: x, context)
        guard let beside = try attention.beside(q, self, context) else { return try output(attended, context) }
        guard output.bias != nil else { return try output(try context.tape.add(attended, beside), context) }
        // As PEFT has it: both are projected, bias and all.
        return try context.tape.add(try output(attended, context), try output(beside, context))
    }

    /// Of the frozen layers, without positions.
    func keysAndValues(_ x: Variable, _ tape: Tape) throws(PEFTError) -> (keys: Variable, values: Variable) {
        switch projection {
        case .each(_, let key, let value): return (try key(x, nil, tape), try value(x, nil, tape))
        case .fused(let linear):
            let (queries, keys) = (attention.heads * attention.headSize, attention.keyValueHeads * attention.headSize)
            let parts = try tape.splitColumns(try linear(x, nil, tape), [queries, keys, keys])
            return (parts[1], parts[2])
        }
    }

    /// Each head by itself.
    private func normed(_ x: consuming Variable, _ norm: RMSNorm?, _ context: ForwardContext) throws(PEFTError) -> Variable {
        guard let norm else { return x }
        let shape = x.shape
        let heads = try context.tape.reshaped(x, [x.value.count / attention.headSize, attention.headSize])
        return try context.tape.reshaped(try norm(heads, context), shape)
    }

    private func rotated(_ x: consuming Variable, _ heads: Int, _ context: ForwardContext) throws(PEFTError) -> Variable {
        let (cos, sin) = try rotary.table(for: context)
        return try context.tape.rope(x, heads: heads, headDim: attention.headSize, rotary: rotary.dimension, cos: cos, sin: sin, positions: context.positions)
    }
}
