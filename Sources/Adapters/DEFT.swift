internal import Autograd
package import Models
package import Platform
internal import Tensors

/// DEFT: takes a subspace out of a weight's output and puts something new in its place; PaRa takes out only,
///
///     ΔW = −Q·Rightᵀ·W + s·Q·R        relu: Q = P, Right = relu(P)        qr: Q = Right, P = Q·(triangular)
package struct DEFT: AdapterMethod {
    package static let peftType = "DEFT"
    package static let defaults: JSONObject = [
        "alpha": .null, "bias": .string("none"), "decomposition_method": .string("relu"), "deft_dropout": .number(0),
        "exclude_modules": .null, "fan_in_fan_out": .bool(false), "init_scale": .number(1), "init_weights": .bool(true),
        "layers_pattern": .null, "layers_to_transform": .null, "modules_to_save": .null, "para": .bool(false),
        "r": .integer(8), "target_modules": .null,
    ]

    private let rank: Int
    private let alpha: Double?
    private let isOrthogonal: Bool
    private let onlyRemoves: Bool
    private let dropout: Float
    /// Of R; nil: what is taken out is put back.
    private let deviation: Float?

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        rank = try configuration.positive("r")
        let alpha = try configuration.values.double("alpha")
        self.alpha = alpha == 0 ? nil : alpha
        isOrthogonal = try configuration.choice("decomposition_method", ["relu", "qr"]) == "qr"
        onlyRemoves = try configuration.flag("para")
        dropout = try configuration.probability("deft_dropout")
        let scale = try configuration.number("init_scale")
        deviation = try configuration.flag("init_weights") ? nil : Float(0.02 * scale)
        try configuration.checkBias()
    }

    package mutating func prepare(for targets: [any Layer], _ configuration: inout AdapterConfiguration, _ model: Model)
        throws(PEFTError)
    {
        try configuration.matchLayout(of: targets) { model.engine.warn($0) }
    }

    package func module(for layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule {
        let linear = try DEFT.linear(layer)
        let rank = min(rank, linear.outputSize)
        return try DEFTLinear(
            linear, key: key, rank: rank, scaling: Float(alpha.map { $0 / Double(rank) } ?? 1), isOrthogonal: isOrthogonal,
            onlyRemoves: onlyRemoves, dropout: dropout, deviation: deviation, model)
    }
}

private final class DEFTLinear: LinearBranch {
    let linear: Linear
    /// f32 `[out, r]`
    private let p: Parameter
    /// f32 `[r, in]`; nil: PaRa.
    private let r: Parameter?
    private let factor: Float
    private let isOrthogonal: Bool
    private let dropout: Float
    private let deviation: Float?
    private let engine: Engine

    init(
        _ linear: Linear, key: String, rank: Int, scaling: Float, isOrthogonal: Bool, onlyRemoves: Bool, dropout: Float,
        deviation: Float?, _ model: Model
    ) throws(PEFTError) {
        (self.linear, factor, self.isOrthogonal, self.dropout, self.deviation) = (linear, scaling, isOrthogonal, dropout, deviation)
        engine = model.engine
        p = try model.parameter(key + ".deft_P", [linear.outputSize, rank])
        r = onlyRemoves ? nil : try model.parameter(key + ".deft_R", [rank, linear.inputSize])
    }

    let isLowRank = true
    var parameters: [Parameter] { [p, r].compactMap { $0 } }

    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        var random = random
        p.value.fillNormal(0.02, &random)
        guard let r else { return [:] }
        if let deviation {
            r.value.fillNormal(deviation, &random)
        } else {
            engine.axpby(1 / factor, try taken(Tape(engine, .f32), linear.weight).removed.value, 0, into: r.value)
        }
        return [:]
    }

    /// Q `[out, r]` and `Rightᵀ·W` `[r, in]`.
    private func taken(_ tape: Tape, _ w: Tensor) throws(PEFTError) -> (q: Variable, removed: Variable) {
        let p = tape.variable(p)
        let q = isOrthogonal ? try tape.orthonormalized(p) : p
        let right = isOrthogonal ? q : try tape.activation(p, .relu)
        let rank = p.value.columns
        let identity = try tape.reshaped(try Rotation.identity([1, rank, rank], tape), [rank, rank])
        let turned = try tape.linear(identity, right)  // Rightᵀ
        return (q, try tape.linear(turned, frozen: w, transposed: !linear.isTransposed))
    }

    func add(to y: consuming Variable, input x: Variable, beside w: Tensor, scale: Float, _ tape: Tape)
        throws(PEFTError) -> Variable
    {
        let (q, removed) = try taken(tape, w)
        guard let r else { return try tape.addLowRank(to: y, input: x, a: removed, b: q, scale: -scale) }
        if tape.isTraining, dropout > 0 {
            let rest = try tape.addLowRank(to: y, input: x, a: removed, b: q, scale: -scale)
            return try tape.addLowRank(to: rest, input: x, a: tape.variable(r), b: q, scale: scale * factor, dropout: dropout)
        }
        let change = try tape.add(try tape.scaled(tape.variable(r), by: factor), try tape.scaled(removed, by: -1))
        return try tape.addLowRank(to: y, input: x, a: change, b: q, scale: scale)
    }
}
