internal import Autograd
internal import Models
internal import Platform
internal import Quantization
internal import Tensors

/// Forms of LoRA at a linear layer that are switched on by an object of settings, one at a time.
enum LoRAVariant: Sendable {
    /// KaSA (Wang et al., arXiv:2412.06071): the weight loses its r smallest singular directions; `ΔW = s·B·diag(d)·A`.
    case kasa
    /// BD-LoRA: A or B consists of blocks on the diagonal.
    case blockDiagonal(BlockDiagonalNames)
    /// VeLoRA (Miles et al., arXiv:2405.17991): what A's gradient needs of the input is kept as one number for each group.
    case velora(groups: Int, scale: Float)
    /// MonteCLoRA: A is drawn around its value in training. Adapters are loaded, run and merged; they do not train here.
    case monteCarlo(samples: Int)
    /// aLoRA (Greenewald et al., arXiv:2504.12397): it acts from the last place on where these tokens stand in a text.
    case activated(by: [Int32])

    static let keys = ["alora_invocation_tokens", "kasa_config", "use_bdlora", "velora_config", "monteclora_config"]

    /// - Returns: nil: plain LoRA, or DoRA.
    static func chosen(_ configuration: AdapterConfiguration, isNew: Bool) throws(PEFTError) -> LoRAVariant? {
        let chosen = keys.filter { !(configuration.values[$0]?.isNull ?? true) && configuration.values[$0] != .bool(false) }
        guard let key = chosen.first else { return nil }
        let others = ["use_dora", "lora_bias"].filter { configuration.isSet($0) }
        guard chosen.count == 1, others.isEmpty else {
            throw PEFTError(.argument, "\((chosen + others).joined(separator: ", ")) do not go together; LoRA has one variant at a time")
        }
        if key == "alora_invocation_tokens" { return .activated(by: try invocation(configuration.values[key])) }
        let options = try configuration.values.object(key) ?? JSONObject()
        switch key {
        case "kasa_config": return .kasa
        case "use_bdlora": return .blockDiagonal(try BlockDiagonalNames(options))
        case "velora_config":
            let groups = try options.integer("num_groups") ?? 64
            guard groups > 0 else { throw PEFTError(.argument, "velora_config: num_groups is \(groups); it must be positive") }
            let start = try options.text("init_type") ?? "batch_average"
            guard start == "random" else {
                let isKnown = ["batch_average", "batch_average_once"].contains(start)
                throw PEFTError(
                    isKnown ? .unsupported : .argument,
                    "velora_config: init_type '\(start)' is not in this version; 'random' is")
            }
            return .velora(groups: groups, scale: try options.float("scale") ?? 1)
        default:
            if isNew { throw PEFTError(.unsupported, "monteclora_config: this version loads, runs and merges such adapters, but makes no new ones") }
            let samples = try options.integer("num_samples") ?? 8
            guard 1...65536 ~= samples else { throw PEFTError(.argument, "monteclora_config: num_samples is \(samples)") }
            return .monteCarlo(samples: samples)
        }
    }

    private static func invocation(_ value: JSONValue?) throws(PEFTError) -> [Int32] {
        let ids = (value?.arrayValue ?? []).compactMap { $0.intValue.flatMap { Int32(exactly: $0) } }
        guard !ids.isEmpty, ids.count == value?.arrayValue?.count, ids.allSatisfy({ $0 >= 0 }) else {
            throw PEFTError(.argument, "alora_invocation_tokens is \(value?.text() ?? "null"); a list of token ids is expected")
        }
        return ids
    }

