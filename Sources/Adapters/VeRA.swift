internal import Autograd
package import Models
package import Platform
internal import Tensors

/// VeRA (Kopiczko et al., arXiv:2310.11454): random matrices that all layers share, and two trained vectors for each layer,
///
///     y += λ_b ⊙ B·(λ_d ⊙ A·drop(x))        A [r, in]   B [out, r]   λ_d [r]   λ_b [out]
package struct VeRA: AdapterMethod {
    package static let peftType = "VERA"
    package static let defaults: JSONObject = [
        "bias": .string("none"), "d_initial": .number(0.1), "fan_in_fan_out": .bool(false), "init_weights": .bool(true),
        "layers_pattern": .null, "layers_to_transform": .null, "modules_to_save": .null,
        "projection_prng_key": .integer(0), "r": .integer(256), "save_projection": .bool(true), "target_modules": .null,
        "vera_dropout": .number(0),
    ]
    package static var defaultTargets: [String: JSONValue] {
        DefaultTargets.lora.with((["q_proj", "v_proj"], ["phi"]))
    }

    private let rank: Int
    private let dropout: Float
    private let start: Float
    private let isIdentity: Bool
    private var projections: SharedProjections?

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        rank = try configuration.positive("r")
        dropout = try configuration.probability("vera_dropout")
        start = Float(try configuration.number("d_initial"))
        isIdentity = try configuration.flag("init_weights")
        try configuration.checkBias()
    }

    package mutating func prepare(for targets: [any Layer], _ configuration: inout AdapterConfiguration, _ model: Model)
        throws(PEFTError)
    {
        try configuration.matchLayout(of: targets, { model.engine.warn($0) })
        let layers = try targets.map { (layer) throws(PEFTError) in try VeRA.linear(layer) }
        projections = try SharedProjections("vera", ranks: (rank, rank), for: layers, configuration, model)
    }

    package var shared: [SavedTensor] { projections?.saved ?? [] }

    package func module(for layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule {
        guard let projections else { throw PEFTError(.internal, "VERA: no projections") }
        return try VeRALinear(
            VeRA.linear(layer), key: key + ".vera_lambda", ranks: (rank, rank), projections, dropout: dropout,
            start: isIdentity ? start : nil, model)
    }
}

/// VeRA of one layer; with A of twice the rank, PVeRA's mean.
class VeRALinear: LinearBranch, @unchecked Sendable {
    // Sendable: nothing changes after init.

    let linear: Linear
    let d: Parameter
    let b: Parameter
    let projections: SharedProjections
    let dropout: Float
    /// Of λ_d; nil: random, and λ_b is 1 so that the branch does something.
    private let start: Float?
    let engine: Engine

    init(
        _ linear: Linear, key: String, ranks: (d: Int, b: Int), _ projections: SharedProjections, dropout: Float, start: Float?,
        _ model: Model
    ) throws(PEFTError) {
        (self.linear, self.projections, self.dropout, self.start, engine) = (linear, projections, dropout, start, model.engine)
        d = try model.parameter(key + "_d", [ranks.d])
        b = try model.parameter(key + "_b", [linear.outputSize])
    }

    var parameters: [Parameter] { [d, b] }
    var folded: any LinearBranch { self }

    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        var random = random
        d.value.fill { start ?? random.normal() }
        b.value.fill { start == nil ? 1 : 0 }
        return [:]
    }

    func add(to y: consuming Variable, input x: Variable, beside w: Tensor, scale: Float, _ tape: Tape)
        throws(PEFTError) -> Variable
    {
        try add(to: y, input: x, scale: scale, tape) { (inner, tape) throws(PEFTError) in inner }
    }

    /// `y += scale·λ_b ⊙ B·z(λ_d ⊙ A·drop(x))`. Of all this `A·drop(x)` is kept, once for layers with one input. λ_b scales rows of B, which
    /// takes its gradient through B's; the output of the branch, the largest there would be to keep, does not exist.
    func add(
        to y: consuming Variable, input x: Variable, scale: Float, _ tape: Tape,
        z: @escaping (_ inner: Variable, _ tape: Tape) throws(PEFTError) -> Variable
    ) throws(PEFTError) -> Variable {
        let product = { [self] (x: Variable) throws(PEFTError) -> Variable in try tape.linear(x, try projections.a(for: linear, tape)) }
        let isDropped = tape.isTraining && dropout > 0
        let h = isDropped ? try product(try tape.dropout(x, dropout)) : try tape.common(of: x, projections.a) { () throws(PEFTError) in try product(x) }
        let inner = try tape.remade([h, tape.variable(d)]) { (tape, inputs) throws(PEFTError) in
            try z(try tape.scaleColumns(inputs[0], scale: inputs[1]), tape)
        }
        let rows = Variable(try projections.b(for: linear))
        return try tape.addProduct(to: y, input: inner, scale: scale, of: [tape.variable(b)]) { (tape, inputs) throws(PEFTError) in
            try tape.scaleRows(rows, inputs[0])
        }
    }
}
