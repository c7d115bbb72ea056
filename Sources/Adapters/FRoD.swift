internal import Autograd
package import Models
package import Platform
internal import Synchronization
internal import Tensors

/// FRoD: the weights of layers that do the same in their blocks share right directions V; left ones are the layer's own,
///
///     W = U·diag(λ₀)·Vᵀ    W' = U·(S + diag(λ))·Vᵀ    so    y += U·(S + diag(λ − λ₀))·Vᵀ·drop(x)
///
/// λ and the few values of S, which stand beside the diagonal, train. After PEFT's `frod`.
package struct FRoD: AdapterMethod {
    package static let peftType = "FROD"
    package static let defaults: JSONObject = [
        "bias": .string("none"), "fan_in_fan_out": .bool(false), "frod_dropout": .number(0), "init_weights": .bool(true), "layers_pattern": .null,
        "layers_to_transform": .null, "modules_to_save": .null, "progressbar": .bool(true), "projection_prng_key": .integer(0),
        "regularization_alpha": .number(0.001), "runtime_offload_base_weight": .bool(false), "save_projection": .bool(true), "sparse_rate": .number(0.01),
        "target_modules": .null,
    ]
    package static var defaultTargets: [String: JSONValue] { VeRA.defaultTargets.with((["query", "value"], ["vit"])) }

    private let dropout: Float
    private let isIdentity: Bool
    private let rate: Double
    private let ridge: Float
    private var categories: [String: FRoDCategory] = [:]

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        dropout = try configuration.probability("frod_dropout")
        isIdentity = try configuration.flag("init_weights")
        rate = try configuration.number("sparse_rate")
        ridge = Float(try configuration.number("regularization_alpha"))
        guard rate >= 0, rate <= 1 else { throw PEFTError(.argument, "sparse_rate is \(rate); 0 to 1 is accepted") }
        guard ridge > 0, ridge.isFinite else { throw PEFTError(.argument, "regularization_alpha is \(ridge); it must be positive") }
        guard try configuration.flag("save_projection") else {
            throw PEFTError(.unsupported, "save_projection false: shared directions cannot be computed again to the same signs, so they are kept in the file")
        }
        // A bar is the host's business, and where weights lie the system's (they are mapped).
        _ = (try configuration.flag("progressbar"), try configuration.flag("runtime_offload_base_weight"))
        try configuration.checkBias()
    }

    package mutating func prepare(for targets: [any Layer], _ configuration: inout AdapterConfiguration, _ model: Model) throws(PEFTError) {
        try configuration.matchLayout(of: targets, { model.engine.warn($0) })
        var layers: [String: [(place: Int, linear: Linear)]] = [:]
        for (index, target) in targets.enumerated() {
            let linear = try FRoD.linear(target)
            layers[FRoD.category(of: linear.name), default: []].append((FRoD.place(of: linear.name, index), linear))
        }
        var generator = TorchGenerator(seed: try configuration.seed("projection_prng_key"))
        for (name, members) in layers.sorted(by: { $0.key < $1.key }) {
            let linears = members.sorted { $0.place < $1.place }.map(\.linear)
            categories[name] = try FRoDCategory(name, linears, rate: rate, ridge: ridge, &generator, model)
        }
    }

    package var shared: [SavedTensor] { categories.sorted { $0.key < $1.key }.flatMap(\.value.saved) }

    package func module(for layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule {
        guard let category = categories[FRoD.category(of: layer.name)] else { throw PEFTError(.internal, "FROD: no directions for '\(layer.name)'") }
        return try FRoDLinear(try FRoD.linear(layer), key: key, category, dropout: dropout, isIdentity: isIdentity, model)
    }

    /// "…self_attn.q_proj" is "self_attn_q_proj".
    private static func category(of name: String) -> String {
        let parts = name.split(separator: ".")
        guard parts.count > 1, let last = parts.last else { return name }
        let parent = parts[parts.count - 2]
        if parent.allSatisfy(\.isASCIIDigit) { return String(last) }
        let isAttention = parent == "output" && last == "dense" && parts.count > 2 && parts[parts.count - 3] == "attention"
        return isAttention ? "attention_output" : "\(parent)_\(last)"
    }

    /// The number of the layer's block.
    private static func place(of name: String, _ fallback: Int) -> Int {
        let parts = name.split(separator: ".")
        if let layers = parts.firstIndex(of: "layers"), layers + 1 < parts.count, let number = Int(parts[layers + 1]) { return number }
        return parts.lazy.compactMap { $0.allSatisfy(\.isASCIIDigit) ? Int($0) : nil }.first ?? fallback
    }
}

