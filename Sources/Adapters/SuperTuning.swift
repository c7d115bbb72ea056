internal import Autograd
package import Models
package import Platform
internal import Tensors

/// Super-Tuning (arXiv:2607.09287): the largest (or smallest) entries of a weight train; with `r` a LoRA beside them (Supra),
///
///     ΔW[place_p] = v_p        y += (lora_alpha/r)·B·A·drop(x)
package struct SuperTuning: AdapterMethod {
    package static let peftType = "SUPERTUNING"
    package static let layerKinds = ["Linear"]
    package static let defaults: JSONObject = [
        "init_weights": .bool(true), "lora_alpha": .null, "lora_dropout": .number(0), "modules_to_save": .null, "r": .null,
        "save_precomputed_indices": .bool(true), "select_top": .bool(true), "sparsity": .number(0.99), "target_modules": .null,
    ]

    private let sparsity: Double
    private let selectsLargest: Bool
    private let isIdentity: Bool
    private let isSaved: Bool
    private let branch: (rank: Int, scaling: Float, dropout: Float)?

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        sparsity = try configuration.number("sparsity")
        guard sparsity >= 0, sparsity < 1 else {
            throw PEFTError(.argument, "sparsity is \(sparsity); it must be from 0 to below 1")
        }
        selectsLargest = try configuration.flag("select_top")
        isIdentity = try configuration.flag("init_weights")
        isSaved = try configuration.flag("save_precomputed_indices")
        let dropout = try configuration.probability("lora_dropout")
        let hasRank = !(configuration.values["r"]?.isNull ?? true)
        if hasRank != !(configuration.values["lora_alpha"]?.isNull ?? true) {
            throw PEFTError(.argument, "`r` and `lora_alpha` are given together or not at all")
        }
        guard hasRank else {
            branch = nil
            return
        }
        let rank = try configuration.positive("r")
        branch = (rank, Float(try configuration.number("lora_alpha") / Double(rank)), dropout)
    }

    package func module(for layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule {
        let linear = try SuperTuning.linear(layer)
        let size = linear.inputSize * linear.outputSize
        let count = Int(Double(size) * (1 - sparsity))
        guard count >= 1, size <= Int32.max else {
            throw PEFTError(
                .argument, "sparsity \(sparsity) leaves no trainable entries of the \(size) of '\(linear.name)'; lower it")
        }
        let magnitudes = try linear.weight.floats(model.engine).map(abs)
        let order = magnitudes.indices.sorted { selectsLargest ? magnitudes[$0] > magnitudes[$1] : magnitudes[$0] < magnitudes[$1] }
        let table = IndexTable(
            key: key + ".supertuning_indices", shape: [count], as: .i32, below: size, order.prefix(count).map { Int32(clamping: $0) })
        return try SuperTuningLinear(linear, key: key + ".supertuning_", table, isSaved: isSaved, branch, isIdentity: isIdentity, model)
    }
}

private final class SuperTuningLinear: LinearBranch {
    let linear: Linear
    private let values: Parameter
    private let a: Parameter?
    private let b: Parameter?
    private let table: IndexTable
    private let isSaved: Bool
    private let branch: (rank: Int, scaling: Float, dropout: Float)?
    private let isIdentity: Bool
    private let engine: Engine

    init(
        _ linear: Linear, key: String, _ table: IndexTable, isSaved: Bool, _ branch: (rank: Int, scaling: Float, dropout: Float)?,
        isIdentity: Bool, _ model: Model
    ) throws(PEFTError) {
        (self.linear, self.table, self.isSaved, self.branch, self.isIdentity) = (linear, table, isSaved, branch, isIdentity)
        engine = model.engine
        values = try model.parameter(key + "values", table.shape)
        a = try branch.map { (branch) throws(PEFTError) in try model.parameter(key + "lora_A.weight", [branch.rank, linear.inputSize]) }
        b = try branch.map { (branch) throws(PEFTError) in try model.parameter(key + "lora_B.weight", [linear.outputSize, branch.rank]) }
    }

    var parameters: [Parameter] { [values, a, b].compactMap { $0 } }
    var views: [SavedTensor] { isSaved ? [SavedTensor(table)] : [] }

    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        var random = random
        if !isIdentity { values.value.fillNormal(1, &random) }
        a?.value.fillUniform(fanIn: linear.inputSize, &random)
        if !isIdentity, let branch { b?.value.fillUniform(fanIn: branch.rank, &random) }
        return [:]
    }

    func product(of x: Variable, bias: Variable?, scale: Float, _ site: HookSite, as dtype: DType?) throws(PEFTError) -> Variable? {
        guard let y = try change().product(of: x, site.tape.variable(values), bias: bias, scale: scale, site, as: dtype) else { return nil }
        return try addBranch(to: y, input: x, scale: scale, site.tape)
    }

    func add(to y: consuming Variable, input x: Variable, beside w: Tensor, scale: Float, _ tape: Tape)
        throws(PEFTError) -> Variable
    {
        try addBranch(to: try change().add(to: y, input: x, tape.variable(values), scale: scale, tape), input: x, scale: scale, tape)
    }

    private func change() throws(PEFTError) -> SparseChange {
        try table.change { (values) throws(PEFTError) in try SparseChange(engine, flat: values, of: linear) }
    }

    private func addBranch(to y: consuming Variable, input x: Variable, scale: Float, _ tape: Tape) throws(PEFTError) -> Variable {
        guard let a, let b, let branch else { return y }
        return try tape.addLowRank(
            to: y, input: x, a: tape.variable(a), b: tape.variable(b), scale: scale * branch.scaling, dropout: branch.dropout)
    }
}
