internal import Autograd
internal import Models
internal import Platform
internal import Tensors

/// The adapter at one place, after the library's `modeling.py` (Adapter, ParallelAdapter).
final class BottleneckModule: Sendable {
    typealias Dense = (weight: Parameter, bias: Parameter)
    enum Projection: Sendable {
        case dense(Dense)
        case hypercomplex(HypercomplexLayer)
    }

    let place: BlockPlace
    let settings: BottleneckSettings
    let down: Projection, up: Projection
    let gate: TextGate?
    let normFirst: Dense?, normLast: Dense?
    /// `[1]`, or one for each value.
    let scaling: Parameter?

    init(_ place: BlockPlace, width: Int, _ settings: BottleneckSettings, _ shared: SharedHypercomplex?, _ engine: Engine) throws(PEFTError) {
        (self.place, self.settings) = (place, settings)
        let (key, size) = (place.module + ".adapters.", try settings.size(width, at: place))
        func parameter(_ name: String, _ shape: [Int]) throws(PEFTError) -> Parameter {
            _ = try checkedProduct(shape[0], shape.count > 1 ? shape[1] : 1, of: "a bottleneck")
            return Parameter(name: key + name, value: try Tensor.zeros(engine, shape, .f32, .adapters))
        }
        func linear(_ name: String, _ inputs: Int, _ outputs: Int) throws(PEFTError) -> Dense {
            (try parameter(name + ".weight", [outputs, inputs]), try parameter(name + ".bias", [outputs]))
        }
        func projection(_ name: String, _ inputs: Int, _ outputs: Int, isDown: Bool) throws(PEFTError) -> Projection {
            guard let shared else { return .dense(try linear(name, inputs, outputs)) }
            return .hypercomplex(try shared.layer(key + name + ".", inputs, outputs, isDown: isDown))
        }
        func norm(_ name: String) throws(PEFTError) -> Dense { (try parameter(name + ".weight", [width]), try parameter(name + ".bias", [width])) }
        // The library's norm is the first of the modules in a row, and is known by two names.
        normFirst = settings.normsFirst ? try norm("adapter_norm_before") : nil
        down = try projection("adapter_down.\(settings.normsFirst ? 1 : 0)", width, size, isDown: true)
        up = try projection("adapter_up", size, width, isDown: false)
        normLast = settings.normsLast ? try norm("adapter_norm_after") : nil
        gate = settings.hasGate ? try TextGate(key + "gate", inputs: width, engine) : nil
        scaling =
            switch settings.scaling {
            case .fixed: nil
            case .learned: try parameter("scaling", [1])
            case .channels: try parameter("scaling", [width])
            }
    }

    var parameters: [Parameter] {
        func parts(_ dense: Dense?) -> [Parameter] { dense.map { [$0.weight, $0.bias] } ?? [] }
        func parts(_ projection: Projection) -> [Parameter] {
            switch projection {
            case .dense(let dense): parts(dense)
            case .hypercomplex(let layer): layer.own
            }
        }
        return parts(normFirst) + parts(down) + parts(up) + parts(normLast) + (gate?.parameters ?? []) + (scaling.map { [$0] } ?? [])
    }

    func initialize(_ random: inout RandomStream) {
        var random = RandomStream(seed: settings.seed.map { UInt64(bitPattern: Int64($0)) } ?? UInt64(random.nextWord()), purpose: place.module)
        for (projection, isDown) in [(down, true), (up, false)] {
            switch projection {
            case .hypercomplex(let layer): layer.initialize(&random)
            case .dense(let layer):
                let weight = layer.weight.value
                switch settings.start {
                case "mam_adapter":  // kaiming-uniform with a = √5; what goes back begins at zero
                    if isDown { weight.fill(within: 1 / Float(max(weight.columns, 1)).squareRoot(), &random) }
                case "houlsby": weight.fill { 0.01 * random.normal(within: 2) }
                default: weight.fillNormal(0.02, &random)
                }
            }
        }
        gate?.initialize(&random)
        for norm in [normFirst, normLast] { norm?.weight.value.fill { 1 } }
        scaling?.value.fill { 1 }
    }
}

/// What Compacter's layers share.
struct SharedHypercomplex {
    let settings: HypercomplexSettings
    let rule: [Parameter]?
    let down: [Parameter]?, up: [Parameter]?
    private let engine: Engine
    /// By the values between down and up.
    private var orders: [Int: (down: ColumnMap, up: ColumnMap)] = [:]

    /// - Parameter sizes: values between down and up, of all places.
    init(_ prefix: String, width: Int, sizes: [Int], _ bottleneck: BottleneckSettings, _ settings: HypercomplexSettings, _ engine: Engine) throws(PEFTError) {
        (self.settings, self.engine) = (settings, engine)
        for size in sizes where orders[size] == nil {
            guard width % settings.count == 0, size % settings.count == 0 else {
                throw PEFTError(.argument, "phm_dim is \(settings.count), which does not divide \(width) and \(size) values (reduction_factor)")
            }
            orders[size] = (try HypercomplexLayer.order(width, size, settings.count, engine), try HypercomplexLayer.order(size, width, settings.count, engine))
        }
        rule = settings.sharesRule ? try settings.rule(prefix, engine) : nil
        let size = try bottleneck.size(width)
        down = settings.sharesWeights ? try settings.weights(prefix + "W_down", width, size, engine) : nil
        up = settings.sharesWeights ? try settings.weights(prefix + "W_up", size, width, engine) : nil
    }

    var parameters: [Parameter] { [down, up, rule].flatMap { $0 ?? [] } }

