internal import Autograd
internal import Models
internal import Platform
internal import Tensors

/// What LoHa and LoKr have in common, which come from LyCORIS (Yeh et al., arXiv:2309.14859).
struct LyCORISSettings: Sendable {
    let rank: Int
    let alpha: Double
    let ranks: PatternTable
    let alphas: PatternTable
    /// Kernels of convolutions are factored by their axes (Tucker).
    let isEffective: Bool
    let dropout: LyCORISDropout
    /// The magnitude of each output trains by itself (`DecomposedModule`).
    let isDecomposed: Bool

    /// PEFT's, and LyCORIS' `weight_decompose`.
    static let defaults: JSONObject = [
        "alpha": .integer(8), "alpha_pattern": .object([:]), "exclude_modules": .null, "init_weights": .bool(true), "layers_pattern": .null,
        "layers_to_transform": .null, "module_dropout": .number(0), "modules_to_save": .null, "r": .integer(8), "rank_dropout": .number(0),
        "rank_pattern": .object([:]), "target_modules": .null, "use_effective_conv2d": .bool(false),
        "weight_decompose": .bool(false),
    ]

    init(_ configuration: AdapterConfiguration, scalesMask: Bool) throws(PEFTError) {
        rank = try configuration.integer("r")
        alpha = try configuration.number("alpha")
        ranks = try PatternTable(configuration, "rank_pattern")
        alphas = try PatternTable(configuration, "alpha_pattern")
        isEffective = try configuration.flag("use_effective_conv2d")
        isDecomposed = try configuration.flag("weight_decompose")
        dropout = LyCORISDropout(
            rows: try configuration.probability("rank_dropout"), scalesMask: scalesMask, module: try configuration.probability("module_dropout"))
    }

    func check(_ targets: [any Layer], _ model: Model) throws(PEFTError) {
        let names = targets.map(\.name)
        try ranks.check(names) { model.engine.warn($0) }
        try alphas.check(names) { model.engine.warn($0) }
    }

    /// What it is with the magnitude by itself, where that is asked for.
    func module(_ module: any MatrixModule, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule {
        isDecomposed ? try DecomposedModule(module, key: key, model) : module
    }

    /// Rank and α/r of one target.
    func values(for layer: any Layer) throws(PEFTError) -> (rank: Int, factor: Double) {
        let rank = try ranks.value(for: layer.name).map { Int(exactly: $0) ?? 0 } ?? self.rank
        try AdapterConfiguration.checkRank(rank, layer)
        return (rank, (try alphas.value(for: layer.name) ?? alpha) / Double(rank))
    }
}

/// What falls out of a branch in training: single outputs, or the whole of it.
struct LyCORISDropout: Sendable {
    let rows: Float
    /// What is left of the outputs is scaled up.
    let scalesMask: Bool
    let module: Float

    func add(to y: consuming Variable, _ tape: Tape, _ branch: (consuming Variable) throws(PEFTError) -> Variable) throws(PEFTError) -> Variable {
        guard tape.isTraining else { return try branch(y) }
        if module > 0, tape.random.uniform() <= module { return y }
        guard rows > 0 else { return try branch(y) }
        var mask = (0..<y.value.columns).map { _ in tape.random.uniform() > rows ? Float(1) : 0 }
        let mean = mask.reduce(0, +) / Float(max(mask.count, 1))
        if scalesMask, mean > 0 { mask = mask.map { $0 / mean } }
        let scale = Variable(try Tensor(tape.engine, mask, shape: [mask.count]))
        let change = try branch(Variable(try .zeros(tape.engine, y.shape, y.value.dtype)))
        return try tape.add(y, try tape.scaleColumns(change, scale: scale))
    }
}

/// A kernel by its axes: `M[p, q, tap] = Σ_ij t[i, j, tap]·a[i, p]·b[j, q]`.
struct TuckerKernel: Sendable {
    private let rank: Int
    private let inputs: Int
    private let taps: Int
    private let innerOrder: ColumnMap
    private let outerOrder: ColumnMap

    init(rank: Int, inputs: Int, taps: Int, _ engine: Engine) throws(PEFTError) {
        (self.rank, self.inputs, self.taps) = (rank, inputs, taps)
        innerOrder = try ColumnMap(engine, (0..<taps * rank).map { $0 % rank * taps + $0 / rank }, of: rank * taps)
        outerOrder = try ColumnMap(engine, (0..<taps * inputs).map { $0 % taps * inputs + $0 / taps }, of: taps * inputs)
    }

    /// `t` of any shape `[r, r, taps]`, `a` `[r, out]`, `b` `[r, in]`; the result is `[out, in·taps]`.
    func callAsFunction(_ t: Variable, _ a: Variable, _ b: Variable, _ tape: Tape) throws(PEFTError) -> Variable {
        let outputs = a.value.columns
        let first = try tape.transposedProduct(a, try tape.reshaped(t, [rank, rank * taps]))  // [out, (j, tap)]
        let rows = try tape.reshaped(try tape.gatherColumns(first, innerOrder), [outputs * taps, rank])
        let second = try tape.linear(rows, b, transposed: true)  // [out·taps, in]
        return try tape.gatherColumns(try tape.reshaped(second, [outputs, taps * inputs]), outerOrder)
    }
}

extension Tape {
    /// `y += scale · x·Dᵀ` for a D `[out, in/groups]`.
    func addProduct(
        to y: consuming Variable, input x: Variable, groups: Int, scale: Float, of inputs: [Variable],
        _ weight: @escaping (_ tape: Tape, _ inputs: [Variable]) throws(PEFTError) -> Variable
    ) throws(PEFTError) -> Variable {
        if groups == 1 { return try addProduct(to: y, input: x, scale: scale, of: inputs, weight) }
        let d = try weight(self, inputs)
        let each = d.value.rows / groups
        let parts = try splitColumns(x, Array(repeating: x.value.columns / groups, count: groups))
        let products = try parts.enumerated().map { (group, part) throws(PEFTError) in
            try linear(part, try rows(d, group * each..<(group + 1) * each), as: y.value.dtype)
        }
        return try add(y, try scaled(try concatenateColumns(products), by: scale))
    }
}

extension Tensor {
    /// torch's `kaiming_uniform_(a=√5)`: within ±1/√fan, which is what follows the first dimension.
    func fillKaiming(_ random: inout RandomStream) {
        fillUniform(fanIn: shape.dropFirst().reduce(1, *), &random)
    }
}
