internal import Autograd
package import Models
package import Platform
internal import Tensors

/// PSOFT (arXiv:2505.11235): rotates the weight's largest singular directions among each other,
///
///     y += s·B·(R − I)·A·drop(x)    R = diag(b)·C(Q)·diag(a)    C = (I + Q)·(I − Q)⁻¹    s = α/r
///
/// A and B are taken from the weight, and are not in PEFT's file: their signs are those of a library's decomposition. They are
/// kept beside it (`adapter_derived.safetensors`), so that R means the same everywhere.
package struct PSOFT: AdapterMethod {
    package static let peftType = "PSOFT"
    package static let layerKinds = ["Linear"]
    package static let defaults: JSONObject = [
        "ab_svd_init": .string("psoft_init"), "cayley_neumann_eps": .null, "exclude_modules": .null,
        "fan_in_fan_out": .bool(false), "init_weights": .bool(true), "layers_pattern": .null, "layers_to_transform": .null,
        "modules_to_save": .null, "num_cayley_neumann_terms": .integer(5), "psoft_alpha": .integer(32),
        "psoft_dropout": .number(0), "psoft_mag_a": .bool(true), "psoft_mag_b": .bool(true), "psoft_orth": .bool(true),
        "psoft_svd": .string("full"), "psoft_svd_lowrank_niter": .integer(10), "r": .integer(32), "random_seed": .integer(0),
        "target_modules": .null, "use_cayley_neumann": .bool(false),
    ]

    fileprivate let rank: Int
    fileprivate let scaling: Double
    fileprivate let dropout: Float
    fileprivate let isSplit: Bool
    fileprivate let isOrthogonal: Bool
    fileprivate let hasA: Bool
    fileprivate let hasB: Bool
    /// nil: the exact form.
    fileprivate let terms: Int?
    fileprivate let isIdentity: Bool

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        rank = try configuration.positive("r")
        scaling = try configuration.number("psoft_alpha") / Double(rank)
        guard scaling > 0 else { throw PEFTError(.argument, "psoft_alpha must be positive: singular values are divided by it") }
        dropout = try configuration.probability("psoft_dropout")
        isSplit = try configuration.choice("ab_svd_init", ["psoft_init", "pissa_init"]) == "pissa_init"
        // The directions of a randomised decomposition are the same up to what it leaves out.
        _ = try configuration.choice("psoft_svd", ["full", "lowrank"])
        isOrthogonal = try configuration.flag("psoft_orth")
        hasA = try configuration.flag("psoft_mag_a")
        hasB = try configuration.flag("psoft_mag_b")
        _ = (try configuration.integer("psoft_svd_lowrank_niter"), try configuration.seed("random_seed"))
        let isSeries = try configuration.flag("use_cayley_neumann")
        let count = try configuration.positive("num_cayley_neumann_terms")
        terms = isSeries ? count : nil
        if isSeries { try configuration.refuse(["cayley_neumann_eps"]) }
        isIdentity = try configuration.flag("init_weights")
    }

    package func module(for layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule {
        let linear = try PSOFT.linear(layer)
        guard rank <= min(linear.inputSize, linear.outputSize) else {
            throw PEFTError(
                .argument, "`r` is \(rank), but '\(layer.name)' has only \(min(linear.inputSize, linear.outputSize)) singular directions")
        }
        return try PSOFTLinear(linear, key: key, self, model)
    }
}

private final class PSOFTLinear: LinearBranch {
    let linear: Linear
    private let a: Parameter
    private let b: Parameter
    private let rotation: Parameter
    private let vectorA: Parameter?
    private let vectorB: Parameter?
    private let settings: PSOFT
    private let engine: Engine

    init(_ linear: Linear, key: String, _ settings: PSOFT, _ model: Model) throws(PEFTError) {
        (self.linear, self.settings, engine) = (linear, settings, model.engine)
        let rank = settings.rank
        a = try model.parameter(key + ".psoft_A", [rank, linear.inputSize], isTrainable: false)
        b = try model.parameter(key + ".psoft_B", [linear.outputSize, rank], isTrainable: false)
        rotation = try model.parameter(key + ".psoft_R.weight", settings.isOrthogonal ? [rank * (rank - 1) / 2] : [rank, rank])
        vectorA = settings.hasA ? try model.parameter(key + ".psoft_R.vector_a", [rank]) : nil
        vectorB = settings.hasB ? try model.parameter(key + ".psoft_R.vector_b", [rank]) : nil
    }

    let isLowRank = true
    var parameters: [Parameter] { [rotation, vectorA, vectorB].compactMap { $0 } }
    var derived: [SavedTensor] { [SavedTensor(a), SavedTensor(b)] }

    func derive() throws(PEFTError) {
        let parts = try SingularDirections(linear, engine)
        let (scaling, isSplit) = (Float(settings.scaling), settings.isSplit)
        let range = 0..<settings.rank
        a.value.set(parts.right(range) { isSplit ? (max($0, 0) / scaling).squareRoot() : 1 })
        b.value.set(parts.left(range) { isSplit ? (max($0, 0) / scaling).squareRoot() : $0 / scaling })
    }

    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        try derive()
        var random = random
        for vector in [vectorA, vectorB] { vector?.value.fill { settings.isIdentity ? 1 : 1 + random.normal() * 0.1 } }
        if !settings.isIdentity {
            rotation.value.fillNormal(0.1, &random)
        } else if !settings.isOrthogonal {
            let rank = settings.rank
            rotation.value.set((0..<rank * rank).map { $0 % (rank + 1) == 0 ? 1 : 0 })
        }
        return [:]
    }

    func add(to y: consuming Variable, input x: Variable, beside w: Tensor, scale: Float, _ tape: Tape)
        throws(PEFTError) -> Variable
    {
        let rank = settings.rank
        let shape = [1, rank, rank]
        var r = try tape.reshaped(try matrix(tape), [rank, rank])
        if let vectorB { r = try tape.scaleRows(r, tape.variable(vectorB)) }
        if let vectorA { r = try tape.scaleColumns(r, scale: tape.variable(vectorA)) }
        let identity = try tape.reshaped(try Rotation.identity(shape, tape), [rank, rank])
        let change = try tape.add(r, try tape.scaled(identity, by: -1))
        return try tape.addProduct(
            to: y, input: x, [.matrix(Variable(a.value)), .matrix(change), .matrix(Variable(b.value))],
            scale: scale * Float(settings.scaling), dropout: settings.dropout)
    }

    private func matrix(_ tape: Tape) throws(PEFTError) -> Variable {
        guard settings.isOrthogonal else { return tape.variable(rotation) }
        let rank = settings.rank
        let places = (0..<rank).flatMap { row in (row + 1..<max(row + 1, rank)).map { (row, $0) } }
        let values = try tape.reshaped(tape.variable(rotation), [1, places.count])
        let upper = try tape.scatterColumns(values, try ColumnMap(engine, places.map { $0.0 * rank + $0.1 }, of: rank * rank))
        let lower = try tape.scatterColumns(values, try ColumnMap(engine, places.map { $0.1 * rank + $0.0 }, of: rank * rank))
        let q = try tape.reshaped(try tape.add(upper, try tape.scaled(lower, by: -1)), [1, rank, rank])
        if let terms = settings.terms { return try Rotation.series(q, terms: terms, tape) }
        return try Rotation.cayley(try tape.scaled(q, by: -1), tape)
    }
}
