internal import Autograd
package import Models
package import Platform
internal import Tensors

/// BOFT (Liu et al., arXiv:2311.06243): the input is rotated by a product of m sparse rotations, a butterfly, and outputs are scaled,
///
///     y = s ⊙ (W·Mᵀx) + b        M = M_{m−1} ⋯ M₀    M_i = P_i · blockdiag(C_i1 … C_iD) · P_iᵀ
///
/// with blocks `[b, b]` of Cayley's form, D·b the width of the layer, and P_i bringing together what lies b·2ⁱ⁻¹ apart. For
/// linear layers and convolutions (their patches). (Without its CUDA extension PEFT drops all factors but one; here they are.)
package struct BOFT: AdapterMethod {
    package static let peftType = "BOFT"
    package static let layerKinds = ["Linear", "Conv2d"]

    package static let defaults: JSONObject = [
        "bias": .string("none"), "boft_block_num": .integer(0), "boft_block_size": .integer(4), "boft_dropout": .number(0),
        "boft_n_butterfly_factor": .integer(1), "exclude_modules": .null, "fan_in_fan_out": .bool(false), "init_weights": .bool(true), "layers_pattern": .null,
        "layers_to_transform": .null, "modules_to_save": .null, "target_modules": .null,
    ]

    private let blocks: Int
    private let blockSize: Int
    private let factors: Int
    private let dropout: Float
    private let isIdentity: Bool

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        try configuration.checkBias()
        blocks = try configuration.integer("boft_block_num")
        blockSize = try configuration.integer("boft_block_size")
        guard blocks >= 0, blockSize >= 0, (blocks == 0) != (blockSize == 0) else {
            throw PEFTError(.argument, "boft_block_size is \(blockSize) and boft_block_num \(blocks); one of them must be positive and the other 0")
        }
        factors = try configuration.positive("boft_n_butterfly_factor")
        guard factors < 32 else { throw PEFTError(.argument, "boft_n_butterfly_factor is \(factors); no layer is wide enough for more than 31") }
        dropout = try configuration.probability("boft_dropout")
        isIdentity = try configuration.choice("init_weights", [], orFlag: true) == "true"
    }

    package func module(for layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule {
        let target = try MatrixTarget(layer, of: BOFT.self, inGroups: false)
        let width = target.inputSize
        let divisor = blocks > 0 ? blocks : blockSize
        guard width % divisor == 0 else {
            throw PEFTError(.argument, "\(blocks > 0 ? "boft_block_num" : "boft_block_size") is \(divisor), which does not divide the \(width) inputs of '\(layer.name)'")
        }
        let (d, b) = blocks > 0 ? (blocks, width / blocks) : (width / blockSize, blockSize)
        guard factors == 1 || d % (1 << (factors - 1)) == 0 && b % 2 == 0 else {
            throw PEFTError(
                .argument,
                "boft_n_butterfly_factor \(factors) needs blocks of even size whose number is a multiple of \(1 << (factors - 1)); '\(layer.name)' has \(d) of size \(b)")
        }
        return try BOFTModule(target, key: key, factors: factors, blocks: d, blockSize: b, dropout: dropout, isIdentity: isIdentity, model)
    }

    /// Which column comes where in factor `index`: halves of blocks, the even ones of each group first.
    static func order(factor index: Int, width: Int, blockSize: Int) -> [Int] {
        let (group, half) = (blockSize << index, blockSize / 2)
        let halves = group / max(half, 1)
        let sorted = Array(stride(from: 0, to: halves, by: 2)) + Array(stride(from: 1, to: halves, by: 2))
        return (0..<width).map { $0 / group * group + sorted[$0 % group / half] * half + $0 % half }
    }
}

private final class BOFTModule: MatrixModule {
    let target: MatrixTarget
    /// f32 `[m, D, b, b]`
    private let r: Parameter
    /// f32 `[out, 1]`, `[1, out]` of a convolution
    private let s: Parameter
    private let (factors, blocks, blockSize): (Int, Int, Int)
    private let dropout: Float
    private let isIdentity: Bool
    private let butterfly: Butterfly

    init(
        _ target: MatrixTarget, key: String, factors: Int, blocks: Int, blockSize: Int, dropout: Float, isIdentity: Bool, _ model: Model
    ) throws(PEFTError) {
        let engine = model.engine
        self.target = target
        (self.factors, self.blocks, self.blockSize) = (factors, blocks, blockSize)
        (self.dropout, self.isIdentity) = (dropout, isIdentity)
        r = Parameter(name: key + ".boft_R", value: try .zeros(engine, [factors, blocks, blockSize, blockSize], .f32, .adapters))
        s = Parameter(
            name: key + ".boft_s", value: try .zeros(engine, target.kernel.isEmpty ? [target.outputSize, 1] : [1, target.outputSize], .f32, .adapters))
        let width = target.inputSize
        butterfly = try Butterfly(
            (0..<factors).reversed().map { index in
                (index, index == 0 ? nil : Butterfly.inverse(BOFT.order(factor: index, width: width, blockSize: blockSize)))
            }, blocks: blocks, blockSize: blockSize, skew: 0.5, model)
    }

    var parameters: [Parameter] { [r, s] }

    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        var random = random
        if !isIdentity { r.value.fillNormal(0.1, &random) }
        s.value.fill { isIdentity ? 1 : 1 + 0.1 * random.normal() }
        return [:]
    }

    /// `x·M`
    func input(_ x: Variable, _ site: HookSite) throws(PEFTError) -> Variable {
        let free = try site.tape.reshaped(site.tape.variable(r), [factors * blocks, blockSize * blockSize])
        return try butterfly(x, free, site.tape) { [self] (c, tape) throws(PEFTError) in try dropped(c, tape) }
    }

    /// In training, a share of the blocks of one factor is left out: the identity stands in for them.
    private func dropped(_ c: Variable, _ tape: Tape) throws(PEFTError) -> Variable {
        guard tape.isTraining, dropout > 0 else { return c }
        let factor = Int(tape.random.below(UInt32(clamping: factors)))
        let chosen = Set(tape.random.permutation(blocks).prefix(Int(dropout * Float(blocks))).map { factor * blocks + $0 })
        var kept = [Float](repeating: 1, count: factors * blocks)
        for index in chosen { kept[index] = 0 }
        let (b, all) = (blockSize, factors * blocks)
        let mask = Variable(try Tensor(tape.engine, kept, shape: [all]))
        let rest = Variable(try Tensor(tape.engine, kept.map { 1 - $0 }, shape: [all]))
        let identity = try tape.scaleRows(try tape.reshaped(try Rotation.identity([all, b, b], tape), [all, b * b]), rest)
        let left = try tape.scaleRows(try tape.reshaped(c, [all, b * b]), mask)
        return try tape.reshaped(try tape.add(left, identity), [all, b, b])
    }

    /// The bias is not scaled: `s ⊙ y + (1 − s) ⊙ b`.
    func output(_ y: consuming Variable, _ site: HookSite) throws(PEFTError) -> Variable {
        let tape = site.tape
        let s = try tape.vector(s)
        let shift = try site.bias.map { (b) throws(PEFTError) in try tape.add(b, try tape.scaled(try tape.multiply(s, b), by: -1)) }
        return try tape.scaleColumns(y, scale: s, shift: shift)
    }
}
