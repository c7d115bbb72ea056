internal import Autograd
internal import Glibc
internal import Models
internal import Platform
internal import Tensors

/// `monteclora_config`
struct MonteCarloSettings: Sendable {
    let samples: Int
    let prior: Float
    let noise: Float
    let weight: Float
    let hasEntropy: Bool

    init(_ options: JSONObject) throws(PEFTError) {
        samples = try options.integer("num_samples") ?? 8
        prior = try options.float("dirichlet_prior") ?? 0.1
        noise = try options.float("sample_scaler") ?? 1e-4
        weight = try options.float("kl_loss_weight") ?? 1e-5
        hasEntropy = try options.boolean("use_entropy") ?? false
        // PEFT keeps so many draws ready; here each is drawn when it is needed.
        _ = try options.integer("buffer_size")
        guard 1...65536 ~= samples, prior > 0, noise.isFinite, weight.isFinite else {
            throw PEFTError(.argument, "monteclora_config: num_samples is \(samples) and dirichlet_prior \(prior); positive numbers are expected (65536 samples at most)")
        }
    }
}

/// MonteCLoRA: in training, A is a mean of samples around its value, whose spread and weights are learned,
///
///     A' = A + τ·Σ_n w_n·√Σ·Z_n    Z_n ~ N(0, 1) [r, in]    Σ = max(e^2s ⊙ χ²_r, 10⁻³)
///     w = softmax(p + √(e^−p·(1 − 2/N) + Σe^−p/N² + 10⁻⁶) ⊙ z)
///
/// (PEFT's Wishart matrix counts with its diagonal alone, and that is χ².) The loss gets `kl_loss_weight` times three divergences from
/// the priors, the mean over layers, as with PEFT's helper for trainers.
final class MonteCarloSampler: Sendable {
    private let s: Parameter
    private let p: Parameter
    /// Of the last draw in PEFT; they say nothing about what the adapter does.
    private let (variance, weights): (Parameter, Parameter)
    private let settings: MonteCarloSettings
    private let inputs: Int

    init(_ linear: Linear, key: String, rank: Int, _ settings: MonteCarloSettings, _ model: Model) throws(PEFTError) {
        (self.settings, inputs) = (settings, linear.inputSize)
        let key = key + ".lora_monteclora_sampler."
        _ = try checkedProduct(settings.samples, try checkedProduct(rank, inputs, of: "samples"), of: "samples")
        s = try model.parameter(key + "std_prior", [rank])
        p = try model.parameter(key + "expert_weights_prior", [settings.samples])
        variance = try model.parameter(key + "gaussian_var_prior", [rank, rank], isTrainable: false)
        weights = try model.parameter(key + "expert_weights", [settings.samples], isTrainable: false)
    }

    var parameters: [Parameter] { [s, p, variance, weights] }

    func initialize(_ random: inout RandomStream) {
        for prior in [s, p] { prior.value.fill { random.uniform() } }
        variance.value.set((0..<variance.value.count).map { $0 % (s.value.count + 1) == 0 ? 1 : 0 })
        weights.value.fill { 1 / Float(settings.samples) }
    }

    /// A around its value.
    func drawn(_ a: Variable, _ tape: Tape) throws(PEFTError) -> Variable {
        let rank = s.value.count
        let draws = try tape.normals([settings.samples, rank * inputs])
        let mean = try tape.reshaped(try tape.linear(try mixture(tape), Variable(draws), transposed: true), [rank, inputs])
        return try tape.add(a, try tape.scaled(try tape.scaleRows(mean, try deviation(tape)), by: settings.noise))
    }

    /// √Σ `[r]`
    private func deviation(_ tape: Tape) throws(PEFTError) -> Variable {
        let rank = s.value.count
        let spread = (0..<rank).map { _ in tape.random.normals(rank).reduce(0) { $0 + $1 * $1 }.squareRoot() }
        let factors = Variable(try Tensor(tape.engine, spread, shape: [rank]))
        let floor = Float(1e-3).squareRoot()
        return try tape.mapped(try tape.multiply(try tape.exponential(tape.variable(s)), factors), { max($0, floor) }, derivative: { $0 > floor ? 1 : 0 })
    }

