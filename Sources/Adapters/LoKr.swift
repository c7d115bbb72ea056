internal import Autograd
package import Models
package import Platform
internal import Tensors

/// LoKr (Yeh et al., arXiv:2309.14859; KronA, arXiv:2212.10650): a Kronecker product,
///
///     ΔW = α/r · W₁ ⊗ W₂        W₁ [l, m]   W₂ [k, n]   out = l·k, in = m·n
///
/// where a large factor is itself of rank r. For linear layers and convolutions (whose kernel is W₂'s).
package struct LoKr: AdapterMethod {
    package static let peftType = "LOKR"
    package static let layerKinds = ["Linear", "Conv1d", "Conv2d"]

    package static let defaults: JSONObject = {
        var defaults = LyCORISSettings.defaults
        defaults["decompose_both"] = .bool(false)
        defaults["decompose_factor"] = .integer(-1)
        defaults["rank_dropout_scale"] = .bool(false)
        return defaults
    }()

    private let settings: LyCORISSettings
    private let decomposesBoth: Bool
    private let factor: Int
    /// "true", "false" or "lycoris"
    private let start: String

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        settings = try LyCORISSettings(configuration, scalesMask: try configuration.flag("rank_dropout_scale"))
        decomposesBoth = try configuration.flag("decompose_both")
        factor = try configuration.integer("decompose_factor")
        guard factor == -1 || factor > 0 else { throw PEFTError(.argument, "decompose_factor is \(factor); it can be -1 (automatic) or positive") }
        start = try configuration.choice("init_weights", ["lycoris"], orFlag: true)
    }

    package mutating func prepare(for targets: [any Layer], _ configuration: inout AdapterConfiguration, _ model: Model) throws(PEFTError) {
        try settings.check(targets, model)
    }

    package func module(for layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule {
        let target = try MatrixTarget(layer, of: LoKr.self)
        let (rank, scaling) = try settings.values(for: layer)
        let out = LoKr.factors(of: target.outputSize, factor)
        let input = LoKr.factors(of: target.channels / target.groups, factor)
        let module = try LoKrModule(
            target, key: key, (out.small, out.large), (input.small, input.large), rank: rank, scaling: scaling, decomposesBoth: decomposesBoth, settings, start,
            model.engine)
        return try settings.module(module, key: key, model)
    }

    /// Two numbers with the product `size`: `factor` and the rest, or as near to each other as they can be, the smaller (at most
    /// `factor` unless that is −1) first.
    static func factors(of size: Int, _ factor: Int) -> (small: Int, large: Int) {
        if factor > 0, size % factor == 0 { return (factor, size / factor) }
        let most = factor == -1 ? size : factor
        var best = (small: 1, large: size)
        var small = 1
        while small < best.large {
            repeat { small += 1 } while small <= size && size % small != 0
            guard small <= size, small <= most, small + size / small <= best.small + best.large else { break }
            best = (small, size / small)
        }
        return (min(best.small, best.large), max(best.small, best.large))
    }
}

private final class LoKrModule: MatrixModule {
    let target: MatrixTarget
    /// W₁, or its two factors.
    private let first: [Parameter]
    /// W₂, or its two factors, or those and a kernel.
    private let second: [Parameter]
    private let tucker: TuckerKernel?
    private let dropout: LyCORISDropout
    private let factor: Double
    private let start: String
    private let (l, k, m, n): (Int, Int, Int, Int)
    /// Where PEFT's product has another order than the weight it is read as.
    private let order: ColumnMap?

    init(
        _ target: MatrixTarget, key: String, _ out: (l: Int, k: Int), _ input: (m: Int, n: Int), rank: Int, scaling: Double, decomposesBoth: Bool,
        _ settings: LyCORISSettings, _ start: String, _ engine: Engine
    ) throws(PEFTError) {
        self.target = target
        self.start = start
        dropout = settings.dropout
        factor = scaling
        let taps = target.taps
        let (l, k, m, n) = (out.l, out.k, input.m, input.n)
        func parameter(_ name: String, _ shape: [Int]) throws(PEFTError) -> Parameter {
            Parameter(name: "\(key).lokr_\(name)", value: try .zeros(engine, shape, .f32, .adapters))
        }
        let isFactored = decomposesBoth && 2 * rank < max(l, m)
        first = isFactored ? [try parameter("w1_a", [l, rank]), try parameter("w1_b", [rank, m])] : [try parameter("w1", [l, m])]
        let isWhole = 2 * rank >= max(k, n)
        let isTucker = !isWhole && settings.isEffective && taps > 1
        tucker = isTucker ? try TuckerKernel(rank: rank, inputs: n, taps: taps, engine) : nil
        if isWhole {
            second = [try parameter("w2", [k, n] + target.kernel)]
        } else if isTucker {
            let kernel = target.kernel.count == 1 ? target.kernel + [1] : target.kernel
            second = [try parameter("w2_a", [rank, k]), try parameter("w2_b", [rank, n]), try parameter("t2", [rank, rank] + kernel)]
        } else {
            second = [try parameter("w2_a", [k, rank]), try parameter("w2_b", [rank, n * taps])]
        }
        let width = n * taps
        // torch.kron puts the two dimensions of W₁ beside the last two of three: the product has the order (k, l, n, m, tap).
        let isScrambled = target.kernel.count == 1 && isWhole
        order =
            isScrambled
            ? try ColumnMap(
                engine,
                (0..<l * k * m * width).map { place in
                    let (tap, rest) = (place % taps, place / taps)
                    let (im, more) = (rest % m, rest / m)
                    let (jn, last) = (more % n, more / n)
                    let (il, jk) = (last % l, last / l)
                    return (il * m + im) * k * width + (jk * n + jn) * taps + tap
                }, of: l * k * m * width) : nil
        (self.l, self.k, self.m, self.n) = (l, k, m, n)
    }

