package import Autograd
package import Platform
internal import Tensors

/// What comes after the last layer of an encoder: a head for whole texts, for tokens, for the two ends of an answer, or none.
package final class EncoderHead: Sendable {
    /// How a head for whole texts reads the first token's state.
    package enum Reading {
        /// By the pooler (BERT): `classifier(drop(pooled))`.
        case pooled
        /// By its own layer: `output(drop(f(dense(drop(x)))))`.
        case own(dense: String, output: String, ActivationKind)
    }

    package let task: ModelTask
    /// Between the first token's state and the classifier.
    private let dense: Linear?
    private let activation: ActivationKind
    private let linear: Linear?
    private let dropout: Float
    /// RoBERTa's head drops the state before `dense` too.
    private let dropsFirst: Bool

    /// - Parameter pooler: the module of a pooler, for classes that have one.
    package init(
        _ configuration: ModelConfiguration, _ build: LayerBuilder, hiddenSize: Int, reading: Reading, pooler: String?, dropout: Float, dropsFirst: Bool = false
    ) throws(PEFTError) {
        let name = configuration.headClass ?? ""
        self.dropout = dropout
        self.dropsFirst = dropsFirst
        let kinds: [(ending: String, task: ModelTask)] = [
            ("ForSequenceClassification", .classification), ("ForTokenClassification", .tokenClassification), ("ForQuestionAnswering", .questionAnswering),
            ("Model", .features),
        ]
        guard let kind = kinds.first(where: { name.hasSuffix($0.ending) }) else {
            throw configuration.unsupported("architectures", kinds.map { "…\($0.ending)" }.joined(separator: ", "))
        }
        task = kind.task
        switch task {
        case .classification:
            switch reading {
            case .pooled:
                guard let pooler else { throw PEFTError(.internal, "a pooled head without a pooler") }
                dense = try build.linear(pooler, hiddenSize, hiddenSize, bias: .required)
                activation = .tanh
                linear = try build.linear("classifier", hiddenSize, try configuration.labelCount(), bias: .required)
            case .own(let denseName, let outputName, let kind):
                dense = try build.linear(denseName, hiddenSize, hiddenSize, bias: .required)
                activation = kind
                linear = try build.linear(outputName, hiddenSize, try configuration.labelCount(), bias: .required)
            }
        case .features:
            // The pooler of a bare model may be left out of its file.
            let hasPooler = pooler.map { build.has($0 + ".weight") } ?? false
            dense = hasPooler ? try build.linear(pooler ?? "", hiddenSize, hiddenSize, bias: .required) : nil
            activation = .tanh
            linear = nil
        default:
            dense = nil
            activation = .tanh
            linear = try build.linear(
                task == .questionAnswering ? "qa_outputs" : "classifier", hiddenSize, task == .questionAnswering ? 2 : try configuration.labelCount(), bias: .required)
        }
    }

    package func callAsFunction(_ hidden: Variable, _ context: ForwardContext) throws(PEFTError) -> Variable {
        guard let linear else { return hidden }
        let tape = context.tape
        guard task == .classification else { return try linear(try tape.dropout(hidden, dropout), context, as: .f32) }
        return try linear(try tape.dropout(try firstTokens(hidden, context), dropout), context, as: .f32)
    }

    /// BERT's `pooler_output`; nil without a pooler.
    package func pooled(_ hidden: Variable, _ context: ForwardContext) throws(PEFTError) -> Variable? {
        task == .features && dense != nil ? try firstTokens(hidden, context) : nil
    }

    private func firstTokens(_ hidden: Variable, _ context: ForwardContext) throws(PEFTError) -> Variable {
        let tape = context.tape
        var first = try tape.gatherRows(hidden, (0..<context.batch).map { Int32(clamping: $0 * context.length + (context.padding?[$0] ?? 0)) })
        guard let dense else { return first }
        if dropsFirst { first = try tape.dropout(first, dropout) }
        return try tape.activation(try dense(first, context), activation)
    }
}
