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
    private let factor: Double
    private let start: LoRAStart
    private let engine: Engine

    init(_ embedding: Embedding, key: String, rank: Int, scaling: Double, _ start: LoRAStart, _ model: Model) throws(PEFTError) {
        self.embedding = embedding
        engine = model.engine
        a = Parameter(name: key + ".lora_embedding_A", value: try .zeros(engine, [rank, embedding.count], .f32, .adapters))
        b = Parameter(name: key + ".lora_embedding_B", value: try .zeros(engine, [embedding.dimension, rank], .f32, .adapters))
        factor = scaling
        self.start = start
    }

    var layer: any Layer { embedding }
    var parameters: [Parameter] { [a, b] }
    var scaling: Double? { factor }

    /// Every start but `false` is the standard one, as in PEFT.
    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        var random = random
        if start == .random { a.value.fill { random.normal() } }
        b.value.fill { random.normal() }
        return [:]
    }

    func hook(scale: Float) -> any LayerHook {
        EmbeddingLoRAHook(a: a, b: b, scale: Float(factor) * scale)
    }

    /// W [count, dimension] += s·Aᵀ·Bᵀ
    func fold(into weights: inout FoldedWeights, scale: Float) throws(PEFTError) {
        guard let w = try weights.tensor("weight") else { return }
        try engine.multiply(.forward, try a.value.transposed(engine), b.value, into: w, compute: .f32, alpha: Float(factor) * scale, accumulate: true)
    }
}

private final class EmbeddingLoRAHook: LayerHook {
    private let a: Parameter
    private let b: Parameter
    private let scale: Float

    init(a: Parameter, b: Parameter, scale: Float) {
        self.a = a
        self.b = b
        self.scale = scale
    }

    func output(_ y: consuming Variable, ids: Tensor, of layer: Embedding, _ tape: Tape) throws(PEFTError) -> Variable {
        try tape.addLowRankEmbedding(to: y, ids: ids, a: tape.variable(a), b: tape.variable(b), scale: scale)
    }
}