    var parameters: [Parameter] { first + second }
    var scaling: Double? { factor }

    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        var random = random
        for parameter in parameters { parameter.value.fillKaiming(&random) }
        switch start {
        case "true": first[0].value.clear()
        case "lycoris": second[second.count == 1 ? 0 : 1].value.clear()
        default: break
        }
        return [:]
    }

    func add(to y: consuming Variable, input x: Variable, scale: Float, _ site: HookSite) throws(PEFTError) -> Variable {
        let (tape, scale) = (site.tape, Float(factor) * scale)
        return try dropout.add(to: y, tape) { (y) throws(PEFTError) in
            let variables = parameters.map { tape.variable($0) }
            guard order == nil, target.groups == 1 else {
                return try tape.addProduct(to: y, input: x, groups: target.groups, scale: scale, of: variables) { [self] (tape, w) throws(PEFTError) in
                    try product(try w1(w, tape), try w2(w, tape), tape)
                }
            }
            return try addFactored(to: y, input: x, scale, variables, tape)
        }
    }

    /// `[l, m]`
    private func w1(_ w: [Variable], _ tape: Tape) throws(PEFTError) -> Variable {
        first.count == 1 ? w[0] : try tape.linear(w[0], w[1], transposed: true)
    }

    /// `[k, n·taps]`
    private func w2(_ w: [Variable], _ tape: Tape) throws(PEFTError) -> Variable {
        let w = w.dropFirst(first.count).map { $0 }
        if let tucker { return try tucker(w[2], w[0], w[1], tape) }
        if w.count == 2 { return try tape.linear(w[0], w[1], transposed: true) }
        return try tape.reshaped(w[0], [k, n * target.taps])
    }

    /// `W₁ ⊗ W₂` `[out, in/groups]`
    private func product(_ w1: Variable, _ w2: Variable, _ tape: Tape) throws(PEFTError) -> Variable {
        let width = n * target.taps
        // All pairs, [(l, m), (k, width)], put in the order of the weight.
        let pairs = try tape.reshaped(
            try tape.linear(try tape.reshaped(w1, [l * m, 1]), try tape.reshaped(w2, [k * width, 1])), [1, l * m * k * width])
        return try tape.reshaped(try tape.gatherColumns(pairs, try self.order(tape.engine)), [l * k, m * width])
    }

    /// Where each value of ΔW is among all pairs of values of W₁ and W₂.
    private func order(_ engine: Engine) throws(PEFTError) -> ColumnMap {
        if let order { return order }
        let width = n * target.taps
        let places = (0..<l * k * m * width).map { place in
            let (row, column) = (place / (m * width), place % (m * width))
            return ((row / k) * m + column / width) * k * width + row % k * width + column % width
        }
        return try ColumnMap(engine, places, of: l * m * k * width)
    }

    /// `y[l, :] += W₂ · Σ_m W₁[l, m]·x[m, :]` for every row, x as `[m, n·taps]`, y as `[l, k]`: row by row where W₂ is of low rank, else two products of
    /// small matrices over many rows.
    private func addFactored(to y: consuming Variable, input x: Variable, _ scale: Float, _ w: [Variable], _ tape: Tape) throws(PEFTError) -> Variable {
        let w1 = try w1(w, tape)
        if second.count == 2 { return try tape.addKronecker(to: y, input: x, w: w1, a: w[first.count], b: w[first.count + 1], scale: scale) }
        let (rows, width, shape) = (x.value.rows, n * target.taps, y.shape)
        let branch = try tape.recomputed([x, try tape.scaled(w1, by: scale), try w2(w, tape)]) { [l, m, k] (tape, inputs) throws(PEFTError) in
            let turned = try tape.reshaped(try tape.turnedRows(inputs[0], m, width), [rows * width, m])
            let mixed = try tape.reshaped(try tape.linear(turned, inputs[1]), [rows, width * l])
            let z = try tape.reshaped(try tape.turnedRows(mixed, width, l), [rows * l, width])
            return try tape.reshaped(try tape.linear(z, inputs[2]), [rows, l * k])
        }
        return try tape.add(y, try tape.reshaped(branch, shape))
    }
}
