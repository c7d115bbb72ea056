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
    case velora(VeLoRASettings)
    /// MonteCLoRA: A is drawn around its value in training.
    case monteCarlo(MonteCarloSettings)
    /// QA-LoRA (Xu et al., arXiv:2309.14717): A sees the means of so many neighbouring inputs, so that each block of a quantised weight
    /// is shifted as a whole: `ΔW[:, i] = s·(in/g)/g · B·A[:, i/g]`.
    case pooled(Int)
    /// DyLoRA (Valipour et al., arXiv:2210.07558): each step trains one block of so many ranks over those before it, without those behind it,
    /// so that the adapter can be cut to any of these ranks afterwards (not PEFT's; LyCORIS', kohya's).
    case dynamic(Int)
    /// Arrow (Ostapenko et al., arXiv:2405.11157): other adapters act, chosen token by token (`ArrowRouting`).
    case arrow(ArrowRouting)
    /// UniPELT's gate (`TextGate`), AdapterHub's `use_gating`: `y += g·B·A·x`, without the factor s.
    case gated
    /// aLoRA (Greenewald et al., arXiv:2504.12397): it acts from the last place on where these tokens stand in a text.
    case activated(by: [Int32])

    static let keys = ["alora_invocation_tokens", "kasa_config", "use_bdlora", "velora_config", "monteclora_config", "use_qalora", "arrow_config", "dylora_block_size", "use_gating"]

    /// - Returns: nil: plain LoRA, or DoRA.
    static func chosen(_ configuration: AdapterConfiguration, isNew: Bool) throws(PEFTError) -> LoRAVariant? {
        let chosen = keys.filter { !(configuration.values[$0]?.isNull ?? true) && configuration.values[$0] != .bool(false) }
        guard let key = chosen.first else { return nil }
        let others = ["use_dora", "lora_bias"].filter { configuration.isSet($0) && (key, $0) != ("alora_invocation_tokens", "lora_bias") }
        guard chosen.count == 1, others.isEmpty else {
            throw PEFTError(.argument, "\((chosen + others).joined(separator: ", ")) do not go together; LoRA has one variant at a time")
        }
        if key == "alora_invocation_tokens" { return .activated(by: try invocation(configuration.values[key])) }
        if key == "dylora_block_size" { return .dynamic(try configuration.positive(key)) }
        if key == "use_gating" { return try configuration.flag(key) ? .gated : nil }
        if key == "use_qalora" {
            guard try configuration.flag(key) else { return nil }
            return .pooled(try configuration.positive("qalora_group_size"))
        }
        let options = try configuration.values.object(key) ?? JSONObject()
        switch key {
        case "kasa_config": return .kasa
        case "use_bdlora": return .blockDiagonal(try BlockDiagonalNames(options))
        case "velora_config": return .velora(try VeLoRASettings(options))
        case "arrow_config": return .arrow(try ArrowRouting(options))
        default: return .monteCarlo(try MonteCarloSettings(options))
        }
    }

    private static func invocation(_ value: JSONValue?) throws(PEFTError) -> [Int32] {
        let ids = (value?.arrayValue ?? []).compactMap { $0.intValue.flatMap { Int32(exactly: $0) } }
        guard !ids.isEmpty, ids.count == value?.arrayValue?.count, ids.allSatisfy({ $0 >= 0 }) else {
            throw PEFTError(.argument, "alora_invocation_tokens is \(value?.text() ?? "null"); a list of token ids is expected")
        }
        return ids
    }

    /// The adapter's own factors do nothing.
    private var isRouted: Bool { if case .arrow = self { true } else { false } }

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
            if settings.hasBias { more = [try model.parameter(key + ".lora_B.bias", [outputs])] }
            form = .activated(tokens, bias: more.first)
        case .velora(let settings):
            let direction = try VeLoRADirection(linear, key: key, settings, model)
            more = [direction.parameter]
            form = .compressed(direction)
        case .monteCarlo(let settings):
            let sampler = try MonteCarloSampler(linear, key: key, rank: rank, settings, model)
            more = sampler.parameters
            form = .sampled(sampler)
        case .pooled(let group):
            guard inputs % group == 0 else {
                throw PEFTError(.argument, "qalora_group_size is \(group); it must divide the inputs of '\(linear.name)', \(inputs)")
            }
            aShape[1] /= group
            form = .pooled(try ColumnMap(model.engine, (0..<inputs).map { $0 / group }, of: aShape[1]), Float(aShape[1]) / Float(group))
        case .dynamic(let size):
            guard rank % size == 0 else { throw PEFTError(.argument, "dylora_block_size is \(size); it must divide r, which is \(rank) for '\(linear.name)'") }
            form = .dynamic(size)
        case .arrow: form = .routed
        case .gated:
            let gate = try TextGate(key + ".lora_gate", inputs: inputs, model.engine)
            (more, form) = (gate.parameters, .gated(gate))
        }
        return VariantLoRA(
            linear, a: try model.parameter(key + ".lora_A.weight", aShape, isTrainable: !isRouted),
            b: try model.parameter(key + ".lora_B.weight", bShape, isTrainable: !isRouted), more, form, scaling: scaling, settings, model.engine)
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
final class VariantLoRA: LinearBranch {
    enum Form {
        case plain
        case diagonal(Parameter)
        case blocks(Int, BlockDiagonalNames.Side)
        case compressed(VeLoRADirection)
        case sampled(MonteCarloSampler)
        case pooled(ColumnMap, Float)
        case dynamic(Int)
        case routed
        case activated([Int32], bias: Parameter?)
        case gated(TextGate)
    }

