internal import Autograd
internal import Models
internal import Platform
internal import Tensors

/// LoRA of a look-up: row `i` gets `s·B·A[:, i]`. A begins at zero, B is random. There is no dropout (PEFT has none either).
final class EmbeddingLoRA: AdapterModule {
    let embedding: Embedding
    /// f32 `[r, count]`
    let a: Parameter
    /// f32 `[dimension, r]`
    let b: Parameter
    let magnitude: Magnitude?
    let factor: Double
    private let start: LoRAStart
    /// Heads have it too (`TiedHeadLoRA`).
    private let isTied: Bool
    private let engine: Engine

    init(_ embedding: Embedding, key: String, rank: Int, scaling: Double, _ settings: LoRASettings, _ model: Model)
        throws(PEFTError)
    {
        self.embedding = embedding
        engine = model.engine
        a = Parameter(
            name: key + ".lora_embedding_A", value: try .zeros(engine, [rank, embedding.count], .f32, .adapters))
        b = Parameter(
            name: key + ".lora_embedding_B", value: try .zeros(engine, [embedding.dimension, rank], .f32, .adapters), isTrainable: settings.start != .mica)
        magnitude = settings.hasMagnitude ? try Magnitude(key: key, shape: [embedding.dimension], model) : nil
        factor = scaling
        start = settings.start
        isTied = settings.tiesHead && !WeightTying.heads(of: embedding, model).isEmpty
    }

    var layer: any Layer { embedding }
    var parameters: [Parameter] { [a, b, magnitude?.parameter].compactMap { $0 } }
    var scaling: Double? { factor }

    /// Every start but `false` and `mica` is the standard one, as in PEFT; where the head is a LoRA with Bᵀ for its A, B begins as that does.
    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        var random = random
        if start == .mica {
            let most = min(embedding.count, embedding.dimension)
            guard a.value.rows <= most else {
                throw PEFTError(.argument, "init_lora_weights 'mica': r is \(a.value.rows), and '\(embedding.name)' has only \(most) singular values")
            }
            // As of a layer that multiplies by Wᵀ [dimension, count].
            let (u, _, _) = try Decompositions(engine).singularValues(try embedding.weight.converted(to: .f32, engine, .scratch).transposed(engine))
            u.copyColumns(from: u.columns - a.value.rows, to: b.value)
            return [:]
        }
        if start == .random { a.value.fillNormal(1, &random) }
        switch start {
        case .gaussian where isTied: b.value.fillNormal(1 / Float(a.value.rows), &random)
        case let start where isTied && start != .random: b.value.fillUniform(fanIn: embedding.dimension, &random)
        default: b.value.fillNormal(1, &random)
        }
        try magnitude?.initialize(embedding.weight, isTransposed: true, (b.value, a.value), scale: Float(factor))
        return [:]
    }

    func hook(scale: Float, beside replacements: [String: Parameter]) -> any LayerHook {
        EmbeddingLoRAHook(self, scale: Float(factor) * scale, replacements["weight"])
    }

    func change(scale: Float) throws(PEFTError) -> WeightChange? {
        magnitude == nil ? WeightChange(.product(b: b.value, a: a.value, scale: factor * Double(scale))) : nil
    }

    /// W [count, dimension] += s·Aᵀ·Bᵀ
    func fold(into weights: inout FoldedWeights, scale: Float) throws(PEFTError) {
        let scale = Float(factor) * scale
        guard let w = try weights.tensor("weight") else { return }
        try engine.multiply(
            .forward, try a.value.transposed(engine), b.value, into: w, compute: .f32, alpha: scale, accumulate: true)
        if let magnitude, let original = weights.original("weight") {
            weights.set("weight", try magnitude.scaled(w, original, isTransposed: true, (b.value, a.value), scale: scale))
        }
    }
}

private final class EmbeddingLoRAHook: LayerHook {
    private let module: EmbeddingLoRA
    private let scale: Float
    private let table: Parameter?

    init(_ module: EmbeddingLoRA, scale: Float, _ table: Parameter?) {
        self.module = module
        self.scale = scale
        self.table = table
    }

    func output(_ y: consuming Variable, ids: Tensor, of layer: Embedding, _ tape: Tape) throws(PEFTError) -> Variable {
        let (a, b) = (tape.variable(module.a), tape.variable(module.b))
        if let magnitude = module.magnitude {
            return try magnitude.add(to: y, ids: ids, table?.value ?? layer.weight, a: a, b: b, scale: scale, tape)
        }
        return try tape.addLowRankEmbedding(to: y, ids: ids, a: a, b: b, scale: scale)
    }
}

/// The same adapter on the head that shares the embedding's matrix (`ensure_weight_tying`): `y += s·x·B·A`, with the very
/// parameters of the embedding, so that the two stay one.
final class TiedHeadLoRA: AdapterModule {
    private let head: Linear
    private let twin: EmbeddingLoRA

    init(_ head: Linear, _ twin: EmbeddingLoRA) {
        self.head = head
        self.twin = twin
    }

    var layer: any Layer { head }
    var parameters: [Parameter] { [] }
    var scaling: Double? { twin.factor }
    var isTwin: Bool { true }

    /// PEFT writes the factors under the head's keys too, as it sees them.
    var views: [SavedTensor] {
        let key = Adapter.prefix + head.name
        return [
            SavedTensor(transposed: twin.b, key: key + ".lora_A.weight"),
            SavedTensor(transposed: twin.a, key: key + ".lora_B.weight"),
        ]
    }

    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] { [:] }
    func hook(scale: Float, beside replacements: [String: Parameter]) -> any LayerHook {
        TiedHeadLoRAHook(twin, scale: Float(twin.factor) * scale)
    }
    func fold(into weights: inout FoldedWeights, scale: Float) throws(PEFTError) {}
}

private final class TiedHeadLoRAHook: LayerHook {
    private let module: EmbeddingLoRA
    private let scale: Float

    init(_ module: EmbeddingLoRA, scale: Float) {
        self.module = module
        self.scale = scale
    }

    /// x [rows, dimension] · B [dimension, r] · A [r, count]
    func add(to y: consuming Variable, input x: Variable, of layer: Linear, _ tape: Tape) throws(PEFTError) -> Variable
    {
        let inner = try tape.scaled(try tape.linear(x, tape.variable(module.b), transposed: true), by: scale)
        return try tape.add(y, try tape.linear(inner, tape.variable(module.a), transposed: true, as: y.value.dtype))
    }
}
