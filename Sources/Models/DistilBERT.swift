package import Autograd
package import Platform
internal import Tensors

/// DistilBERT (arXiv:1910.01108), after transformers' `modeling_distilbert.py`: BERT without token types and pooler.
package final class DistilBERT: Architecture {
    package static let modelTypes = ["distilbert"]

    private let words: Embedding
    private let places: Embedding
    private let norm: LayerNorm
    private let blocks: [PostNormBlock]
    private let encoderHead: EncoderHead
    private let dropout: Float

    package init(_ configuration: ModelConfiguration, _ build: LayerBuilder) throws(PEFTError) {
        let hidden = try configuration.size("dim", "hidden_size")
        let heads = try configuration.size("n_heads", "num_attention_heads")
        guard hidden % heads == 0 else { throw PEFTError(.format, "\(configuration.origin): dim \(hidden) does not divide into \(heads) heads") }
        try configuration.warnOfAttentionDropout("attention_dropout", build)
        dropout = Float(try configuration.number("dropout", or: 0.1))
        let prefix = configuration.headClass?.hasSuffix("Model") == true && !build.has("distilbert.embeddings.word_embeddings.weight") ? "" : "distilbert."
        words = try build.embedding(prefix + "embeddings.word_embeddings", try configuration.size("vocab_size"), hidden)
        places = try build.embedding(prefix + "embeddings.position_embeddings", try configuration.size("max_position_embeddings", or: 512), hidden)
        norm = try build.layerNorm(prefix + "embeddings.LayerNorm", hidden, epsilon: 1e-12)
        let names = PostNormBlock.Names(
            query: "attention.q_lin", key: "attention.k_lin", value: "attention.v_lin", output: "attention.out_lin", attentionNorm: "sa_layer_norm", up: "ffn.lin1",
            down: "ffn.lin2", outputNorm: "output_layer_norm")
        var blocks: [PostNormBlock] = []
        for layer in 0..<(try configuration.size("n_layers", "num_hidden_layers", most: 4096)) {
            blocks.append(
                try PostNormBlock(
                    layer, prefix + "transformer.layer.\(layer)", names, hiddenSize: hidden, intermediateSize: try configuration.size("hidden_dim", "intermediate_size"),
                    heads: heads, activation: try ActivationKind("activation", of: configuration, or: "gelu"), epsilon: 1e-12, dropout: dropout, build))
        }
        self.blocks = blocks
        let isAnswering = configuration.headClass?.hasSuffix("ForQuestionAnswering") == true
        let isClassifying = configuration.headClass?.hasSuffix("ForSequenceClassification") == true
        encoderHead = try EncoderHead(
            configuration, build, hiddenSize: hidden, reading: .own(dense: "pre_classifier", output: "classifier", .relu), pooler: nil,
            dropout: isAnswering
                ? Float(try configuration.number("qa_dropout", or: 0.1)) : isClassifying ? Float(try configuration.number("seq_classif_dropout", or: 0.2)) : dropout)
    }

    package var blockCount: Int { blocks.count }
    package var joins: [BlockPlace] { blocks.flatMap { [$0.places.attention, $0.places.output] } }
    package var task: ModelTask { encoderHead.task }

    package func hidden(_ input: ModelInput, _ context: ForwardContext) throws(PEFTError) -> Variable {
        guard context.positionCount <= places.count else {
            throw PEFTError(.argument, "a text of \(context.length) tokens; this model reads at most \(places.count)")
        }
        let tape = context.tape
        let sum = try tape.add(try input.embedded(by: words, context), try places(context.positions, context))
        return try blocks.run(try tape.dropout(try norm(sum, context), dropout), context)
    }

    package func logits(_ hidden: Variable, of input: ModelInput, rows: LogitRows, _ context: ForwardContext) throws(PEFTError) -> Variable {
        try encoderHead(hidden, context)
    }
}
