internal import Autograd
internal import Platform
internal import Tensors

/// The linear layers of Compacter (Karimi Mahabadi et al., arXiv:2106.04647): sums of Kronecker products,
///
///     y = x·Σₙ Aₙ ⊗ Wₙ + b        Aₙ `[n, n]`, Wₙ `[in/n, out/n]`
///
/// with n of them. The rule A is usually one for all layers, and Wₙ of low rank. After the library's `PHMLayer`.
struct HypercomplexSettings: Sendable {
    let count: Int, rank: Int
    let factorsRule: Bool, factorsWeights: Bool
    let sharesRule: Bool, sharesWeights: Bool
    private let learnsRule: Bool
    let hasBias: Bool
    private let isUniform: Bool
    private let range: Float

    init(_ configuration: AdapterConfiguration) throws(PEFTError) {
        (count, rank) = (try configuration.positive("phm_dim"), try configuration.positive("phm_rank"))
        guard count <= 64, rank <= 1024 else { throw PEFTError(.argument, "phm_dim is \(count) and phm_rank \(rank); up to 64 and 1024 are possible") }
        (factorsRule, factorsWeights) = (try configuration.flag("factorized_phm_rule"), try configuration.flag("factorized_phm_W"))
        (sharesRule, sharesWeights) = (try configuration.flag("shared_phm_rule"), try configuration.flag("shared_W_phm"))
        (learnsRule, hasBias) = (try configuration.flag("learn_phm"), try configuration.flag("phm_bias"))
        // Whatever is named, the library starts W as glorot-normal.
        _ = try configuration.choice("hypercomplex_nonlinearity", ["phm", "glorot-normal", "glorot-uniform", "normal"])
        isUniform = try configuration.choice("phm_c_init", ["normal", "uniform"]) == "uniform"
        range = Float(try configuration.number("phm_init_range"))
        guard range.isFinite, range >= 0 else { throw PEFTError(.argument, "phm_init_range is \(range); 0 or more is possible") }
    }

    /// A `[n, n, n]`, or its factors.
    func rule(_ prefix: String, _ engine: Engine) throws(PEFTError) -> [Parameter] {
        let parts = factorsRule ? [("phm_rule_left", [count, count, 1]), ("phm_rule_right", [count, 1, count])] : [("phm_rule", [count, count, count])]
        return try parts.map { (name, shape) throws(PEFTError) in Parameter(name: prefix + name, value: try .zeros(engine, shape, .f32, .adapters), isTrainable: learnsRule) }
    }

    /// W `[n, in/n, out/n]`, or its factors.
    func weights(_ name: String, _ inputs: Int, _ outputs: Int, _ engine: Engine) throws(PEFTError) -> [Parameter] {
        let (rows, columns) = (inputs / count, outputs / count)
        let parts = factorsWeights ? [("_left", [count, rows, rank]), ("_right", [count, rank, columns])] : [("", [count, rows, columns])]
        return try parts.map { (part, shape) throws(PEFTError) in Parameter(name: name + part, value: try .zeros(engine, shape, .f32, .adapters)) }
    }

    func initialize(rule: [Parameter], isShared: Bool, _ random: inout RandomStream) {
        for part in rule {
            if isUniform { part.value.fill(within: isShared ? 1 : 0.01, &random) } else { part.value.fillNormal(isShared ? range : 0.01, &random) }
        }
    }

    func initialize(weights: [Parameter], _ random: inout RandomStream) {
        for part in weights {
            let shape = part.value.shape
            part.value.fillNormal((2 / Float(max(shape[1] + shape[2], 1))).squareRoot(), &random)
        }
    }
}

final class HypercomplexLayer: Sendable {
    let settings: HypercomplexSettings
    let rule: [Parameter], weights: [Parameter]
    let bias: Parameter?
    /// Those that are no other layer's.
    let own: [Parameter]
    private let inputs: Int, outputs: Int
    private let order: ColumnMap

    /// - Parameters:
    ///   - rule: and `weights`: those all layers share; nil: this has its own.
    ///   - order: of the layers of these sizes.
    init(
        _ prefix: String, _ inputs: Int, _ outputs: Int, _ settings: HypercomplexSettings, rule: [Parameter]?, weights: [Parameter]?, order: ColumnMap, _ engine: Engine
    ) throws(PEFTError) {
        (self.settings, self.inputs, self.outputs, self.order) = (settings, inputs, outputs, order)
        let (ownRule, ownWeights) = (rule == nil ? try settings.rule(prefix, engine) : [], weights == nil ? try settings.weights(prefix + "W", inputs, outputs, engine) : [])
        (self.rule, self.weights) = (rule ?? ownRule, weights ?? ownWeights)
        bias = settings.hasBias ? Parameter(name: prefix + "b", value: try .zeros(engine, [outputs], .f32, .adapters)) : nil
        own = ownRule + ownWeights + (bias.map { [$0] } ?? [])
    }

    func initialize(_ random: inout RandomStream) {
        if own.contains(where: { $0 === rule.first }) { settings.initialize(rule: rule, isShared: false, &random) }
        if own.contains(where: { $0 === weights.first }) { settings.initialize(weights: weights, &random) }
    }

    /// Where each value of `Σ Aₙ ⊗ Wₙ` `[(i, k), (j, l)]` is among all pairs `[(i, j), (k, l)]`.
    static func order(_ inputs: Int, _ outputs: Int, _ count: Int, _ engine: Engine) throws(PEFTError) -> ColumnMap {
        let (rows, columns, total) = (inputs / count, outputs / count, try checkedProduct(inputs, outputs, of: "a hypercomplex layer"))
        return try ColumnMap(engine, (0..<total).map { place in
            let (row, column) = (place / outputs, place % outputs)
            return ((row / rows) * count + column / columns) * rows * columns + row % rows * columns + column % columns
        }, of: total)
    }

    func callAsFunction(_ x: Variable, _ tape: Tape, _ variable: (Parameter) -> Variable) throws(PEFTError) -> Variable {
        func whole(_ parts: [Parameter]) throws(PEFTError) -> Variable {
            parts.count > 1 ? try tape.blockProducts(variable(parts[0]), variable(parts[1])) : variable(parts[0])
        }
        let (a, w) = (try whole(rule), try whole(weights))
        let (n, total) = (settings.count, inputs * outputs)
        let pairs = try tape.transposedProduct(try tape.reshaped(a, [n, n * n]), try tape.reshaped(w, [n, total / (n * n)]))
        let h = try tape.gatherColumns(try tape.reshaped(pairs, [1, total]), order)
        return try tape.linear(x, try tape.reshaped(h, [inputs, outputs]), bias: bias.map { variable($0) }, transposed: true)
    }
}