/// What the layers of one kind share.
private final class FRoDCategory: Sendable {
    /// f32 `[in, in]`
    let v: Parameter
    /// `[2, n]`: rows, then columns of S.
    let table: IndexTable
    private let size: IndexTable
    private let layers: [Linear]
    private let ridge: Float
    private let engine: Engine
    private let isDecomposed = Mutex(false)

    init(_ name: String, _ layers: [Linear], rate: Double, ridge: Float, _ generator: inout TorchGenerator, _ model: Model) throws(PEFTError) {
        let inputs = layers.first?.inputSize ?? 0
        guard let first = layers.first, inputs * inputs <= Int32.max, layers.allSatisfy({ $0.inputSize == inputs }) else {
            throw PEFTError(.argument, "FROD: '\(layers.first?.name ?? name)' and others of its name have different numbers of inputs")
        }
        guard inputs > 1 else { throw PEFTError(.argument, "FROD: '\(first.name)' has one input") }
        (self.layers, self.ridge, engine) = (layers, ridge, model.engine)
        v = try model.parameter("base_model.frod_V." + name, [inputs, inputs], isTrainable: false)
        let beside = inputs * (inputs - 1)
        let count = rate > 0 ? max(1, min(Int(Double(inputs * inputs) * rate), beside)) : 0
        // Places beside the diagonal, row by row: number p of a row of in − 1 jumps over the diagonal.
        let places = generator.permutation(of: beside, first: count)
        let rows = places.map { Int32(clamping: $0 / (inputs - 1)) }
        let columns = places.map { Int32(clamping: $0 % (inputs - 1) + ($0 % (inputs - 1) >= $0 / (inputs - 1) ? 1 : 0)) }
        table = IndexTable(key: "base_model.frod_s_indices." + name, shape: [2, count], as: .i64, below: inputs, rows + columns)
        let width = Int32(clamping: inputs)
        size = IndexTable(key: "base_model.frod_s_size." + name, shape: [2], as: .i64, below: inputs + 1, [width, width])
    }

    var saved: [SavedTensor] { [SavedTensor(v), SavedTensor(table), SavedTensor(size)] }

    /// Fresh directions, once:
    ///
    ///     [W₁; W₂; …] = Q·R    T = mean (QᵢᵀQᵢ + α·I)⁻¹ = Z·D·Zᵀ    V = Rᵀ·Z
    ///
    /// or, where there are fewer rows than columns, all right singular vectors.
    func decompose() throws(PEFTError) {
        guard isDecomposed.withLock({ done in defer { done = true }; return !done }) else { return }
        let inputs = v.value.rows
        let decompositions = try Decompositions(engine)
        let stacked = try Tensor(engine, [layers.reduce(0) { $0 + $1.outputSize }, inputs], .f32, .scratch)
        var start = 0
        for layer in layers {
            let w = try layer.weight.converted(to: .f32, engine, .scratch)
            engine.axpby(1, layer.isTransposed ? try w.transposed(engine) : w, 0, into: try stacked.rows(start..<start + layer.outputSize))
            start += layer.outputSize
        }
        let square = try Tensor.zeros(engine, [inputs, inputs], .f32, .scratch)
        guard stacked.rows >= inputs else {
            try engine.multiply(.weightGradient, stacked, stacked, into: square, compute: .f32)
            return engine.axpby(1, try decompositions.eigenvectors(of: square), 0, into: v.value)
        }
        let (q, r) = try decompositions.factors(stacked, count: inputs)
        start = 0
        for layer in layers {
            let part = try q.rows(start..<start + layer.outputSize)
            let term = try Tensor(engine, [inputs, inputs], .f32, .scratch)
            try engine.multiply(.weightGradient, part, part, into: term, compute: .f32)
            term.addToDiagonal(ridge)
            guard let inverse = try decompositions.inverse(ofSymmetric: term) else {
                throw PEFTError(.numeric, "FROD: '\(layer.name)' and others of its name have no shared directions; are all weights finite?")
            }
            engine.axpby(1 / Float(layers.count), inverse, 1, into: square)
            start += layer.outputSize
        }
        try engine.multiply(.weightGradient, r, try decompositions.eigenvectors(of: square), into: v.value, compute: .f32)
    }
}