    func module(_ linear: Linear, key: String, rank: Int, scaling: Double, _ settings: LoRASettings, _ model: Model)
        throws(PEFTError) -> any AdapterModule
    {
        guard settings.start == .standard || settings.start == .random else {
            throw PEFTError(.argument, "init_lora_weights must be true or false with a variant of LoRA")
        }
        let (inputs, outputs) = (linear.inputSize, linear.outputSize)
        var (aShape, bShape) = ([rank, inputs], [outputs, rank])
        var form = VariantLoRA.Form.plain
        var more: [Parameter] = []
        switch self {
        case .kasa:
            guard !linear.isTransposed, rank < min(inputs, outputs) else {
                throw PEFTError(
                    .argument,
                    "kasa_config: '\(linear.name)' is \(linear.kind) with \(min(inputs, outputs)) singular values; a Linear with more than r = \(rank) is needed"
                )
            }
            more = [try model.parameter(key + ".lora_diag", [rank])]
            form = .diagonal(more[0])
        case .blockDiagonal(let names):
            guard let side = try names.side(of: linear.name) else { break }
            let blocks = names.blocks
            guard rank % blocks == 0, (side == .a ? inputs : outputs) % blocks == 0 else {
                throw PEFTError(
                    .argument, "use_bdlora: nblocks \(blocks) must divide r = \(rank) and the size of '\(linear.name)'")
            }
            if side == .a { aShape[1] /= blocks } else { bShape[1] /= blocks }
            form = .blocks(blocks, side)
        case .activated(let tokens):
            guard model.task == .causalLM, linear.index != model.network.head?.index else {
                throw PEFTError(.argument, "alora_invocation_tokens: '\(linear.name)' cannot be adapted; layers of a language model below its head can")
            }
            form = .activated(tokens)
        case .velora(let groups, let scale):
            let width = (inputs + groups - 1) / groups
            more = [try model.parameter(key + ".lora_velora_embed", [width], isTrainable: false)]
            form = .compressed(more[0], groups: groups, scale: scale)
        case .monteCarlo(let samples):
            let sampler = key + ".lora_monteclora_sampler."
            more = [
                try model.parameter(sampler + "std_prior", [rank], isTrainable: false),
                try model.parameter(sampler + "expert_weights_prior", [samples], isTrainable: false),
                try model.parameter(sampler + "gaussian_var_prior", [rank, rank], isTrainable: false),
                try model.parameter(sampler + "expert_weights", [samples], isTrainable: false),
            ]
            form = .sampled
        }
        return VariantLoRA(
            linear, a: try model.parameter(key + ".lora_A.weight", aShape), b: try model.parameter(key + ".lora_B.weight", bShape),
            more, form, scaling: scaling, settings, model.engine)
    }
}

/// Which layers BD-LoRA gives a block-diagonal A or B: those in whose last name a text occurs.
struct BlockDiagonalNames: Sendable {
    enum Side { case a, b }

    let blocks: Int
    private let a: [String]
    private let b: [String]
    private let isStrict: Bool

    init(_ options: JSONObject) throws(PEFTError) {
        blocks = try options.integer("nblocks") ?? 1
        a = try options.strings("target_modules_bd_a") ?? []
        b = try options.strings("target_modules_bd_b") ?? []
        isStrict = try options.boolean("match_strict") ?? true
        guard blocks > 0 else { throw PEFTError(.argument, "use_bdlora: nblocks is \(blocks); it must be positive") }
    }

    func side(of name: String) throws(PEFTError) -> Side? {
        let last = name.split(separator: ".").last ?? ""
        func occurs(_ texts: [String]) -> Bool {
            texts.contains { text in last.indices.contains { last[$0...].hasPrefix(text) } }
        }
        switch (occurs(a), occurs(b)) {
        case (true, true):
            throw PEFTError(.argument, "use_bdlora: '\(name)' matches both target_modules_bd_a and target_modules_bd_b")
        case (true, false): return .a
        case (false, true): return .b
        default:
            guard isStrict else { return nil }
            throw PEFTError(
                .argument, "use_bdlora: '\(name)' matches neither target_modules_bd_a nor target_modules_bd_b (match_strict)")
        }
    }
}

/// One of the variants at one layer.
private final class VariantLoRA: LinearBranch {
    enum Form {
        case plain
        case diagonal(Parameter)
        case blocks(Int, BlockDiagonalNames.Side)
        case compressed(Parameter, groups: Int, scale: Float)
        case sampled
        case activated([Int32])
    }

    let linear: Linear
    private let a: Parameter
    private let b: Parameter
    private let more: [Parameter]
    private let form: Form
    private let factor: Double
    private let dropout: Float
    private let isRandom: Bool
    private let engine: Engine

    init(
        _ linear: Linear, a: Parameter, b: Parameter, _ more: [Parameter], _ form: Form, scaling: Double, _ settings: LoRASettings,
        _ engine: Engine
    ) {
        (self.linear, self.a, self.b, self.more, self.form, factor) = (linear, a, b, more, form, scaling)
        (dropout, isRandom, self.engine) = (settings.dropout, settings.start == .random, engine)
    }

