internal import Autograd
internal import Models
internal import Platform
internal import Tensors

/// The adapter at one place, after the library's `modeling.py` (Adapter, ParallelAdapter).
final class BottleneckModule: Sendable {
    let place: BlockPlace
    let settings: BottleneckSettings
    let down: (weight: Parameter, bias: Parameter), up: (weight: Parameter, bias: Parameter)
    let gate: (weight: Parameter, bias: Parameter)?
    let normFirst: (weight: Parameter, bias: Parameter)?, normLast: (weight: Parameter, bias: Parameter)?
    /// `[1]`, or one for each value.
    let scaling: Parameter?

    init(_ place: BlockPlace, width: Int, _ settings: BottleneckSettings, _ engine: Engine) throws(PEFTError) {
        (self.place, self.settings) = (place, settings)
        let (key, size) = (place.module + ".adapters.", try settings.size(width, at: place))
        func parameter(_ name: String, _ shape: [Int]) throws(PEFTError) -> Parameter {
            _ = try checkedProduct(shape[0], shape.count > 1 ? shape[1] : 1, of: "a bottleneck")
            return Parameter(name: key + name, value: try Tensor.zeros(engine, shape, .f32, .adapters))
        }
        func linear(_ name: String, _ inputs: Int, _ outputs: Int) throws(PEFTError) -> (weight: Parameter, bias: Parameter) {
            (try parameter(name + ".weight", [outputs, inputs]), try parameter(name + ".bias", [outputs]))
        }
        func norm(_ name: String) throws(PEFTError) -> (weight: Parameter, bias: Parameter) { (try parameter(name + ".weight", [width]), try parameter(name + ".bias", [width])) }
        // The library's norm is the first of the modules in a row, and is known by two names.
        normFirst = settings.normsFirst ? try norm("adapter_norm_before") : nil
        down = try linear("adapter_down.\(settings.normsFirst ? 1 : 0)", width, size)
        up = try linear("adapter_up", size, width)
        normLast = settings.normsLast ? try norm("adapter_norm_after") : nil
        gate = settings.hasGate ? try linear("gate", width, 1) : nil
        scaling =
            switch settings.scaling {
            case .fixed: nil
            case .learned: try parameter("scaling", [1])
            case .channels: try parameter("scaling", [width])
            }
    }

    var parameters: [Parameter] {
        let pairs = [normFirst, down, up, normLast, gate].compactMap { $0 }
        return pairs.flatMap { [$0.weight, $0.bias] } + (scaling.map { [$0] } ?? [])
    }

    func initialize(_ random: inout RandomStream) {
        var random = RandomStream(seed: settings.seed.map { UInt64(bitPattern: Int64($0)) } ?? UInt64(random.nextWord()), purpose: place.module)
        switch settings.start {
        case "mam_adapter":  // kaiming-uniform with a = √5; what goes back begins at zero
            down.weight.value.fill(within: 1 / Float(max(down.weight.value.columns, 1)).squareRoot(), &random)
        case "houlsby": for layer in [down, up] { layer.weight.value.fill { 0.01 * random.normal(within: 2) } }
        default: for layer in [down, up] { layer.weight.value.fillNormal(0.02, &random) }
        }
        gate?.weight.value.fillNormal(0.02, &random)
        for norm in [normFirst, normLast] { norm?.weight.value.fill { 1 } }
        scaling?.value.fill { 1 }
    }
}

/// What it does with a strength.
final class BottleneckHook: JoinHook {
    private let module: BottleneckModule
    private let scale: Float

    init(_ module: BottleneckModule, _ scale: Float) { (self.module, self.scale) = (module, scale) }

    func inside(_ x: Variable, _ join: BlockJoin, _ tape: Tape) throws(PEFTError) -> Variable {
        let settings = module.settings
        guard !settings.isParallel else { return try normed(try branch(join.residual, join, tape), module.normLast, tape) }
        var residual = x
        let seen = settings.joinsBefore ? try join(x) : x
        if !settings.residualBeforeJoin { residual = seen }
        let made = try branch(seen, join, tape)
        guard !settings.residualBeforeNorm else { return try normed(try tape.add(made, residual), module.normLast, tape) }
        return try tape.add(try normed(made, module.normLast, tape), residual)
    }

    func after(_ y: Variable, _ x: Variable, _ join: BlockJoin, _ tape: Tape) throws(PEFTError) -> Variable {
        let sum = module.settings.isParallel ? try tape.add(y, x) : y
        return module.settings.joinsAfter ? try join(sum) : sum
    }

    /// `drop(up(f(down(x)))·s)`, times the gate.
    private func branch(_ x: Variable, _ join: BlockJoin, _ tape: Tape) throws(PEFTError) -> Variable {
        let settings = module.settings
        func linear(_ x: Variable, _ layer: (weight: Parameter, bias: Parameter)) throws(PEFTError) -> Variable {
            try tape.linear(x, tape.variable(layer.weight), bias: tape.variable(layer.bias))
        }
        let inner = try tape.activation(try linear(try normed(x, module.normFirst, tape), module.down), settings.activation)
        var y = try linear(inner, module.up)
        switch settings.scaling {
        case .fixed(let factor): if factor * scale != 1 { y = try tape.scaled(y, by: factor * scale) }
        case .channels, .learned:
            if let own = module.scaling {
                let width = y.value.columns
                let factors = own.value.count == width ? tape.variable(own)
                    : try tape.reshaped(try tape.gatherRows(try tape.reshaped(tape.variable(own), [1, 1]), Array(repeating: 0, count: width)), [width])
                y = try tape.scaleColumns(scale == 1 ? y : try tape.scaled(y, by: scale), scale: factors)
            }
        }
        y = try tape.dropout(y, settings.dropout)
        guard let gate = module.gate else { return y }
        guard !join.isCached else {
            throw PEFTError(.unsupported, "use_gating in a session: the gate is a mean over the whole text, which is not there yet; call forward on it")
        }
        let samples = x.value.rows / max(join.length, 1)
        let values = try tape.cast(try tape.activation(try linear(x, gate), .sigmoid), to: .f32)
        let means = try tape.meanRows(values, (0..<samples).map { $0 * join.length..<($0 + 1) * join.length })
        let each = try tape.gatherRows(means, (0..<x.value.rows).map { Int32(clamping: $0 / max(join.length, 1)) })
        return try tape.scaleRows(y, try tape.reshaped(each, [x.value.rows]))
    }

    private func normed(_ x: Variable, _ norm: (weight: Parameter, bias: Parameter)?, _ tape: Tape) throws(PEFTError) -> Variable {
        guard let norm else { return x }
        return try tape.layerNorm(x, weight: tape.variable(norm.weight), bias: tape.variable(norm.bias), eps: 1e-5)
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
