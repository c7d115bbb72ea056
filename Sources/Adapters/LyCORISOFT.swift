internal import Autograd
package import Models
package import Platform
internal import Tensors

/// OFT and BOFT as LyCORIS has them ("diag-oft", "boft"): what a layer gives is rotated, where PEFT's rotate what it sees,
///
///     y = s ⊙ R·(W·x) + b        R = blockdiag(C₁ … C_n), or a butterfly of such with other orders of columns
///
/// C = (I + Q)·(I − Q)⁻¹ of Q = B − Bᵀ, its transpose for diag-oft; ‖Q‖ is held below `constraint`·outputs where that is positive. The size of
/// blocks is the divisor of the outputs nearest to `r` (an even one, with a power of two of blocks, for the `butterfly`). For linear layers and
/// convolutions.
package struct LyCORISOFT: AdapterMethod {
    package static let peftType = "LYCORIS_OFT"
    package static let layerKinds = MatrixTarget.linears + MatrixTarget.convolutions
    package static let defaults: JSONObject = [
        "butterfly": .bool(false), "constraint": .number(0), "exclude_modules": .null, "init_weights": .bool(true), "layers_pattern": .null,
        "layers_to_transform": .null, "modules_to_save": .null, "r": .integer(4), "rank_pattern": .object([:]), "rescaled": .bool(false), "target_modules": .null,
    ]

    private let (isButterfly, isRescaled, isIdentity): (Bool, Bool, Bool)
    private let constraint: Float
    private let size: Int
    private let sizes: PatternTable

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        isButterfly = try configuration.flag("butterfly")
        isRescaled = try configuration.flag("rescaled")
        isIdentity = try configuration.flag("init_weights")
        constraint = Float(try configuration.number("constraint"))
        guard constraint >= 0, constraint.isFinite else { throw PEFTError(.argument, "constraint is \(constraint); it can be 0 (none) or positive") }
        size = try configuration.positive("r")
        sizes = try PatternTable(configuration, "rank_pattern")
    }

    package func module(for layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule {
        let target = try MatrixTarget(layer, of: LyCORISOFT.self, inGroups: false)
        let wanted = try sizes.value(for: layer.name).flatMap { Int(exactly: $0) } ?? size
        guard let b = isButterfly ? LyCORISOFT.evenSize(target.outputSize, wanted) : LyCORISOFT.size(target.outputSize, wanted) else {
            throw PEFTError(.argument, "r is \(wanted); the \(target.outputSize) outputs of '\(layer.name)' are no power of two of blocks of an even size up to that")
        }
        return try LyCORISRotation(
            target, key: key, blockSize: b, isButterfly: isButterfly, isRescaled: isRescaled, isIdentity: isIdentity, constraint: constraint, model)
    }

    /// LyCORIS' `factorization`: the smaller of two factors, `wanted` or what is nearest to the root.
    private static func size(_ outputs: Int, _ wanted: Int) -> Int? {
        let (small, large) = LoKr.factors(of: outputs, max(wanted, 1))
        return min(small, large)
    }

    /// Its `power2factorization`: the largest even size up to `wanted` that leaves a power of two.
    private static func evenSize(_ outputs: Int, _ wanted: Int) -> Int? {
        stride(from: min(wanted, outputs) / 2 * 2, through: 2, by: -2).first { outputs % $0 == 0 && (outputs / $0).nonzeroBitCount == 1 }
    }
}

final class LyCORISRotation: MatrixModule {
    let target: MatrixTarget
    /// f32 `[n, b, b]`, `[m, n, b, b]` of a butterfly
    private let blocks: Parameter
    /// f32 `[out, 1…]`
    private let rescale: Parameter?
    /// As files have it: without the number of outputs.
    let constraint: Float
    private let butterfly: Butterfly
    private let isIdentity: Bool

    fileprivate init(
        _ target: MatrixTarget, key: String, blockSize b: Int, isButterfly: Bool, isRescaled: Bool, isIdentity: Bool, constraint: Float, _ model: Model
    ) throws(PEFTError) {
        (self.target, self.constraint, self.isIdentity) = (target, constraint, isIdentity)
        let (width, n) = (target.outputSize, target.outputSize / b)
        let factors = isButterfly ? n.trailingZeroBitCount + 1 : 1
        blocks = try model.parameter(key + ".oft_blocks", (isButterfly ? [factors] : []) + [n, b, b])
        rescale = isRescaled ? try model.parameter(key + ".rescale", [width, 1] + target.kernel.map { _ in 1 }) : nil
        // Factor i takes what lies k = b·2ⁱ⁻¹ apart beside each other.
        butterfly = try Butterfly(
            (0..<factors).map { factor in
                let k = (b / 2) << factor
                return (factor, isButterfly ? (0..<width).map { $0 / (2 * k) * 2 * k + $0 % 2 * k + $0 % (2 * k) / 2 } : nil)
            }, blocks: n, blockSize: b, skew: isButterfly ? 1 : -1, model)
    }

    var parameters: [Parameter] { [blocks] + [rescale].compactMap { $0 } }

    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        var random = random
        if !isIdentity { blocks.value.fillNormal(0.1, &random) }
        rescale?.value.fill { isIdentity ? 1 : 1 + 0.1 * random.normal() }
        return [:]
    }

    /// The bias stands outside.
    func output(_ y: consuming Variable, _ site: HookSite) throws(PEFTError) -> Variable {
        let (tape, b) = (site.tape, blocks.value.columns)
        var y = y
        let bias = site.bias
        if let bias { y = try tape.scaleColumns(y, scale: nil, shift: try tape.scaled(bias, by: -1)) }
        let free = try tape.reshaped(tape.variable(blocks), [blocks.value.count / (b * b), b * b])
        y = try butterfly(y, free, tape, bound: constraint * Float(target.outputSize))
        guard bias != nil || rescale != nil else { return y }
        return try tape.scaleColumns(y, scale: try rescale.map { (scale) throws(PEFTError) in try tape.vector(scale) }, shift: bias)
    }
}