    var parameters: [Parameter] { [a, b] + more }
    var scaling: Double? { factor }
    var invocation: [Int32]? { if case .activated(let tokens) = form { tokens } else { nil } }
    var changesBase: Bool { if case .diagonal = form { true } else { false } }

    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        var random = random
        var slope: Float = 1
        if case .blocks(_, .a) = form { slope = Float(6).squareRoot() }  // kaiming_uniform_ with a = 0
        a.value.fillUniform(fanIn: a.value.columns, &random)
        if slope != 1 { engine.axpby(slope, try a.value.converted(to: .f32, engine, .scratch), 0, into: a.value) }
        if isRandom { b.value.fillUniform(fanIn: b.value.columns, &random) } else { b.value.clear() }
        switch form {
        case .diagonal(let diagonal):
            diagonal.value.fillNormal(1, &random)
            return ["weight": try truncated()]
        case .compressed(let direction, _, _):
            direction.value.fillNormal(1, &random)
            let length = try direction.value.floats(engine).reduce(0) { $0 + $1 * $1 }.squareRoot()
            engine.axpby(1 / max(length, 1e-12), try direction.value.converted(to: .f32, engine, .scratch), 0, into: direction.value)
        default: break
        }
        return [:]
    }

    /// The weight without its r smallest singular directions, in its format; in q8_0 where that has few bits.
    private func truncated() throws(PEFTError) -> Tensor {
        let parts = try SingularDirections(linear, engine)
        let low = parts.s.count - a.value.rows..<parts.s.count
        let left = try Tensor(engine, parts.left(low, scale: { $0 }), shape: [linear.outputSize, low.count], .scratch)
        let right = try Tensor(engine, parts.right(low), shape: [low.count, linear.inputSize], .scratch)
        let w = try linear.weight.converted(to: .f32, engine, .scratch)
        try engine.multiply(.inputGradient, left, right, into: w, compute: .f32, alpha: -1, accumulate: true)
        return try w.encoded(as: linear.weight.dtype.isQuantized ? .q8_0 : linear.weight.dtype, engine, .weights)
    }

    func fold(into weights: inout FoldedWeights, scale: Float) throws(PEFTError) {
        guard invocation == nil else { throw PEFTError(.unsupported, "'\(linear.name)': an adapter with alora_invocation_tokens does not act on all tokens, so no weights can hold it") }
        try weights.fold(hook(scale: scale, beside: [:]), target)
    }

    func add(to y: consuming Variable, input x: Variable, beside w: Tensor, scale: Float, _ tape: Tape)
        throws(PEFTError) -> Variable
    {
        let scale = scale * Float(factor)
        var (a, b) = (tape.variable(a), tape.variable(b))
        switch form {
        case .plain, .activated: break
        case .diagonal(let diagonal):
            return try tape.addProduct(
                to: y, input: x, [.matrix(a), .diagonal(tape.variable(diagonal)), .matrix(b)], scale: scale, dropout: dropout)
        case .blocks(let count, .a): a = try tape.blockDiagonal(a, count)
        case .blocks(let count, .b): b = try tape.blockDiagonal(b, count)
        case .compressed(let direction, let groups, let factor):
            guard tape.isTraining, tape.isRecording else { break }
            let h = try tape.linear(
                try tape.dropout(x, dropout), a, rememberedAlong: direction.value, groups: groups, scale: factor)
            return try tape.addProduct(to: y, input: h, [.matrix(b)], scale: scale)
        case .sampled:
            if tape.isTraining, tape.isRecording {
                throw PEFTError(.unsupported, "'\(linear.name)': this version does not train monteclora_config")
            }
        }
        return try tape.addLowRank(to: y, input: x, a: a, b: b, scale: scale, dropout: dropout)
    }
}

extension Tape {
    /// `[r, n]` as `count` blocks of rows, put on the diagonal of `[r, count·n]`.
    fileprivate func blockDiagonal(_ x: Variable, _ count: Int) throws(PEFTError) -> Variable {
        let (rows, width) = (x.value.rows / count, x.value.columns)
        return try concatenateRows(try (0..<count).map { (block) throws(PEFTError) in
            let zeros = { (blocks: Int) throws(PEFTError) in Variable(try .zeros(self.engine, [rows, blocks * width])) }
            var parts = [try self.rows(x, block * rows..<(block + 1) * rows)]
            if block > 0 { parts.insert(try zeros(block), at: 0) }
            if block < count - 1 { parts.append(try zeros(count - 1 - block)) }
            return try self.concatenateColumns(parts)
        })
    }
}