    func layer(_ prefix: String, _ inputs: Int, _ outputs: Int, isDown: Bool) throws(PEFTError) -> HypercomplexLayer {
        guard let order = orders[isDown ? outputs : inputs] else { throw PEFTError(.internal, "a hypercomplex layer of \(inputs) to \(outputs) values") }
        return try HypercomplexLayer(prefix, inputs, outputs, settings, rule: rule, weights: isDown ? down : up, order: isDown ? order.down : order.up, engine)
    }

    func initialize(_ random: inout RandomStream) {
        if let rule { settings.initialize(rule: rule, isShared: true, &random) }
        for weights in [down, up] { if let weights { settings.initialize(weights: weights, &random) } }
    }
}

/// What it does with a strength.
final class BottleneckHook: JoinHook {
    private let module: BottleneckModule
    private let scale: Float
    /// It is fused with others: only what weighs them learns.
    private let isFrozen: Bool

    init(_ module: BottleneckModule, _ scale: Float, isFrozen: Bool = false) { (self.module, self.scale, self.isFrozen) = (module, scale, isFrozen) }

    var isBeside: Bool { module.settings.isParallel }
    var isGated: Bool { module.gate != nil }

    func inside(_ x: Variable, _ join: BlockJoin, _ tape: Tape) throws(PEFTError) -> Variable {
        let (seen, residual) = try prepared(x, join)
        return try finished(try branch(seen, join, tape), seen, residual, join, tape)
    }

    func after(_ y: Variable, _ x: Variable, _ join: BlockJoin, _ tape: Tape) throws(PEFTError) -> Variable {
        let sum = isBeside ? try tape.add(y, x) : y
        return module.settings.joinsAfter ? try join(sum) : sum
    }

    /// What it sees of what the block computed, and what its own result is added to (the library's pre_forward).
    func prepared(_ x: Variable, _ join: BlockJoin) throws(PEFTError) -> (seen: Variable, residual: Variable) {
        let settings = module.settings
        guard !isBeside else { return (join.residual, join.residual) }
        guard settings.joinsBefore else { return (x, x) }
        let sum = try join.sum(x)
        let seen = try join.normed(sum)
        return switch settings.residual {
        case .beforeJoin: (seen, x)
        case .afterSum: (seen, sum)
        case .afterJoin: (seen, seen)
        }
    }

    /// `up(f(down(x)))·s`
    func branch(_ x: Variable, _ join: BlockJoin, _ tape: Tape) throws(PEFTError) -> Variable {
        let settings = module.settings
        let inner = try tape.activation(try project(try normed(x, module.normFirst, tape), module.down, tape), settings.activation)
        var y = try project(inner, module.up, tape)
        if settings.dropPath > 0, tape.isTraining {
            // Whole samples are left out (stochastic depth).
            let samples = x.value.rows / max(join.length, 1)
            let kept = try tape.dropout(Variable(try Tensor(tape.engine, [Float](repeating: 1, count: samples), shape: [samples, 1])), settings.dropPath)
            y = try tape.scaleTexts(y, kept, length: join.length)
        }
        switch settings.scaling {
        case .fixed(let factor): if factor * scale != 1 { y = try tape.scaled(y, by: factor * scale) }
        case .channels, .learned:
            if let own = module.scaling {
                let (width, value) = (y.value.columns, variable(own, tape))
                let factors = own.value.count == width ? value
                    : try tape.reshaped(try tape.gatherRows(try tape.reshaped(value, [1, 1]), Array(repeating: 0, count: width)), [width])
                y = try tape.scaleColumns(scale == 1 ? y : try tape.scaled(y, by: scale), scale: factors)
            }
        }
        return y
    }

    /// What comes behind: dropout, the gate, norm and residual.
    func finished(_ y: Variable, _ x: Variable, _ residual: Variable, _ join: BlockJoin, _ tape: Tape) throws(PEFTError) -> Variable {
        let made = try gated(try tape.dropout(y, module.settings.dropout), x, join, tape)
        guard !isBeside else { return try normed(made, module.normLast, tape) }
        guard !module.settings.residualBeforeNorm else { return try normed(try tape.add(made, residual), module.normLast, tape) }
        return try tape.add(try normed(made, module.normLast, tape), residual)
    }

    /// Times the mean of the gate over the text.
    private func gated(_ y: Variable, _ x: Variable, _ join: BlockJoin, _ tape: Tape) throws(PEFTError) -> Variable {
        guard let gate = module.gate else { return y }
        return try tape.scaleTexts(y, try gate.means(x, length: join.length, isFrozen: isFrozen, tape), length: join.length)
    }

    private func variable(_ parameter: Parameter, _ tape: Tape) -> Variable { isFrozen ? Variable(parameter.value) : tape.variable(parameter) }

    private func project(_ x: Variable, _ projection: BottleneckModule.Projection, _ tape: Tape) throws(PEFTError) -> Variable {
        switch projection {
        case .dense(let layer): try linear(x, layer, tape)
        case .hypercomplex(let layer): try layer(x, tape) { variable($0, tape) }
        }
    }

    private func linear(_ x: Variable, _ layer: BottleneckModule.Dense, _ tape: Tape) throws(PEFTError) -> Variable {
        try tape.linear(x, variable(layer.weight, tape), bias: variable(layer.bias, tape))
    }

    private func normed(_ x: Variable, _ norm: BottleneckModule.Dense?, _ tape: Tape) throws(PEFTError) -> Variable {
        guard let norm else { return x }
        return try tape.layerNorm(x, weight: variable(norm.weight, tape), bias: variable(norm.bias, tape), eps: 1e-5)
    }
}

extension RandomStream {
    /// Drawn again until it is within so many deviations.
    fileprivate mutating func normal(within bound: Float) -> Float {
        for _ in 0..<64 {
            let value = normal()
            if abs(value) <= bound { return value }
        }
        return 0
    }
}
