package import Autograd
package import Platform
internal import Tensors

/// BERT (arXiv:1810.04805) and RoBERTa (arXiv:1907.11692), after transformers' `modeling_bert.py` and `modeling_roberta.py`.
package final class BERT: Architecture {
    package static let modelTypes = ["bert", "roberta"]

    private let words: Embedding
    private let places: Embedding
    private let tokenTypes: Embedding
    private let norm: LayerNorm
    private let blocks: [PostNormBlock]
    private let encoderHead: EncoderHead
    private let dropout: Float
    /// RoBERTa counts positions from the padding's id on, over tokens that are no padding; nil: from 0, over all.
    private let paddingID: Int32?

    package init(_ configuration: ModelConfiguration, _ build: LayerBuilder) throws(PEFTError) {
        let family = configuration.modelType
        let hidden = try configuration.size("hidden_size")
        let heads = try configuration.size("num_attention_heads")
        let epsilon = try configuration.number("layer_norm_eps", or: 1e-12)
        guard hidden % heads == 0 else { throw PEFTError(.format, "\(configuration.origin): hidden_size \(hidden) does not divide into \(heads) heads") }
        try configuration.require("position_embedding_type", .string("absolute"))
        try configuration.require("is_decoder", .bool(false))
        try configuration.require("add_cross_attention", .bool(false))
        try configuration.warnOfAttentionDropout("attention_probs_dropout_prob", build)
        dropout = Float(try configuration.number("hidden_dropout_prob", or: 0.1))
        paddingID = family == "roberta" ? Int32(clamping: configuration.json["pad_token_id"]?.intValue ?? 1) : nil
        // A bare model's names begin without the family's.
        let prefix = configuration.headClass?.hasSuffix("Model") == true && !build.has("\(family).embeddings.word_embeddings.weight") ? "" : "\(family)."
        build.ignore { $0.hasSuffix("embeddings.position_ids") }
        words = try build.embedding(prefix + "embeddings.word_embeddings", try configuration.size("vocab_size"), hidden)
        places = try build.embedding(prefix + "embeddings.position_embeddings", try configuration.size("max_position_embeddings"), hidden)
        tokenTypes = try build.embedding(prefix + "embeddings.token_type_embeddings", try configuration.size("type_vocab_size", or: 2), hidden)
        norm = try build.layerNorm(prefix + "embeddings.LayerNorm", hidden, epsilon: epsilon)
        let names = PostNormBlock.Names(
            query: "attention.self.query", key: "attention.self.key", value: "attention.self.value", output: "attention.output.dense",
            attentionNorm: "attention.output.LayerNorm", up: "intermediate.dense", down: "output.dense", outputNorm: "output.LayerNorm")
        var blocks: [PostNormBlock] = []
        for layer in 0..<(try configuration.size("num_hidden_layers", most: 4096)) {
            blocks.append(
                try PostNormBlock(
                    layer, prefix + "encoder.layer.\(layer)", names, hiddenSize: hidden, intermediateSize: try configuration.size("intermediate_size"), heads: heads,
                    activation: try ActivationKind("hidden_act", of: configuration, or: "gelu"), epsilon: epsilon, dropout: dropout, build))
        }
        self.blocks = blocks
        encoderHead = try EncoderHead(
            configuration, build, hiddenSize: hidden,
            reading: family == "roberta" ? .own(dense: "classifier.dense", output: "classifier.out_proj", .tanh) : .pooled, pooler: prefix + "pooler.dense",
            dropout: Float(try configuration.number("classifier_dropout", or: Double(dropout))), dropsFirst: family == "roberta")
    }

    package var blockCount: Int { blocks.count }
    package var joins: [BlockPlace] { blocks.flatMap { [$0.places.attention, $0.places.output] } }
    package var task: ModelTask { encoderHead.task }

    package func hidden(_ input: ModelInput, _ context: ForwardContext) throws(PEFTError) -> Variable {
        let tape = context.tape
        let positions = try positions(input, context)
        let types = try tokenTypeIDs(context)
        let sum = try tape.add(try tape.add(try input.embedded(by: words, context), try tokenTypes(types, context)), try places(positions, context))
        return try blocks.run(try tape.dropout(try norm(sum, context), dropout), context)
    }

    /// Without any, all tokens are of the first text.
    private func tokenTypeIDs(_ context: ForwardContext) throws(PEFTError) -> Tensor {
        if let given = context.tokenTypes { return given }
        let count = context.batch * context.length
        return try Tensor(context.tape.engine, [Int32](repeating: 0, count: count), shape: [count])
    }

    /// - Throws: `.argument` for a text longer than the model.
    private func positions(_ input: ModelInput, _ context: ForwardContext) throws(PEFTError) -> Tensor {
        let longest = places.count - (paddingID.map { Int($0) + 1 } ?? 0)
        guard context.positionCount <= places.count, context.positionsAreGiven || context.length <= longest else {
            throw PEFTError(.argument, "a text of \(context.length) tokens; this model reads at most \(longest)")
        }
        if let paddingID, case .prompted = input {
            // Which of them are padding is not looked at where rows are given, as in transformers.
            let rows = unsafe context.positions.withInt32s { unsafe $0.map { paddingID &+ 1 &+ $0 } }
            return try Tensor(context.tape.engine, rows, shape: [context.batch * context.length])
        }
        guard let paddingID, !context.positionsAreGiven, case .ids(let ids) = input, !context.tape.engine.isPlanning else { return context.positions }
        let (batch, length) = (context.batch, context.length)
        let counted: [Int32] = unsafe ids.withInt32s { ids in
            (0..<batch).flatMap { sample in
                var position = paddingID + Int32(clamping: context.memory?.counts[sample] ?? 0)
                return (0..<length).map { token in
                    guard unsafe ids[sample * length + token] != paddingID else { return paddingID }
                    position += 1
                    return position
                }
            }
        }
        return try Tensor(context.tape.engine, counted, shape: [batch * length])
    }

    package func logits(_ hidden: Variable, of input: ModelInput, rows: LogitRows, _ context: ForwardContext) throws(PEFTError) -> Variable {
        try encoderHead(hidden, context)
    }

    package func pooled(_ hidden: Variable, _ context: ForwardContext) throws(PEFTError) -> Variable? { try encoderHead.pooled(hidden, context) }
}
