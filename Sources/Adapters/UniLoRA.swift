internal import Autograd
package import Models
package import Platform
package import Tensors

/// Uni-LoRA (arXiv:2506.00799): every entry of every A and B is an entry of one trained vector,
///
///     y += B·A·drop(x)      A[ρ, i] = θ[index]/√(how often θ[index] is used)
///
/// The indices are dealt out evenly and shuffled by numpy's generator over all entries of all layers, A before B.
package struct UniLoRA: AdapterMethod {
    package static let peftType = "UNILORA"
    package static let defaults: JSONObject = [
        "bias": .string("none"), "fan_in_fan_out": .bool(false), "init_theta_d_bound": .number(0.02),
        "init_weights": .bool(true), "layers_pattern": .null, "layers_to_transform": .null, "modules_to_save": .null,
        "proj_seed": .integer(42), "r": .integer(4), "save_indices": .bool(false), "target_modules": .null,
        "theta_d_length": .integer(256), "unilora_dropout": .number(0),
    ]

    private let rank: Int
    private let dropout: Float
    private let bound: Float
    private let isRandom: Bool
    private let isSaved: Bool
    private let theta: Parameter
    /// Of all layers, in their order.
    private var indices: [Int32] = []
    private var starts: [Int: Int] = [:]
    /// 1/√count, by index.
    private var scales: [Float] = []

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        rank = try configuration.positive("r")
        dropout = try configuration.probability("unilora_dropout")
        bound = Float(try configuration.number("init_theta_d_bound"))
        isRandom = try !configuration.flag("init_weights")
        isSaved = try configuration.flag("save_indices")
        let length = try configuration.positive("theta_d_length")
        guard length <= Int32.max else { throw PEFTError(.argument, "theta_d_length is \(length); at most \(Int32.max) is possible") }
        try configuration.checkBias()
        theta = try model.parameter("base_model.unilora_theta_d", [length])
    }

    package mutating func prepare(for targets: [any Layer], _ configuration: inout AdapterConfiguration, _ model: Model)
        throws(PEFTError)
    {
        try configuration.matchLayout(of: targets, { model.engine.warn($0) })
        var count = 0
        for layer in targets {
            let linear = try UniLoRA.linear(layer)
            starts[layer.index] = count
            count += rank * (linear.inputSize + linear.outputSize)
        }
        let length = theta.value.count
        var generator = NumPyGenerator(seed: try configuration.seed("proj_seed"))
        indices.reserveCapacity(count)
        for index in 0..<Int32(clamping: length) { indices += Array(repeating: index, count: count / length) }
        indices += generator.choice(of: length, count % length).map { Int32(clamping: $0) }
        generator.shuffle(&indices)
        var counts = [Int](repeating: 0, count: length)
        for index in indices { counts[Int(index)] += 1 }
        scales = counts.map { $0 > 0 ? 1 / Float($0).squareRoot() : 0 }
    }

    package var shared: [SavedTensor] { [SavedTensor(theta)] }

    package func initializeShared(_ random: RandomStream) {
        var random = random
        theta.value.fill { isRandom ? random.normal() : (2 * random.uniform() - 1) * bound }
    }

    package func module(for layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule {
        let linear = try UniLoRA.linear(layer)
        let start = starts[layer.index] ?? 0
        let middle = start + rank * linear.inputSize
        func entries(_ name: String, _ shape: [Int], from start: Int) throws(PEFTError) -> UniLoRAEntries {
            let part = Array(indices[start..<start + shape[0] * shape[1]])
            let table = IndexTable(key: key + ".unilora_indices_" + name, shape: shape, as: .i64, below: theta.value.count, part)
            let factors = try model.parameter(key + ".unilora_scales_" + name, shape, isTrainable: false)
            factors.value.set(part.map { scales[Int($0)] })
            return UniLoRAEntries(table: table, scales: factors)
        }
        return UniLoRALinear(
            linear, theta, a: try entries("A", [rank, linear.inputSize], from: start),
            b: try entries("B", [linear.outputSize, rank], from: middle), dropout: dropout, isSaved: isSaved)
    }
}

/// One factor as a choice of entries of θ.
private struct UniLoRAEntries: Sendable {
    let table: IndexTable
    let scales: Parameter

    var saved: [SavedTensor] { [SavedTensor(table), SavedTensor(scales)] }

    func matrix(_ theta: Variable, _ tape: Tape) throws(PEFTError) -> Variable {
        let column = try tape.reshaped(theta, [theta.value.count, 1])
        let entries = try tape.reshaped(try tape.gatherRows(column, table.values), table.shape)
        return try tape.multiply(entries, Variable(scales.value))
    }
}

private final class UniLoRALinear: LinearBranch {
    let linear: Linear
    private let theta: Parameter
    private let a: UniLoRAEntries
    private let b: UniLoRAEntries
    private let dropout: Float
    private let isSaved: Bool

    init(_ linear: Linear, _ theta: Parameter, a: UniLoRAEntries, b: UniLoRAEntries, dropout: Float, isSaved: Bool) {
        (self.linear, self.theta, self.a, self.b, self.dropout, self.isSaved) = (linear, theta, a, b, dropout, isSaved)
    }

    let isLowRank = true
    var parameters: [Parameter] { [] }
    var views: [SavedTensor] { isSaved ? a.saved + b.saved : [] }

    func add(to y: consuming Variable, input x: Variable, beside w: Tensor, scale: Float, _ tape: Tape)
        throws(PEFTError) -> Variable
    {
        let theta = tape.variable(theta)
        return try tape.addProduct(
            to: y, input: x, [.matrix(try a.matrix(theta, tape)), .matrix(try b.matrix(theta, tape))], scale: scale,
            dropout: dropout)
    }
}