private final class FRoDLinear: LinearBranch, @unchecked Sendable {
    // Sendable: the frozen parts are set before anybody else knows the module.

    let linear: Linear
    private let lambda: Parameter
    private let values: Parameter
    private let category: FRoDCategory
    /// `[out, in]` in the type of activations (as large as the model's weights), and f32 `[in]`: taken from the weight.
    private var u: Tensor
    private let negative: Tensor
    private let dropout: Float
    private let isIdentity: Bool
    private let engine: Engine

    init(_ linear: Linear, key: String, _ category: FRoDCategory, dropout: Float, isIdentity: Bool, _ model: Model) throws(PEFTError) {
        (self.linear, self.category, self.dropout, self.isIdentity, engine) = (linear, category, dropout, isIdentity, model.engine)
        lambda = try model.parameter(key + ".frod_lambda_l", [linear.inputSize])
        values = try model.parameter(key + ".frod_lambda_s_values", [category.table.values.count / 2])
        u = try .zeros(engine, [linear.outputSize, linear.inputSize], model.precision.activation, .adapters)
        negative = try .zeros(engine, [linear.inputSize], .f32, .adapters)
    }

    var parameters: [Parameter] { [lambda, values] }
    let derivesFromShared = true

    /// Directions that W does not have come out of f32 with about 2e-7 of the longest column's norm. PEFT makes U's columns of that noise, which
    /// another machine (another LAPACK) has otherwise; here they are zero, as its norms below 1e-12 are there.
    private static let noise: Float = 1e-6

    /// `B = W·V⁻ᵀ`, λ₀ the norms of its columns, U what is left.
    func derive() throws(PEFTError) {
        let stored = try linear.weight.converted(to: .f32, engine, .scratch)
        let w = linear.isTransposed ? try stored.transposed(engine) : stored
        guard let b = try Decompositions(engine).solutions(of: try category.v.value.converted(to: .f32, engine, .scratch), rows: w), b.squaredNorm.isFinite else {
            throw PEFTError(.numeric, "FROD: the directions \(category.v.name) of '\(linear.name)' are not independent")
        }
        let (width, rows) = (linear.inputSize, linear.outputSize)
        unsafe b.withMutableFloats { u in
            unsafe negative.withMutableFloats { negative in
                for column in 0..<width {
                    var square = 0.0
                    for row in 0..<rows { unsafe square += Double(u[row * width + column]) * Double(u[row * width + column]) }
                    unsafe negative[column] = -Float(square.squareRoot())
                }
                let least = unsafe max(1e-12, FRoDLinear.noise * -(negative.min() ?? 0))
                for column in 0..<width {
                    let norm = unsafe -negative[column]
                    for row in 0..<rows { unsafe u[row * width + column] = norm > least ? u[row * width + column] / norm : 0 }
                }
            }
        }
        u = try b.converted(to: u.dtype, engine, .adapters)
    }

    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        try category.decompose()
        try derive()
        var random = random
        values.value.fill { isIdentity ? 0 : random.normal() * 0.1 }
        lambda.value.fill { isIdentity ? 0 : random.normal() * 0.1 }
        engine.axpby(-1, negative, 1, into: lambda.value)
        return [:]
    }

    func add(to y: consuming Variable, input x: Variable, beside w: Tensor, scale: Float, _ tape: Tape) throws(PEFTError) -> Variable {
        let inputs = linear.inputSize
        let change = try category.table.change { (places) throws(PEFTError) in
            let half = places.count / 2
            return try SparseChange(engine, rows: Array(places.prefix(half)), columns: Array(places.suffix(half)), from: .none(inputs), to: .none(inputs))
        }
        let h = try tape.linear(try tape.dropout(x, dropout), Variable(category.v.value), transposed: true)
        var z = try tape.scaleColumns(h, scale: try tape.add(tape.variable(lambda), Variable(negative)))
        if values.value.count > 0 { z = try change.add(to: z, input: h, tape.variable(values), scale: 1, tape) }
        return try tape.addProduct(to: y, input: z, [.matrix(Variable(u))], scale: scale)
    }
}

extension Tensor {
    /// Adds a number to the diagonal of a square f32 matrix.
    func addToDiagonal(_ value: Float) {
        let size = columns
        unsafe withMutableFloats { values in
            for index in stride(from: 0, to: values.count, by: size + 1) { unsafe values[index] += value }
        }
    }
}
