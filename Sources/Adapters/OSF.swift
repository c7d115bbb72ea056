internal import Autograd
package import Models
package import Platform
internal import Tensors

/// OSF (Nayak et al., arXiv:2504.07097): the smaller singular directions of a weight train, the larger ones stay,
///
///     y += (U·S·V − U₀·S₀·V₀)·x
///
/// and gradients of U and V are kept orthogonal to what stays.
package struct OSF: AdapterMethod {
    package static let peftType = "OSF"
    package static let layerKinds = ["Linear"]
    package static let defaults: JSONObject = [
        "effective_rank": .null, "init_weights": .bool(true), "modules_to_save": .null, "rank_pattern": .null,
        "target_modules": .null, "target_svd_config": .null,
    ]
    package static let defaultTargets: [String: JSONValue] = [:].with(
        (
            ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "up_proj"],
            ["llama", "llama4", "mistral", "mixtral", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3", "phi"]
        ), (["c_attn", "c_proj"], ["gpt2", "gpt_bigcode"]),
        (["query_key_value", "dense_4h_to_h"], ["bloom", "gpt_neox", "falcon"]),
        (["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"], ["opt"]),
        (["q_proj", "k_proj", "v_proj", "out_proj", "fc_in", "fc_out"], ["gptj"]))

    private let rank: JSONValue
    /// Searched in the whole name; the first that is found counts.
    private let ranks: [(pattern: Pattern, rank: JSONValue)]
    private let isRandom: Bool

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        rank = configuration.values["effective_rank"] ?? .null
        ranks = try (try configuration.values.object("rank_pattern") ?? JSONObject()).pairs.map { (name, value) throws(PEFTError) in
            (try Pattern.configured(".*(?:\(name)).*", "rank_pattern"), value)
        }
        isRandom = try !configuration.flag("init_weights")
        let family = model.configuration["model_type"]?.stringValue ?? model.architecture
        if configuration.values["target_modules"]?.isNull ?? true, OSF.defaultTargets[family] == nil {
            configuration.values["target_modules"] = .string("all-linear")
        }
    }

    /// How many directions stay: a number of them, a share, or half.
    private func frozen(_ linear: Linear) throws(PEFTError) -> Int {
        let all = min(linear.inputSize, linear.outputSize)
        var rank = self.rank
        for row in ranks where try row.pattern.matchesWhole(linear.name) {
            rank = row.rank
            break
        }
        if rank.isNull { return all / 2 }
        if let number = rank.intValue, number > 0 { return min(number, all) }
        if let share = rank.doubleValue, share > 0, share <= 1 { return max(1, Int(Double(all) * share)) }
        throw PEFTError(
            .argument, "effective_rank is \(rank.text()); a positive number of directions, or a share from 0 to 1 is expected")
    }

    package func module(for layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule {
        let linear = try OSF.linear(layer)
        return try OSFLinear(linear, key: key + ".osf_svd_params", frozen: try frozen(linear), isRandom: isRandom, model)
    }
}

private final class OSFLinear: LinearBranch, @unchecked Sendable {
    // Sendable: the frozen parts are set before anybody else knows the module.

    let linear: Linear
    private let (u, s, v): (Parameter, Parameter, Parameter)
    /// As they were taken from the weight.
    private let (u0, s0, v0): (Tensor, Tensor, Tensor)
    /// What gradients are orthogonal to, or confined to where the matrix is square: `[out, k]`, `[k, in]`.
    private let (left, right): (Tensor, Tensor)
    private let frozen: Int
    private let isRandom: Bool
    private let engine: Engine

    init(_ linear: Linear, key: String, frozen: Int, isRandom: Bool, _ model: Model) throws(PEFTError) {
        (self.linear, self.frozen, self.isRandom, engine) = (linear, frozen, isRandom, model.engine)
        let (outputs, inputs) = (linear.outputSize, linear.inputSize)
        let count = min(outputs, inputs) - frozen
        u = try model.parameter(key + ".U_low", [outputs, count])
        s = try model.parameter(key + ".S_low", [count])
        v = try model.parameter(key + ".V_low", [count, inputs])
        (u0, s0, v0) = (
            try .zeros(engine, [outputs, count], .f32, .adapters), try .zeros(engine, [count], .f32, .adapters),
            try .zeros(engine, [count, inputs], .f32, .adapters)
        )
        left = outputs <= inputs ? u0 : try .zeros(engine, [outputs, frozen], .f32, .adapters)
        right = outputs >= inputs ? v0 : try .zeros(engine, [frozen, inputs], .f32, .adapters)
    }

    var parameters: [Parameter] { [u, s, v] }

    func derive() throws(PEFTError) {
        let parts = try SingularDirections(linear, engine)
        let low = frozen..<parts.s.count
        u0.set(parts.left(low))
        s0.set(low.map { parts.s[$0] })
        v0.set(parts.right(low))
        if linear.outputSize > linear.inputSize { left.set(parts.left(0..<frozen)) }
        if linear.outputSize < linear.inputSize { right.set(parts.right(0..<frozen)) }
    }

    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        try derive()
        var random = random
        for (parameter, start) in [(u, u0), (s, s0), (v, v0)] {
            if isRandom { parameter.value.fillNormal(1, &random) } else { engine.axpby(1, start, 0, into: parameter.value) }
        }
        return [:]
    }

    func add(to y: consuming Variable, input x: Variable, beside w: Tensor, scale: Float, _ tape: Tape)
        throws(PEFTError) -> Variable
    {
        if s0.count == 0 { return y }
        let u = try tape.confined(tape.variable(u), to: left, isComplement: linear.outputSize > linear.inputSize, fromLeft: true)
        let v = try tape.confined(tape.variable(v), to: right, isComplement: linear.outputSize < linear.inputSize, fromLeft: false)
        let sum = try tape.addProduct(
            to: y, input: x, [.matrix(v), .diagonal(tape.variable(s)), .matrix(u)], scale: scale)
        return try tape.addProduct(
            to: sum, input: x, [.matrix(Variable(v0)), .diagonal(Variable(s0)), .matrix(Variable(u0))], scale: -scale)
    }
}
