internal import Autograd
internal import Models
internal import Platform
internal import Tensors

/// Arrow (Ostapenko et al., arXiv:2405.11157): LoRA adapters as experts, of which each token gets those whose prototype p_e, the first right
/// singular vector of B_e·A_e, it is most along, without anything being trained for it,
///
///     c = softmax over the top k of |p_e·x| / T    y += Σ_e c_e·s_e·B_e·A_e·x
///
/// With `use_gks` the mean of adapters of general knowledge is taken out of A and of B of each expert (arXiv:2505.10939); here of what the
/// router sees, PEFT changes the experts themselves. Prototypes are found when the router is chosen, and constant; what is below learns through
/// the shares c_e, as in PEFT, whose autograd sees them.
struct ArrowRouting: Sendable {
    let tasks: [String]
    let general: [String]
    fileprivate let choice: Int
    fileprivate let temperature: Float
    private let seed: UInt64

    init(_ options: JSONObject) throws(PEFTError) {
        tasks = try options.strings("task_adapter_names") ?? []
        general = try options.boolean("use_gks") ?? false ? try options.strings("gks_adapter_names") ?? [] : []
        choice = try options.integer("top_k") ?? 3
        temperature = try options.float("router_temperature") ?? 1
        seed = UInt64(bitPattern: Int64(try options.integer("rng_seed") ?? 0))
        guard !tasks.isEmpty else { throw PEFTError(.argument, "arrow_config: task_adapter_names must name the adapters to choose from") }
        guard try options.boolean("use_gks") != true || !general.isEmpty else { throw PEFTError(.argument, "arrow_config: use_gks needs gks_adapter_names") }
        guard 1...tasks.count ~= choice, temperature > 0 else {
            throw PEFTError(.argument, "arrow_config: top_k is \(choice) and router_temperature \(temperature); 1 to \(tasks.count) (the experts) and a positive number are possible")
        }
    }

    /// - Parameter modules: the router's, which say where.
    func addHooks(to adaptation: inout Adaptation, at modules: [any AdapterModule], tasks: [Adapter], general: [Adapter], scale: Float, _ engine: Engine) throws(PEFTError) {
        for module in modules {
            let layer = module.layer
            let experts = try zip(self.tasks, tasks).map { (expert) throws(PEFTError) in try ArrowRouting.branch(of: expert.1, expert.0, at: layer) }
            let known = try zip(self.general, general).map { (expert) throws(PEFTError) in try ArrowRouting.branch(of: expert.1, expert.0, at: layer) }
            guard let first = experts.first, (experts + known).allSatisfy({ $0.rank == first.rank }) else {
                throw PEFTError(.argument, "arrow_config: at '\(layer.name)' the adapters have different ranks, \((experts + known).map(\.rank))")
            }
            adaptation.layers[layer.index].hooks.append(try ArrowHook(experts, known, self, scale: scale, seed: seed, engine))
        }
    }

    private static func branch(of adapter: Adapter, _ name: String, at layer: any Layer) throws(PEFTError) -> LinearLoRA {
        guard let lora = adapter.modules.first(where: { $0.layer.index == layer.index }) as? LinearLoRA else {
            throw PEFTError(.argument, "arrow_config: '\(name)' has no LoRA at '\(layer.name)'; all experts adapt the router's layers")
        }
        guard lora.magnitude == nil, lora.bias == nil, lora.layer is Linear else {
            throw PEFTError(.unsupported, "arrow_config: '\(name)' is more than LoRA of a linear layer at '\(layer.name)'")
        }
        return lora
    }
}

/// The experts at one layer: two products for all of them.
private final class ArrowHook: LayerHook {
    /// f32 `[E, in]`
    private let prototypes: Tensor
    /// f32 `[E·r, in]`, `[out, E·r]`
    private let (a, b): (Tensor, Tensor)
    /// f32 `[E, E·r]`: an expert's share and its scaling, at each of its r values.
    private let spread: Tensor
    private let routing: ArrowRouting
    private let dropout: Float

    init(_ experts: [LinearLoRA], _ general: [LinearLoRA], _ routing: ArrowRouting, scale: Float, seed: UInt64, _ engine: Engine) throws(PEFTError) {
        let (rank, linear) = (experts[0].rank, experts[0].linear)
        (self.routing, dropout) = (routing, experts[0].dropout)
        let width = experts.count * rank
        spread = try .zeros(engine, [experts.count, width], .f32, .adapters)
        for (index, expert) in experts.enumerated() {
            unsafe spread.withMutableFloats { spread in
                for place in index * (width + rank)..<index * (width + rank) + rank where place < spread.count { unsafe spread[place] = Float(expert.factor) * scale }
            }
        }
        a = try .zeros(engine, [experts.count * rank, linear.inputSize], .f32, .adapters)
        b = try .zeros(engine, [linear.outputSize, experts.count * rank], .f32, .adapters)
        prototypes = try .zeros(engine, [experts.count, linear.inputSize], .f32, .adapters)
        var generator = TorchGenerator(seed: seed)
        let start = try Tensor(engine, generator.normal(linear.inputSize), shape: [1, linear.inputSize])
        for (index, expert) in experts.enumerated() {
            let (own, other) = (try a.rows(index * rank..<(index + 1) * rank), try expert.b.value.converted(to: .f32, engine, .scratch))
            engine.axpby(1, expert.a.value, 0, into: own)
            for known in general {
                engine.axpby(-1 / Float(general.count), known.a.value, 1, into: own)
                engine.axpby(-1 / Float(general.count), known.b.value, 1, into: other)
            }
            b.copyColumns(of: other, at: index * rank)
            engine.axpby(1, try ArrowHook.prototype(own, other, start, engine), 0, into: try prototypes.rows(index..<index + 1))
        }
    }

    /// 15 power iterations on Aᵀ·BᵀB·A, `[1, in]`.
    private static func prototype(_ a: Tensor, _ b: Tensor, _ start: Tensor, _ engine: Engine) throws(PEFTError) -> Tensor {
        let rank = a.rows
        let (gram, inner, turned) = (try Tensor(engine, [rank, rank]), try Tensor(engine, [1, rank]), try Tensor(engine, [1, rank]))
        let v = try start.converted(to: .f32, engine, .scratch)
        func normalize() {
            unsafe v.withMutableFloats { v in
                let length = unsafe Float(v.reduce(0.0) { $0 + Double($1) * Double($1) }.squareRoot()) + 1e-8
                for i in v.indices { unsafe v[i] /= length }
            }
        }
        try engine.multiply(.weightGradient, b, b, into: gram, compute: .f32)
        normalize()
        for _ in 0..<15 {
            try engine.multiply(.forward, v, a, into: inner, compute: .f32)
            try engine.multiply(.forward, inner, gram, into: turned, compute: .f32)
            try engine.multiply(.inputGradient, turned, a, into: v, compute: .f32)
            normalize()
        }
        return v
    }

    func add(to y: consuming Variable, input x: Variable, of layer: Linear, _ tape: Tape) throws(PEFTError) -> Variable {
        let inner = try tape.linear(x, Variable(a))
        let scores = try tape.linear(x, Variable(prototypes), as: .f32), temperature = routing.temperature
        let likeness = try tape.mapped(scores, { abs($0) / temperature }, derivative: { $0 < 0 ? -1 / temperature : 1 / temperature })
        let shares = try tape.cast(try tape.topMixture(likeness, Variable(spread), routing.choice), to: inner.value.dtype)
        let sum = try tape.linear(try tape.multiply(inner, shares), Variable(b), as: y.value.dtype)
        return try tape.add(y, try tape.dropout(sum, dropout))
    }
}
