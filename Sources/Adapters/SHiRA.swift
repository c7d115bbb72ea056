internal import Autograd
package import Models
package import Platform
internal import Tensors

/// SHiRA (Bhardwaj et al., arXiv:2406.13175): some entries of a weight train, as many as a LoRA of rank r would have.
package struct SHiRA: AdapterMethod {
    package static let peftType = "SHIRA"
    package static let layerKinds = ["Linear"]
    package static let defaults: JSONObject = [
        "fan_in_fan_out": .bool(false), "init_weights": .bool(true), "mask_type": .string("random"), "modules_to_save": .null,
        "r": .integer(32), "random_seed": .null, "target_modules": .null,
    ]
    package static var defaultTargets: [String: JSONValue] { DefaultTargets.lora.with((["q_proj", "v_proj"], ["phi"])) }

    private let rank: Int
    /// nil: a new adapter's entries are any.
    private let seed: UInt64?
    private let isRandom: Bool

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        rank = try configuration.positive("r")
        seed = configuration.isSet("random_seed") ? try configuration.seed("random_seed") : nil
        isRandom = try !configuration.flag("init_weights")
        _ = try configuration.choice("mask_type", ["random"])
    }

    package func module(for layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule {
        let linear = try SHiRA.linear(layer)
        let (inputs, outputs) = (linear.inputSize, linear.outputSize)
        let count = rank * (inputs + outputs)
        guard count <= inputs * outputs, inputs * outputs <= Int32.max else {
            throw PEFTError(
                .argument, "`r` \(rank) gives \(count) values for '\(linear.name)', which has only \(inputs * outputs)")
        }
        var generator = TorchGenerator(seed: seed ?? RandomStream(seed: 0, purpose: layer.name).seed)
        let places = generator.permutation(of: inputs * outputs, first: count).sorted()
        let table = IndexTable(
            key: key + ".shira_indices", shape: [2, count], as: .i32, below: max(inputs, outputs),
            (places.map { $0 / inputs } + places.map { $0 % inputs }).map { Int32(clamping: $0) })
        return SHiRALinear(linear, try model.parameter(key + ".shira_weight", [count]), table, isRandom: isRandom, model.engine)
    }
}

private final class SHiRALinear: LinearBranch {
    let linear: Linear
    private let weight: Parameter
    /// `[2, n]`: rows, then columns.
    private let table: IndexTable
    private let isRandom: Bool
    private let engine: Engine

    init(_ linear: Linear, _ weight: Parameter, _ table: IndexTable, isRandom: Bool, _ engine: Engine) {
        (self.linear, self.weight, self.table, self.isRandom, self.engine) = (linear, weight, table, isRandom, engine)
    }

    var parameters: [Parameter] { [weight] }
    var views: [SavedTensor] { [SavedTensor(table)] }

    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        var random = random
        if isRandom { weight.value.fillNormal(1, &random) }
        return [:]
    }

    func product(of x: Variable, bias: Variable?, scale: Float, _ site: HookSite, as dtype: DType?) throws(PEFTError) -> Variable? {
        try change().product(of: x, site.tape.variable(weight), bias: bias, scale: scale, site, as: dtype)
    }

    func add(to y: consuming Variable, input x: Variable, beside w: Tensor, scale: Float, _ tape: Tape)
        throws(PEFTError) -> Variable
    {
        try change().add(to: y, input: x, tape.variable(weight), scale: scale, tape)
    }

    private func change() throws(PEFTError) -> SparseChange {
        try table.change { (values) throws(PEFTError) in
            let half = values.count / 2
            return try SparseChange(
                engine, rows: Array(values.prefix(half)), columns: Array(values.suffix(half)), from: .none(linear.inputSize),
                to: .none(linear.outputSize))
        }
    }
}