    /// w `[1, N]`
    private func mixture(_ tape: Tape) throws(PEFTError) -> Variable {
        let count = settings.samples
        let prior = try tape.reshaped(tape.variable(p), [1, count])
        let inverse = try tape.exponential(try tape.scaled(prior, by: -1))
        let (own, all) = (1 - 2 / Float(count), 1 / Float(count * count))
        let matrix = try Tensor(tape.engine, (0..<count * count).map { all + ($0 % (count + 1) == 0 ? own : 0) }, shape: [count, count])
        let spread = try tape.mapped(
            try tape.linear(inverse, Variable(matrix)), { (max($0, 1e-6) + 1e-6).squareRoot() }, derivative: { $0 > 1e-6 ? 0.5 / ($0 + 1e-6).squareRoot() : 0 })
        let noise = Variable(try tape.normals([1, count]))
        return try tape.softmax(try tape.add(prior, try tape.multiply(spread, noise)))
    }

    /// What it adds to the loss, `[1]`. Its Σ and w are drawn for themselves.
    fileprivate func penalty(_ tape: Tape) throws(PEFTError) -> Variable {
        let (rank, count) = (Float(s.value.count), Float(settings.samples))
        func sum(_ x: Variable) throws(PEFTError) -> Variable {
            try tape.reshaped(try tape.linear(try tape.reshaped(x, [1, x.value.count]), Variable(try Tensor(tape.engine, [Float](repeating: 1, count: x.value.count), shape: [1, x.value.count]))), [1])
        }
        // ½·r·Σ(e^2s − 2s − 1)
        let wishart = try sum(try tape.mapped(tape.variable(s), { 0.5 * rank * (expf(2 * $0) - 2 * $0 - 1) }, derivative: { rank * (expf(2 * $0) - 1) }))
        // ½·N·Σ(v − ln v − 1), v of √v
        let normal = try sum(try tape.mapped(
            try deviation(tape), { 0.5 * count * ($0 * $0 - 2 * logf($0) - 1) }, derivative: { count * ($0 - 1 / $0) }))
        // lnΓ(Σα) − lnΓ(Nα₀) + Σ(lnΓ(α) − lnΓ(α₀)) + Σ(α − α₀)·(ψ(α) − ψ(Σα)), as PEFT has it
        let (alpha, prior) = (try tape.exponential(tape.variable(p)), settings.prior)
        let total = try sum(alpha)
        let each = try sum(try tape.mapped(
            alpha, { lgammaf($0) - lgammaf(prior) + ($0 - prior) * digamma($0) }, derivative: { 2 * digamma($0) + ($0 - prior) * trigamma($0) }))
        let joint = try tape.mapped(
            total, { lgammaf($0) - lgammaf(count * prior) - ($0 - count * prior) * digamma($0) }, derivative: { -($0 - count * prior) * trigamma($0) })
        var loss = try tape.scaled(try tape.add(try tape.add(wishart, normal), try tape.add(each, joint)), by: settings.weight)
        if settings.hasEntropy {
            let w = try mixture(tape)
            loss = try tape.add(loss, try sum(try tape.multiply(w, w)))
        }
        return loss
    }
}

/// The derivative of ln Γ, and its derivative, of positive numbers: by the recurrence up to 6, then the asymptotic series.
private func digamma(_ x: Float) -> Float {
    var (x, sum) = (Double(max(x, 1e-6)), 0.0)
    while x < 6 {
        sum -= 1 / x
        x += 1
    }
    let square = 1 / (x * x)
    return Float(sum + log(x) - 0.5 / x - square * (1.0 / 12 - square * (1.0 / 120 - square / 252)))
}

private func trigamma(_ x: Float) -> Float {
    var (x, sum) = (Double(max(x, 1e-6)), 0.0)
    while x < 6 {
        sum += 1 / (x * x)
        x += 1
    }
    let square = 1 / (x * x)
    return Float(sum + 1 / x + square / 2 + square / x * (1.0 / 6 - square * (1.0 / 30 - square / 42)))
}

/// The mean of what a model's samplers add to the loss, in training alone.
final class MonteCarloPenalty: AdapterCompanion, LossPenalty {
    private let samplers: [MonteCarloSampler]

    init(_ samplers: [MonteCarloSampler]) { self.samplers = samplers }

    var penalty: (any LossPenalty)? { self }

    func value(_ tape: Tape) throws(PEFTError) -> Variable {
        var sum = Variable(try .zeros(tape.engine, [1]))
        guard tape.isTraining else { return sum }
        for sampler in samplers { sum = try tape.add(sum, try sampler.penalty(tape)) }
        return try tape.scaled(sum, by: 1 / Float(max(samplers.count, 1)))
    }
}
