internal import Autograd
package import Models
package import Platform
package import Tensors

/// TinyLoRA (arXiv:2602.04118): the factors are the largest singular directions of the weight and stay; what trains is a
/// short vector that weighs frozen random matrices between them,
///
///     y += B·R·A·drop(x)    R = Σ_i v_i·P_i    A = √S·Vᵀ [r, in]   B = U·√S [out, r]   P [u, r, r]
///
/// `weight_tying` lets neighbouring layers share one v.
package struct TinyLoRA: AdapterMethod {
    package static let peftType = "TINYLORA"
    package static let layerKinds = MatrixTarget.linears + ["Embedding"]
    package static let defaults: JSONObject = [
        "bias": .string("none"), "fan_in_fan_out": .bool(false), "init_v_bound": .number(0.02), "init_weights": .bool(true),
        "layers_pattern": .null, "layers_to_transform": .null, "modules_to_save": .null, "projection_seed": .integer(42),
        "r": .integer(2), "save_projection": .bool(true), "target_modules": .null, "tinylora_dropout": .number(0),
        "u": .integer(64), "weight_tying": .number(0),
    ]

    private let rank: Int
    private let width: Int
    private let tying: Double
    private let seed: UInt64
    private let isSaved: Bool
    private let dropout: Float
    /// Within which v starts; 0: at zero.
    private let bound: Float
    private var vectors: [Parameter] = []
    /// By the layer's index: its place among the targets.
    private var places: [Int: Int] = [:]

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        rank = try configuration.positive("r")
        width = try configuration.positive("u")
        tying = try configuration.number("weight_tying")
        guard tying >= 0, tying <= 1 else {
            throw PEFTError(.argument, "weight_tying is \(tying); it must be from 0 (a vector for each layer) to 1 (one for all)")
        }
        seed = try configuration.seed("projection_seed")
        isSaved = try configuration.flag("save_projection")
        dropout = try configuration.probability("tinylora_dropout")
        let start = try configuration.choice("init_weights", ["uniform"], orFlag: true)
        bound = start == "uniform" ? Float(try configuration.number("init_v_bound")) : 0
        try configuration.checkBias()
    }

    package mutating func prepare(for targets: [any Layer], _ configuration: inout AdapterConfiguration, _ model: Model)
        throws(PEFTError)
    {
        try configuration.matchLayout(of: targets, { model.engine.warn($0) })
        for (place, layer) in targets.enumerated() { places[layer.index] = place }
        // Python rounds halves to even.
        let groups = max(1, Int((Double(targets.count) * (1 - tying)).rounded(.toNearestOrEven)))
        for group in 0..<groups { vectors.append(try model.parameter("base_model.tinylora_v.\(group)", [width])) }
    }

    /// Those that a layer uses: where groups do not divide the layers, PEFT makes no others.
    package var shared: [SavedTensor] {
        Set(places.values.map(group)).sorted().map { SavedTensor(vectors[$0]) }
    }

    private func group(of place: Int) -> Int { min(place / max(1, places.count / vectors.count), vectors.count - 1) }

    package func initializeShared(_ random: RandomStream) {
        var random = random
        for vector in vectors { vector.value.fill { (2 * random.uniform() - 1) * bound } }
    }

    package func module(for layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule {
        let place = places[layer.index] ?? 0
        let frame = try TinyLoRAFrame(
            layer, key: key, rank: rank, width: width, vectors[group(of: place)], seed: seed &+ UInt64(place), isSaved: isSaved,
            dropout: dropout, model)
        switch layer {
        case let linear as Linear: return TinyLoRALinear(linear, frame)
        case let embedding as Embedding: return TinyLoRAEmbedding(embedding, frame)
        default:
            throw PEFTError(.unsupported, "'\(layer.name)' is \(layer.kind); TINYLORA adapts Linear, Conv1D and Embedding")
        }
    }
}

/// The frozen parts of one layer, and the vector it uses.
private final class TinyLoRAFrame: Sendable {
    let a: Parameter
    let b: Parameter
    /// f32 `[u, r, r]`
    let p: Parameter
    let v: Parameter
    let dropout: Float
    private let isSaved: Bool
    private let layer: any Layer
    private let engine: Engine

