package import Autograd
package import Platform
internal import Tensors

/// What comes after the last block of a decoder: a language model's `lm_head`, or a classifier's `score` on the last token
/// of each sample that is no padding.
package struct DecoderHead: Sendable {
    package let task: ModelTask
    package let linear: Linear
    /// Of a classifier; nil: only batches of one sample.
    private let paddingID: Int32?

    /// - Parameter prefix: the class name without its ending, "Llama".
    package init(_ configuration: ModelConfiguration, _ build: LayerBuilder, embedding: Embedding, hiddenSize: Int) throws(PEFTError) {
        let name = configuration.headClass ?? "ForCausalLM"
        paddingID = configuration.json["pad_token_id"]?.intValue.map { Int32(clamping: $0) }
        if name.hasSuffix("ForSequenceClassification") {
            task = .classification
            linear = try build.linear("score", hiddenSize, try configuration.labelCount())
        } else if name.hasSuffix("ForCausalLM") || name.hasSuffix("LMHeadModel") {
            task = .causalLM
            // Without a word about it, a file without a head has none of its own.
            let isTied = try configuration.flag("tie_word_embeddings", or: !build.has("lm_head.weight"))
            linear = try build.head("lm_head", tiedTo: isTied ? embedding : nil, hiddenSize, embedding.count)
        } else {
            throw configuration.unsupported("architectures", "…ForCausalLM, …ForSequenceClassification")
        }
    }

    package func callAsFunction(_ hidden: Variable, of input: ModelInput, rows: LogitRows, _ context: ForwardContext) throws(PEFTError) -> Variable {
        switch task {
        case .causalLM:
            guard case .last = rows else { return try linear(hidden, context, as: .f32) }
            let last = (0..<context.batch).map { Int32(clamping: ($0 + 1) * context.length - 1) }
            return try linear(try context.tape.gatherRows(hidden, last), context, as: .f32)
        default:
            return try linear(try context.tape.gatherRows(hidden, try lastTokens(input, context)), context, as: .f32)
        }
    }

    /// The row of each sample's last token that is not the padding's, as LlamaForSequenceClassification finds it.
    private func lastTokens(_ input: ModelInput, _ context: ForwardContext) throws(PEFTError) -> [Int32] {
        let length = context.length
        let ends = (0..<context.batch).map { Int32(clamping: ($0 + 1) * length - 1) }
        guard case .ids(let ids) = input, !context.tape.engine.isPlanning else { return ends }
        guard let paddingID else {
            guard context.batch == 1 else {
                throw PEFTError(.argument, "a batch of \(context.batch) samples, but the model's configuration has no pad_token_id to find their ends by")
            }
            return ends
        }
        return unsafe ids.withInt32s { ids in
            (0..<context.batch).map { sample in
                let last = (0..<length).last { unsafe ids[sample * length + $0] != paddingID }
                return Int32(clamping: sample * length + (last ?? 0))
            }
        }
    }
}
