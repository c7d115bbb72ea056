internal import Autograd
package import Models
package import Platform
internal import Tensors

/// HiRA (Huang et al., ICLR 2025): a change of full rank, the weight itself times a matrix of low rank,
///
///     ΔW = W ⊙ (B·A)        A [r, in]   B [out, r]
///
/// for linear layers, Conv1D, convolutions and embeddings.
package struct HiRA: AdapterMethod {
    package static let peftType = "HIRA"
    package static let layerKinds = MatrixTarget.linears + ["Embedding"] + MatrixTarget.convolutions

    package static let defaults: JSONObject = [
        "exclude_modules": .null, "fan_in_fan_out": .bool(false), "hira_dropout": .number(0), "init_weights": .bool(true), "layers_pattern": .null,
        "layers_to_transform": .null, "modules_to_save": .null, "r": .integer(32), "rank_pattern": .object([:]), "target_modules": .null,
    ]

    private let rank: Int
    private let dropout: Float
    /// "true", "false" or "gaussian"
    private let start: String

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        rank = try configuration.integer("r")
        // PEFT 0.21 makes every layer of a first adapter with r, so that is what its files have.
        if configuration.isSet("rank_pattern") { model.engine.warn("rank_pattern has no effect on HIRA, as in PEFT: all layers have the rank r") }
        dropout = try configuration.probability("hira_dropout")
        start = try configuration.choice("init_weights", ["gaussian"], orFlag: true)
    }

    package mutating func prepare(for targets: [any Layer], _ configuration: inout AdapterConfiguration, _ model: Model) throws(PEFTError) {
        try configuration.matchLayout(of: targets) { model.engine.warn($0) }
    }

    package func module(for layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule {
        try AdapterConfiguration.checkRank(rank, layer)
        if let embedding = layer as? Embedding { return try EmbeddingHiRA(embedding, key: key, rank: rank, isIdentity: start != "false", model.engine) }
        let target = try MatrixTarget(layer, of: HiRA.self, inGroups: false)
        return try MatrixHiRA(target, key: key, rank: rank, dropout: dropout, start, model.engine)
    }
}

private final class MatrixHiRA: MatrixModule {
    let target: MatrixTarget
    /// f32 `[r, in]` and the kernel, `[out, r]` and ones
    private let (a, b): (Parameter, Parameter)
    private let dropout: Float
    private let start: String

    init(_ target: MatrixTarget, key: String, rank: Int, dropout: Float, _ start: String, _ engine: Engine) throws(PEFTError) {
        self.target = target
        (self.dropout, self.start) = (dropout, start)
        a = Parameter(name: key + ".hira_A", value: try .zeros(engine, [rank, target.channels] + target.kernel, .f32, .adapters))
        b = Parameter(name: key + ".hira_B", value: try .zeros(engine, [target.outputSize, rank] + target.kernel.map { _ in 1 }, .f32, .adapters))
    }

    var parameters: [Parameter] { [a, b] }

    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        var random = random
        switch start {
        case "true": a.value.fillKaiming(&random)
        case "gaussian": a.value.fillNormal(1 / Float(a.value.shape[0]), &random)
        default:
            a.value.fillNormal(1, &random)
            b.value.fillNormal(1, &random)
        }
        return [:]
    }

    /// `W ⊙ (B·A)` `[out, in]`
    private func change(of stored: Tensor, _ a: Variable, _ b: Variable, _ tape: Tape) throws(PEFTError) -> Variable {
        let w = stored.dtype == .f32 && !target.isTransposed ? try target.matrix(stored) : try target.weight(stored, tape.engine)
        return try tape.multiply(Variable(w), try tape.linear(b, a, transposed: true))
    }

    /// The three products of the weight's size that are left of a step's five (dA and dB need `W ⊙ dYᵀ·X`).
    func product(of x: Variable, bias: Variable?, scale: Float, _ site: HookSite, as dtype: DType?) throws(PEFTError) -> Variable? {
        let (tape, stored) = (site.tape, site.weight)
        guard !tape.isInference, dropout == 0 || !tape.isTraining else { return nil }
        let changed = try tape.remade([try tape.matrix(a), try tape.matrix(b)]) { [target] (tape, factors) throws(PEFTError) in
            try tape.changedWeight(try target.weight(stored, tape.engine), times: LowRankChange(b: factors[1], a: factors[0]), scale: scale)
        }
        return try tape.linear(x, changed, bias: bias, as: dtype)
    }

    func add(to y: consuming Variable, input x: Variable, scale: Float, _ site: HookSite) throws(PEFTError) -> Variable {
        let (tape, stored) = (site.tape, site.weight)
        let factors = [try tape.matrix(a), try tape.matrix(b)]
        return try tape.addProduct(to: y, input: try tape.dropout(x, dropout), scale: scale, of: factors) { [self] (tape, w) throws(PEFTError) in
            try change(of: stored, w[0], w[1], tape)
        }
    }

    /// As in PEFT it is the weight before any adapter that is changed.
    func fold(into weights: inout FoldedWeights, scale: Float) throws(PEFTError) {
        guard let w = try weights.tensor("weight"), let original = weights.original("weight") else { return }
        let tape = Tape(weights.engine, .f32)
        let change = try change(of: original, try tape.matrix(a), try tape.matrix(b), tape).value
        weights.engine.axpby(scale, target.isTransposed ? try change.transposed(weights.engine) : change, 1, into: w)
    }
}

/// Rows of an embedding: `e_i · (1 + B·A[:, i])`.
private final class EmbeddingHiRA: EmbeddingModule {
    let embedding: Embedding
    /// f32 `[r, count]`, `[dimension, r]`
    private let (a, b): (Parameter, Parameter)
    private let isIdentity: Bool

    init(_ embedding: Embedding, key: String, rank: Int, isIdentity: Bool, _ engine: Engine) throws(PEFTError) {
        self.embedding = embedding
        self.isIdentity = isIdentity
        a = Parameter(name: key + ".hira_embedding_A", value: try .zeros(engine, [rank, embedding.count], .f32, .adapters))
        b = Parameter(name: key + ".hira_embedding_B", value: try .zeros(engine, [embedding.dimension, rank], .f32, .adapters))
    }

    var parameters: [Parameter] { [a, b] }

    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        var random = random
        if !isIdentity { a.value.fillNormal(1, &random) }
        b.value.fillNormal(1, &random)
        return [:]
    }

    func output(_ y: Variable, ids: Tensor, scale: Float, _ table: Tensor, _ tape: Tape) throws(PEFTError) -> Variable {
        let nothing = Variable(try .zeros(tape.engine, y.shape, y.value.dtype))
        let change = try tape.addLowRankEmbedding(to: nothing, ids: ids, a: tape.variable(a), b: tape.variable(b), scale: scale)
        return try tape.add(y, try tape.multiply(y, change))
    }
}
