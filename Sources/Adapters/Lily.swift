internal import Autograd
package import Models
package import Platform
internal import Tensors

/// Lily (arXiv:2407.09946): layers of one kind share a set of B, neighbouring ones an A, and a router of each layer's own mixes,
///
///     h = A·x    p = mean over all tokens of softmax(W_r·h)    y += scaling·(Σ_e p_e·B_e)ᵀ·h
///
/// The mean is over the whole batch, padding included, as in PEFT: what a sample gets depends on its neighbours.
package struct Lily: AdapterMethod {
    package static let peftType = "LILY"
    package static let layerKinds = ["Linear"]
    package static let defaults: JSONObject = [
        "exclude_modules": .null, "init_weights": .bool(true), "layers_pattern": .null, "layers_to_transform": .null,
        "modules_to_save": .null, "num_B": .integer(2), "r": .integer(32), "scaling": .number(1), "stride_A": .integer(1),
        "target_modules": .null,
    ]

    private let rank: Int
    private let experts: Int
    private let stride: Int
    private let scaling: Float
    private let isIdentity: Bool
    /// By the layer's index.
    private var factors: [Int: (a: Parameter, b: Parameter)] = [:]

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        rank = try configuration.positive("r")
        experts = try configuration.positive("num_B")
        stride = try configuration.positive("stride_A")
        scaling = Float(try configuration.number("scaling"))
        isIdentity = try configuration.flag("init_weights")
    }

    package mutating func prepare(for targets: [any Layer], _ configuration: inout AdapterConfiguration, _ model: Model)
        throws(PEFTError)
    {
        // PEFT groups by the entry that names a layer; what a pattern matches is one group.
        let isPattern = configuration.values["target_modules"]?.stringValue.map { $0.lowercased() != "all-linear" } ?? false
        let names = try configuration.values["target_modules"]?.arrayValue == nil ? [] : configuration.values.strings("target_modules") ?? []
        var groups: [String: [Linear]] = [:]
        for layer in targets {
            let linear = try Lily.linear(layer)
            let kind = isPattern ? "" : names.first { layer.name.isNamed($0) } ?? layer.name.split(separator: ".").last.map(String.init) ?? ""
            groups["\(kind) \(linear.outputSize) \(linear.inputSize)", default: []].append(linear)
        }
        for group in groups.values {
            guard let first = group.first else { continue }
            // Under the first user's keys; the others' are the same tensors.
            let b = try model.parameter(Adapter.prefix + first.name + ".lily_B.weight", [experts * rank, first.outputSize])
            for start in Swift.stride(from: 0, to: group.count, by: stride) {
                let a = try model.parameter(Adapter.prefix + group[start].name + ".lily_A.weight", [rank, first.inputSize])
                for linear in group[start..<min(start + stride, group.count)] { factors[linear.index] = (a, b) }
            }
        }
    }

    package func module(for layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule {
        guard let (a, b) = factors[layer.index] else { throw PEFTError(.internal, "LILY: no factors for '\(layer.name)'") }
        return try LilyLinear(
            Lily.linear(layer), key: key, a, b, experts: experts, scaling: scaling, isIdentity: isIdentity, model)
    }
}

private final class LilyLinear: LinearBranch {
    let linear: Linear
    let views: [SavedTensor]
    private let a: Parameter
    private let b: Parameter
    private let router: Parameter
    private let factor: Float
    private let isIdentity: Bool

    init(
        _ linear: Linear, key: String, _ a: Parameter, _ b: Parameter, experts: Int, scaling: Float, isIdentity: Bool, _ model: Model
    ) throws(PEFTError) {
        (self.linear, self.a, self.b, factor, self.isIdentity) = (linear, a, b, scaling, isIdentity)
        router = try model.parameter(key + ".lily_router.weight", [experts, a.value.rows])
        views = [SavedTensor(a, key: key + ".lily_A.weight"), SavedTensor(b, key: key + ".lily_B.weight")]
    }

    var parameters: [Parameter] { [router] }
    let readsAllRows = true

    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        var random = random
        router.value.fillUniform(fanIn: a.value.rows, &random)
        // Shared ones are filled by each user; the last one's values stay.
        a.value.fillUniform(fanIn: linear.inputSize, &random)
        if !isIdentity { b.value.fillUniform(fanIn: linear.outputSize, &random) }
        return [:]
    }

    func add(to y: consuming Variable, input x: Variable, beside w: Tensor, scale: Float, _ tape: Tape)
        throws(PEFTError) -> Variable
    {
        let (rank, experts) = (a.value.rows, router.value.rows)
        let h = try tape.linear(x, tape.variable(a))
        let shares = try tape.meanSoftmax(try tape.linear(h, tape.variable(router), as: .f32))
        let all = try tape.reshaped(tape.variable(b), [experts, rank * linear.outputSize])
        let mixed = try tape.reshaped(try tape.linear(shares, all, transposed: true), [rank, linear.outputSize])
        return try tape.addProduct(to: y, input: h, [.transposed(mixed)], scale: scale * factor)
    }

    func fold(into weights: inout FoldedWeights, scale: Float) throws(PEFTError) {
        throw PEFTError(.unsupported, "'\(linear.name)': LILY cannot be merged, what it does depends on the input")
    }
}
