internal import Autograd
package import Models
package import Platform
internal import Tensors

/// LoHa (Hyeon-Woo et al., arXiv:2108.06098): the elementwise product of two changes of low rank,
///
///     ΔW = α/r · (A₁·B₁) ⊙ (A₂·B₂)        A [out, r]   B [r, in]
///
/// which is one change of rank r² with Khatri–Rao factors: row o of the left one is A₁[o,:] ⊗ A₂[o,:], column i of the right
/// one B₁[:,i] ⊗ B₂[:,i]. For linear layers and convolutions.
package struct LoHa: AdapterMethod {
    package static let peftType = "LOHA"
    package static let layerKinds = ["Linear", "Conv1d", "Conv2d"]
    package static let defaults = LyCORISSettings.defaults

    private let settings: LyCORISSettings
    private let isIdentity: Bool

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        settings = try LyCORISSettings(configuration, scalesMask: true)
        isIdentity = try configuration.flag("init_weights")
    }

    package mutating func prepare(for targets: [any Layer], _ configuration: inout AdapterConfiguration, _ model: Model) throws(PEFTError) {
        try settings.check(targets, model)
    }

    package func module(for layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule {
        let target = try MatrixTarget(layer, of: LoHa.self)
        return try settings.module(LoHaModule(target, key: key, settings, isIdentity: isIdentity, model.engine), key: key, model)
    }
}

private final class LoHaModule: MatrixModule {
    let target: MatrixTarget
    /// A₁ B₁ A₂ B₂
    private let factors: [Parameter]
    /// Two kernels `[r, r, taps]`; empty where columns are not factored by the kernel's axes.
    private let kernels: [Parameter]
    private let tucker: TuckerKernel?
    private let dropout: LyCORISDropout
    private let factor: Double
    private let isIdentity: Bool
    /// Columns i·r + j of the factors of rank r²: i of the first, j of the second.
    private let pairs: (first: ColumnMap, second: ColumnMap)?

    init(_ target: MatrixTarget, key: String, _ settings: LyCORISSettings, isIdentity: Bool, _ engine: Engine) throws(PEFTError) {
        self.target = target
        self.isIdentity = isIdentity
        dropout = settings.dropout
        let (rank, factor) = try settings.values(for: target.layer)
        self.factor = factor
        func parameter(_ name: String, _ shape: [Int]) throws(PEFTError) -> Parameter {
            Parameter(name: "\(key).hada_\(name)", value: try .zeros(engine, shape, .f32, .adapters))
        }
        let (outputs, inputs) = (target.outputSize, target.inputSize / target.groups)
        let isTucker = settings.isEffective && target.taps > 1
        let channels = target.channels / target.groups
        tucker = isTucker ? try TuckerKernel(rank: rank, inputs: channels, taps: target.taps, engine) : nil
        var (factors, kernels): ([Parameter], [Parameter]) = ([], [])
        for branch in ["1", "2"] {
            if isTucker {
                kernels.append(try parameter("t" + branch, [rank, rank] + (target.kernel.count == 1 ? target.kernel + [1] : target.kernel)))
            }
            factors.append(try parameter("w\(branch)_a", isTucker ? [rank, outputs] : [outputs, rank]))
            factors.append(try parameter("w\(branch)_b", [rank, isTucker ? channels : inputs]))
        }
        (self.factors, self.kernels) = (factors, kernels)
        // Four products of rank r² a step, or three with a whole ΔW.
        let isCheaper = !isTucker && target.groups == 1 && 4 * rank * rank * (inputs + outputs) < 3 * inputs * outputs
        pairs =
            isCheaper
            ? (try ColumnMap(engine, (0..<rank * rank).map { $0 / rank }, of: rank), try ColumnMap(engine, (0..<rank * rank).map { $0 % rank }, of: rank)) : nil
    }

    var isLowRank: Bool { pairs != nil }
    var parameters: [Parameter] { factors + kernels }
    var scaling: Double? { factor }

    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        var random = random
        for parameter in parameters { parameter.value.fillKaiming(&random) }
        if isIdentity { factors[3].value.clear() }
        return [:]
    }

    func add(to y: consuming Variable, input x: Variable, scale: Float, _ site: HookSite) throws(PEFTError) -> Variable {
        let (tape, scale) = (site.tape, Float(factor) * scale)
        return try dropout.add(to: y, tape) { (y) throws(PEFTError) in
            let variables = parameters.map { tape.variable($0) }
            guard let pairs else {
                return try tape.addProduct(to: y, input: x, groups: target.groups, scale: scale, of: variables) { [tucker] (tape, w) throws(PEFTError) in
                    guard let tucker else { return try tape.multiply(try tape.linear(w[0], w[1], transposed: true), try tape.linear(w[2], w[3], transposed: true)) }
                    return try tape.multiply(
                        try tucker.likePEFT(w[4], w[0], w[1], other: (w[5], w[3]), tape), try tucker.likePEFT(w[5], w[2], w[3], other: (w[4], w[1]), tape))
                }
            }
            let left = try tape.remade([variables[0], variables[2]]) { (tape, w) throws(PEFTError) in
                try tape.multiply(try tape.gatherColumns(w[0], pairs.first), try tape.gatherColumns(w[1], pairs.second))
            }
            let right = try tape.remade([variables[1], variables[3]]) { (tape, w) throws(PEFTError) in
                try tape.multiply(try tape.gatherRows(w[0], pairs.first), try tape.gatherRows(w[1], pairs.second))
            }
            return try tape.addLowRank(to: y, input: x, a: right, b: left, scale: scale)
        }
    }
}

extension TuckerKernel {
    /// The kernel, with PEFT's gradient to `a`: PEFT 0.21's derivative takes it through the kernel and the inputs of the other
    /// factor. Training is to give PEFT's numbers, so it does here too.
    fileprivate func likePEFT(_ t: Variable, _ a: Variable, _ b: Variable, other: (t: Variable, b: Variable), _ tape: Tape) throws(PEFTError) -> Variable {
        let kernel = try self(t, Variable(a.value), b, tape)
        guard tape.isRecording else { return kernel }
        let way = try self(Variable(other.t.value), a, Variable(other.b.value), tape)
        return try tape.add(kernel, try tape.add(way, try tape.scaled(Variable(way.value), by: -1)))
    }
}