    let linear: Linear
    private let a: Parameter
    private let b: Parameter
    private let more: [Parameter]
    let form: Form
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
    var invocation: [Int32]? { if case .activated(let tokens, _) = form { tokens } else { nil } }
    var changesBase: Bool { if case .diagonal = form { true } else { false } }

    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        var random = random
        var slope: Float = 1
        if case .blocks(_, .a) = form { slope = Float(6).squareRoot() }  // kaiming_uniform_ with a = 0
        a.value.fillUniform(fanIn: a.value.columns, &random)
        if slope != 1 { engine.axpby(slope, try a.value.converted(to: .f32, engine, .scratch), 0, into: a.value) }
        if isRandom { b.value.fillUniform(fanIn: b.value.columns, &random) } else { b.value.clear() }
        switch form {
        case .activated(_, let bias?) where isRandom: bias.value.fillUniform(fanIn: b.value.columns, &random)
        case .diagonal(let diagonal):
            diagonal.value.fillNormal(1, &random)
            return ["weight": try truncated()]
        case .compressed(let direction): direction.initialize(&random)
        case .sampled(let sampler): sampler.initialize(&random)
        case .gated(let gate): gate.initialize(&random)
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
        if case .routed = form { throw PEFTError(.unsupported, "'\(linear.name)': arrow_config chooses adapters token by token, so no weights can hold it") }
        if case .gated = form { throw PEFTError(.unsupported, "'\(linear.name)': an adapter with use_gating does something else to each text, so no weights can hold it") }
        guard invocation == nil else { throw PEFTError(.unsupported, "'\(linear.name)': an adapter with alora_invocation_tokens does not act on all tokens, so no weights can hold it") }
        try weights.fold(hook(scale: scale, beside: [:]), target)
    }

    func add(to y: consuming Variable, input x: Variable, beside w: Tensor, scale: Float, _ tape: Tape)
        throws(PEFTError) -> Variable
    {
        let (strength, scale) = (scale, scale * Float(factor))
        var (a, b) = (tape.variable(a), tape.variable(b))
        switch form {
        case .plain, .activated(_, nil): break
        case .activated(_, let bias?):
            let sum = try tape.addLowRank(to: y, input: x, a: a, b: b, scale: scale, dropout: dropout)
            return try tape.scaleColumns(sum, scale: nil, shift: try tape.scaled(tape.variable(bias), by: scale))
        case .diagonal(let diagonal):
            return try tape.addProduct(
                to: y, input: x, [.matrix(a), .diagonal(tape.variable(diagonal)), .matrix(b)], scale: scale, dropout: dropout)
        case .blocks(let count, .a): a = try tape.blockDiagonal(a, count)
        case .blocks(let count, .b): b = try tape.blockDiagonal(b, count)
        case .compressed(let direction):
            guard tape.isTraining, tape.isRecording else { break }
            let h = try direction.product(try tape.dropout(x, dropout), a, tape)
            return try tape.addProduct(to: y, input: h, [.matrix(b)], scale: scale)
        case .sampled(let sampler):
            if tape.isTraining { a = try sampler.drawn(a, tape) }
        case .pooled(let map, let factor): a = try tape.scaled(try tape.gatherColumns(a, map), by: factor)
        case .dynamic(let size):
            guard tape.isTraining else { break }
            let (rank, start) = (a.value.rows, Int(tape.random.below(UInt32(a.value.rows / size))) * size)
            let parts = try tape.splitColumns(b, [start, size, rank - start - size].filter { $0 > 0 })
            let block = try tape.rows(a, start..<start + size)
            if start > 0 {
                a = try tape.concatenateRows([Variable(try a.value.rows(0..<start)), block])
                b = try tape.concatenateColumns([Variable(parts[0].value), parts[1]])
            } else {
                (a, b) = (block, parts[0])
            }
            let used = Float(rank) / Float(start + size)
            return try tape.addLowRank(to: y, input: x, a: a, b: b, scale: scale * used, dropout: dropout)
        case .routed: return y
        case .gated(let gate):
            // As in the library, the gate stands instead of the factor.
            let inner = try tape.scaleTexts(try tape.linear(try tape.dropout(x, dropout), a), try gate.means(x, length: tape.textRows, tape), length: tape.textRows)
            return try tape.addProduct(to: y, input: inner, [.matrix(b)], scale: strength)
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
