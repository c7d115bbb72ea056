internal import Autograd
package import Models
package import Platform
internal import Tensors

/// DeLoRA (Bini et al., arXiv:2503.18225): a branch of low rank whose strength is a parameter of its own,
///
///     ΔW = B·diag( λ/r / (‖A_i‖·‖B_i‖) )·A · diag(n)        n the norms of W's columns when the adapter was made
///
/// For linear layers.
package struct DeLoRA: AdapterMethod {
    package static let peftType = "DELORA"
    package static let layerKinds = ["Linear"]

    package static let defaults: JSONObject = [
        "bias": .string("none"), "delora_lambda": .integer(15), "exclude_modules": .null, "init_weights": .bool(true), "lambda_pattern": .object([:]),
        "layers_pattern": .null, "layers_to_transform": .null, "module_dropout": .number(0), "modules_to_save": .null, "r": .integer(8),
        "rank_pattern": .object([:]), "target_modules": .null,
    ]

    private let rank: Int
    private let lambda: Double
    private let (ranks, lambdas): (PatternTable, PatternTable)
    private let dropout: Float
    private let isIdentity: Bool

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        try configuration.checkBias()
        rank = try configuration.integer("r")
        lambda = try configuration.number("delora_lambda")
        ranks = try PatternTable(configuration, "rank_pattern")
        lambdas = try PatternTable(configuration, "lambda_pattern")
        dropout = try configuration.probability("module_dropout")
        isIdentity = try configuration.flag("init_weights")
    }

    package mutating func prepare(for targets: [any Layer], _ configuration: inout AdapterConfiguration, _ model: Model) throws(PEFTError) {
        try ranks.check(targets.map(\.name)) { model.engine.warn($0) }
        try lambdas.check(targets.map(\.name)) { model.engine.warn($0) }
    }

    package func module(for layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule {
        let target = try MatrixTarget(layer, of: DeLoRA.self)
        let rank = try ranks.value(for: layer.name).map { Int(exactly: $0) ?? 0 } ?? self.rank
        try AdapterConfiguration.checkRank(rank, layer)
        let lambda = try lambdas.value(for: layer.name) ?? self.lambda
        return try DeLoRAModule(target, key: key, rank: rank, lambda: lambda, dropout: dropout, isIdentity: isIdentity, model.engine)
    }
}

private final class DeLoRAModule: MatrixModule {
    let target: MatrixTarget
    /// f32 `[r, in]`, `[out, r]`, `[1]`
    private let (a, b, lambda): (Parameter, Parameter, Parameter)
    /// f32 `[in]`, not trained
    private let norms: Parameter
    private let strength: Double
    private let dropout: Float
    private let isIdentity: Bool
    private let engine: Engine
    /// λ for each rank.
    private let all: ColumnMap

    init(_ target: MatrixTarget, key: String, rank: Int, lambda: Double, dropout: Float, isIdentity: Bool, _ engine: Engine) throws(PEFTError) {
        self.target = target
        self.engine = engine
        (strength, self.dropout, self.isIdentity) = (lambda, dropout, isIdentity)
        a = Parameter(name: key + ".delora_A", value: try .zeros(engine, [rank, target.inputSize], .f32, .adapters))
        b = Parameter(name: key + ".delora_B", value: try .zeros(engine, [target.outputSize, rank], .f32, .adapters))
        self.lambda = Parameter(name: key + ".delora_lambda", value: try .zeros(engine, [1], .f32, .adapters))
        norms = Parameter(name: key + ".delora_w_norm", value: try .zeros(engine, [target.inputSize], .f32, .adapters), isTrainable: false)
        all = try ColumnMap(engine, Array(repeating: 0, count: rank), of: 1)
    }

    let isLowRank = true
    var parameters: [Parameter] { [a, b, lambda, norms] }

    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        var random = random
        a.value.fillKaiming(&random)
        if !isIdentity { b.value.fillKaiming(&random) }
        lambda.value.fill { Float(strength) }
        let w = try target.weight(target.linear.weight, engine)
        let width = target.inputSize
        var squares = [Double](repeating: 0, count: width)
        unsafe w.withFloats { w in
            for place in w.indices { unsafe squares[place % width] += Double(w[place]) * Double(w[place]) }
        }
        var column = 0
        norms.value.fill {
            column += 1
            return Float(squares[column - 1].squareRoot())
        }
        return [:]
    }

    func add(to y: consuming Variable, input x: Variable, scale: Float, _ site: HookSite) throws(PEFTError) -> Variable {
        let tape = site.tape
        let (a, b) = (tape.variable(a), tape.variable(b))
        let rank = a.value.rows
        let inverse = try tape.multiply(try tape.inverseNorms(a, ofColumns: false, floor: 1e-4), try tape.inverseNorms(b, ofColumns: true, floor: 1e-4))
        let lambda = try tape.reshaped(try tape.gatherColumns(try tape.reshaped(tape.variable(lambda), [1, 1]), all), [rank])
        let scaled = try tape.scaleRows(try tape.scaleColumns(a, scale: tape.variable(norms)), try tape.multiply(lambda, inverse))
        return try tape.addLowRank(to: y, input: x, a: scaled, b: b, scale: scale / Float(rank), dropout: dropout)
    }
}
