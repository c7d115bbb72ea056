package import Autograd
package import Platform
internal import Tensors

/// What comes after the last block of a decoder: a language model's `lm_head`, a classifier's `score` on the last token of
/// each sample that is no padding, a head for each token, or none.
package struct DecoderHead: Sendable {
    package let task: ModelTask
    /// nil: the states themselves are wanted.
    private let linear: Linear?
    /// Of a classifier; nil: only batches of one sample.
    private let paddingID: Int32?
    /// Logits become cap·tanh(logits/cap); 0: none.
    private let softcap: Float
    /// Of a classifier of tokens.
    private let dropout: Float

    /// What a family's modules are under: "model." or `answers`, its question-answering class's; a bare model's are under nothing.
    package static func prefix(_ configuration: ModelConfiguration, _ answers: String, usual: String = "model.", _ build: LayerBuilder) -> String {
        let name = configuration.headClass ?? ""
        if name.hasSuffix("ForQuestionAnswering") { return answers }
        return name.hasSuffix("Model") && !name.hasSuffix("LMHeadModel") && !build.has(usual + "norm.weight") && !build.has(usual + "ln_f.weight") ? "" : usual
    }

    /// - Parameter perToken: the module of a token classifier.
    package init(
        _ configuration: ModelConfiguration, _ build: LayerBuilder, embedding: Embedding, hiddenSize: Int, perToken: String, softcap: Float = 0
    ) throws(PEFTError) {
        let name = configuration.headClass ?? "ForCausalLM"
        paddingID = configuration.json["pad_token_id"]?.intValue.map { Int32(clamping: $0) }
        if name.hasSuffix("ForSequenceClassification") {
            task = .classification
            linear = try build.linear("score", hiddenSize, try configuration.labelCount())
        } else if name.hasSuffix("ForTokenClassification") {
            task = .tokenClassification
            linear = try build.linear(perToken, hiddenSize, try configuration.labelCount(), bias: .required)
        } else if name.hasSuffix("ForQuestionAnswering") {
            task = .questionAnswering
            linear = try build.linear("qa_outputs", hiddenSize, 2, bias: .required)
        } else if name.hasSuffix("ForCausalLM") || name.hasSuffix("LMHeadModel") {
            task = .causalLM
            // Without a word about it, a file without a head has none of its own.
            let isTied = try configuration.flag("tie_word_embeddings", or: !build.has("lm_head.weight"))
            linear = try build.head("lm_head", tiedTo: isTied ? embedding : nil, hiddenSize, embedding.count)
        } else if name.hasSuffix("Model") {
            task = .features
            linear = nil
        } else {
            throw configuration.unsupported("architectures", "…ForCausalLM, …ForSequenceClassification, …ForTokenClassification, …ForQuestionAnswering, …Model")
        }
        dropout = task == .tokenClassification ? Float(try configuration.number(configuration.has("classifier_dropout") ? "classifier_dropout" : "hidden_dropout", or: 0.1)) : 0
        self.softcap = task == .causalLM ? softcap : 0
    }

    /// The head of a language model.
    package var languageHead: Linear? { task == .causalLM ? linear : nil }

    package func callAsFunction(_ hidden: Variable, of input: ModelInput, rows: LogitRows, _ context: ForwardContext) throws(PEFTError) -> Variable {
        guard let linear else { return hidden }
        let tape = context.tape
        switch task {
        case .causalLM:
            var states = hidden
            if case .last = rows { states = try tape.gatherRows(hidden, (0..<context.batch).map { Int32(clamping: ($0 + 1) * context.length - 1) }) }
            let logits = try linear(states, context, as: .f32)
            guard softcap != 0 else { return logits }
            return try tape.scaled(try tape.activation(try tape.scaled(logits, by: 1 / softcap), .tanh), by: softcap)
        case .classification: return try linear(try tape.gatherRows(hidden, try lastTokens(input, context)), context, as: .f32)
        default: return try linear(try tape.dropout(hidden, dropout), context, as: .f32)
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
