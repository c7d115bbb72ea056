internal import Autograd
package import Models
package import Platform
internal import Tensors

/// PEANuT (arXiv:2410.01870): a small network over the weight makes its change,
///
///     h₀ = σ(A·W)    h = σ(E_i·h) going down, h = σ(D_i·h) + what was there coming up    ΔW = scaling·B·h
package struct PEANuT: AdapterMethod {
    package static let peftType = "PEANUT"
    package static let layerKinds = ["Linear"]
    package static let defaults: JSONObject = [
        "act_fn": .string("relu"), "depth": .integer(0), "exclude_modules": .null, "init_weights": .bool(true),
        "layers_pattern": .null, "layers_to_transform": .null, "modules_to_save": .null, "r": .integer(32),
        "scaling": .number(1), "target_modules": .null,
    ]

    private let rank: Int
    private let depth: Int
    private let kind: ActivationKind
    private let scaling: Float
    private let isIdentity: Bool

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        rank = try configuration.positive("r")
        depth = try configuration.integer("depth")
        guard 0...64 ~= depth else { throw PEFTError(.argument, "depth is \(depth); it must be from 0 to 64") }
        let name = try configuration.values.text("act_fn") ?? ""
        guard let kind = ActivationKind(named: name) else {
            throw PEFTError(
                .unsupported, "act_fn is '\(name)'; it can be \(ActivationKind.names.joined(separator: ", "))")
        }
        self.kind = kind
        scaling = Float(try configuration.number("scaling"))
        isIdentity = try configuration.flag("init_weights")
    }

    package func module(for layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule {
        try PEANuTLinear(
            PEANuT.linear(layer), key: key + ".peanut_", rank: rank, depth: depth, kind, scaling: scaling,
            isIdentity: isIdentity, model)
    }
}

private final class PEANuTLinear: LinearBranch {
    let linear: Linear
    private let a: Parameter
    private let b: Parameter
    private let encoders: [Parameter]
    private let decoders: [Parameter]
    private let kind: ActivationKind
    private let factor: Float
    private let isIdentity: Bool

    init(
        _ linear: Linear, key: String, rank: Int, depth: Int, _ kind: ActivationKind, scaling: Float, isIdentity: Bool, _ model: Model
    ) throws(PEFTError) {
        (self.linear, self.kind, factor, self.isIdentity) = (linear, kind, scaling, isIdentity)
        a = try model.parameter(key + "A.weight", [rank, linear.outputSize])
        b = try model.parameter(key + "B.weight", [linear.outputSize, rank])
        encoders = try (0..<depth).map { (i) throws(PEFTError) in try model.parameter(key + "encoders.\(i).weight", [rank, rank]) }
        decoders = try (0..<depth).map { (i) throws(PEFTError) in try model.parameter(key + "decoders.\(i).weight", [rank, rank]) }
    }

    var parameters: [Parameter] { [a, b] + encoders + decoders }
    /// The network sees the layer's own weight, also while others change it too.
    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        var random = random
        a.value.fillUniform(fanIn: linear.outputSize, &random)
        for layer in encoders + decoders { layer.value.fillUniform(fanIn: a.value.rows, &random) }
        if isIdentity { b.value.clear() } else { b.value.fillUniform(fanIn: a.value.rows, &random) }
        return [:]
    }

    func add(to y: consuming Variable, input x: Variable, beside w: Tensor, scale: Float, _ tape: Tape)
        throws(PEFTError) -> Variable
    {
        // Columns of h `[r, in]` are what PEFT has in rows.
        var h = try tape.activation(try tape.linear(tape.variable(a), frozen: w, transposed: !linear.isTransposed), kind)
        var residuals: [Variable] = []
        for encoder in encoders {
            residuals.append(h)
            h = try tape.activation(try tape.linear(tape.variable(encoder), h, transposed: true), kind)
        }
        for (decoder, residual) in zip(decoders, residuals.reversed()) {
            h = try tape.add(try tape.activation(try tape.linear(tape.variable(decoder), h, transposed: true), kind), residual)
        }
        return try tape.addProduct(to: y, input: x, [.matrix(h), .matrix(tape.variable(b))], scale: scale * factor)
    }
}