    init(
        _ layer: any Layer, key: String, rank: Int, width: Int, _ v: Parameter, seed: UInt64, isSaved: Bool, dropout: Float,
        _ model: Model
    ) throws(PEFTError) {
        (self.layer, self.v, self.isSaved, self.dropout, engine) = (layer, v, isSaved, dropout, model.engine)
        let weight = layer.tensor("weight")
        var (outputs, inputs) = (weight?.rows ?? 1, weight?.columns ?? 1)
        if (layer as? Linear)?.isTransposed ?? false { swap(&outputs, &inputs) }
        let rank = min(rank, inputs, outputs)
        a = try model.parameter(key + ".tinylora_A", [rank, inputs], isTrainable: false)
        b = try model.parameter(key + ".tinylora_B", [outputs, rank], isTrainable: false)
        p = try model.parameter(key + ".tinylora_P", [width, rank, rank], isTrainable: false)
        var generator = TorchGenerator(seed: seed)
        p.value.set(generator.normal(p.value.count, deviation: Float(1 / Double(rank).squareRoot())))
    }

    var parameters: [Parameter] { isSaved ? [a, b, p] : [a, b] }

    func initialize() throws(PEFTError) -> [String: Tensor] {
        guard let stored = layer.tensor("weight") else { return [:] }
        let w = try stored.converted(to: .f32, engine, .scratch)
        let isTransposed = (layer as? Linear)?.isTransposed ?? false
        let (u, s, vh) = try Decompositions(engine).singularValues(isTransposed ? try w.transposed(engine) : w)
        let roots = try s.floats(engine).map { max($0, 0).squareRoot() }
        let rank = a.value.rows, inputs = a.value.columns, width = u.columns
        let (left, right) = (try u.floats(engine), try vh.floats(engine))
        a.value.set((0..<rank * inputs).map { roots[$0 / inputs] * right[$0] })
        b.value.set((0..<b.value.rows * rank).map { left[$0 / rank * width + $0 % rank] * roots[$0 % rank] })
        return [:]
    }

    /// R `[r, r]`
    func middle(_ tape: Tape) throws(PEFTError) -> Variable {
        let rank = a.value.rows
        let flat = Variable(try p.value.reshaped([p.value.shape[0], rank * rank]))
        let row = try tape.reshaped(tape.variable(v), [1, v.value.count])
        return try tape.reshaped(try tape.linear(row, flat, transposed: true), [rank, rank])
    }
}

private final class TinyLoRALinear: LinearBranch {
    let linear: Linear
    private let frame: TinyLoRAFrame

    init(_ linear: Linear, _ frame: TinyLoRAFrame) { (self.linear, self.frame) = (linear, frame) }

    let isLowRank = true
    var parameters: [Parameter] { frame.parameters }

    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] { try frame.initialize() }

    func add(to y: consuming Variable, input x: Variable, beside w: Tensor, scale: Float, _ tape: Tape)
        throws(PEFTError) -> Variable
    {
        try tape.addProduct(
            to: y, input: x, [.matrix(Variable(frame.a.value)), .matrix(try frame.middle(tape)), .matrix(Variable(frame.b.value))],
            scale: scale, dropout: frame.dropout)
    }
}

/// Of a table E = U·S·Vᵀ: row i gets `B[i]·R·A`, dropout behind the look-up.
private final class TinyLoRAEmbedding: AdapterModule {
    private let embedding: Embedding
    private let frame: TinyLoRAFrame

    init(_ embedding: Embedding, _ frame: TinyLoRAFrame) { (self.embedding, self.frame) = (embedding, frame) }

    var layer: any Layer { embedding }
    var parameters: [Parameter] { frame.parameters }

    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] { try frame.initialize() }

    func hook(scale: Float, beside replacements: [String: Parameter]) -> any LayerHook { TinyLoRAEmbeddingHook(frame, scale) }

    func fold(into weights: inout FoldedWeights, scale: Float) throws(PEFTError) {
        guard let w = try weights.tensor("weight") else { return }
        let engine = weights.engine
        let middle = try frame.middle(Tape(engine, .f32)).value
        let left = try Tensor(engine, frame.b.value.shape, .f32, .scratch)
        try engine.multiply(.inputGradient, frame.b.value, middle, into: left, compute: .f32)
        try engine.multiply(.inputGradient, left, frame.a.value, into: w, compute: .f32, alpha: scale, accumulate: true)
    }
}

private final class TinyLoRAEmbeddingHook: LayerHook {
    private let frame: TinyLoRAFrame
    private let scale: Float

    init(_ frame: TinyLoRAFrame, _ scale: Float) { (self.frame, self.scale) = (frame, scale) }

    func output(_ y: consuming Variable, ids: Tensor, of layer: Embedding, _ tape: Tape) throws(PEFTError) -> Variable {
        let rows = try tape.dropout(try tape.embedding(ids, Variable(frame.b.value)), frame.dropout)
        let inner = try tape.linear(rows, try frame.middle(tape), transposed: true)
        let change = try tape.linear(try tape.scaled(inner, by: scale), Variable(frame.a.value), transposed: true, as: y.value.dtype)
        return try tape.add(y, change)
    }
}
