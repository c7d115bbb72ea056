internal import Autograd
package import Models
package import Platform
internal import Tensors

/// OFT (Qiu et al., arXiv:2306.07280; its second version, arXiv:2506.19847): the input is rotated, block by block,
///
///     y = W·Rᵀx + b        R = blockdiag(R₁ … Rₙ)   R_i [b, b] orthogonal, from a skew-symmetric Q_i
///
/// for linear layers, convolutions (their patches), and embeddings (their rows).
package struct OFT: AdapterMethod {
    package static let peftType = "OFT"
    package static let layerKinds = ["Linear", "Conv2d", "Embedding"]

    package static let defaults: JSONObject = [
        "bias": .string("none"), "block_share": .bool(false), "coft": .bool(false), "eps": .number(6e-05), "exclude_modules": .null,
        "fan_in_fan_out": .bool(false), "init_weights": .bool(true), "layers_pattern": .null, "layers_to_transform": .null, "module_dropout": .number(0),
        "modules_to_save": .null, "num_cayley_neumann_terms": .integer(5), "oft_block_size": .integer(32), "r": .integer(0), "target_modules": .null,
        "use_cayley_neumann": .bool(true),
    ]

    private let blocks: Int
    private let blockSize: Int
    private let settings: OFTSettings

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        try configuration.checkBias()
        blocks = try configuration.integer("r")
        blockSize = try configuration.integer("oft_block_size")
        guard blocks >= 0, blockSize >= 0, (blocks == 0) != (blockSize == 0) else {
            throw PEFTError(.argument, "r is \(blocks) and oft_block_size \(blockSize); one of them must be positive and the other 0 (r · oft_block_size is the width of the layer)")
        }
        settings = try OFTSettings(configuration)
        if try configuration.probability("module_dropout") > 0 { model.engine.warn("module_dropout has no effect on OFT, as in PEFT") }
    }

    package func module(for layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule {
        if let embedding = layer as? Embedding {
            let rotation = try rotation(of: embedding.dimension, embedding, key: key + ".oft_embedding_R.weight", model)
            return EmbeddingOFT(embedding, rotation)
        }
        let target = try MatrixTarget(layer, of: OFT.self)
        if let convolution = layer as? Convolution, convolution.geometry.dilation.contains(where: { $0 > 1 }) || convolution.groups > 1 {
            throw PEFTError(.unsupported, "'\(layer.name)': OFT adapts convolutions without groups and dilation")
        }
        return MatrixOFT(target, try rotation(of: target.inputSize, layer, key: key + ".oft_R.weight", model))
    }

    private func rotation(of width: Int, _ layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> OFTRotation {
        let wanted = blocks > 0 ? blocks : blockSize
        let found = OFT.divisor(of: width, near: wanted)
        if found != wanted {
            let name = blocks > 0 ? "r" : "oft_block_size"
            model.engine.warn("\(name) \(wanted) does not divide the \(width) inputs of '\(layer.name)'; it is \(found) there")
        }
        return try OFTRotation(key: key, blocks: width / (blocks > 0 ? width / found : found), blockSize: blocks > 0 ? width / found : found, settings, model)
    }

    /// The nearest divisor, the smaller of two.
    static func divisor(of width: Int, near wanted: Int) -> Int {
        guard wanted < width else { return width }
        var (lower, higher) = (wanted, wanted)
        while lower > 1, width % lower != 0 { lower -= 1 }
        while higher < width, width % higher != 0 { higher += 1 }
        return wanted - lower <= higher - wanted ? lower : higher
    }

    package func companion(of modules: [any AdapterModule], _ model: Model) throws(PEFTError) -> (any AdapterCompanion)? {
        guard settings.radius != nil else { return nil }
        return Projection(modules.compactMap { ($0 as? MatrixOFT)?.rotation ?? ($0 as? EmbeddingOFT)?.rotation })
    }

    /// COFT's parameters are moved into their ball, as PEFT does in each forward pass, before they take a step.
    private final class Projection: AdapterCompanion {
        private let rotations: [OFTRotation]
        init(_ rotations: [OFTRotation]) { self.rotations = rotations }
        func willStep(_ gradients: GradientStore) { for rotation in rotations { rotation.project(into: rotation.q.value) } }
    }
}

/// What is the same for all layers.
struct OFTSettings: Sendable {
    let isShared: Bool
    /// Of COFT; nil: not constrained.
    let radius: Float?
    /// nil: the exact form.
    let terms: Int?
    let isIdentity: Bool

    init(_ configuration: AdapterConfiguration) throws(PEFTError) {
        isShared = try configuration.flag("block_share")
        let (radius, terms) = (Float(try configuration.number("eps")), try configuration.positive("num_cayley_neumann_terms"))
        self.radius = try configuration.flag("coft") ? radius : nil
        self.terms = try configuration.flag("use_cayley_neumann") ? terms : nil
        isIdentity = try configuration.choice("init_weights", [], orFlag: true) == "true"
    }
}

/// R of one layer.
final class OFTRotation: Sendable {
    /// f32 `[n, b(b−1)/2]`: what is above the diagonal of Q, row by row; `[1, …]`: one block for all.
    let q: Parameter
    private let blockSize: Int
    private let settings: OFTSettings
    /// Where the values go in a flattened `[b, b]`.
    private let (upper, lower): (ColumnMap, ColumnMap)
    private let made: Kept<Always, Tensor>

    init(key: String, blocks: Int, blockSize: Int, _ settings: OFTSettings, _ model: Model) throws(PEFTError) {
        let engine = model.engine
        made = Kept(model)
        self.blockSize = blockSize
        self.settings = settings
        let b = blockSize
        q = Parameter(name: key, value: try .zeros(engine, [settings.isShared ? 1 : blocks, b * (b - 1) / 2], .f32, .adapters))
        let places = (0..<b).flatMap { row in (row + 1..<max(row + 1, b)).map { (row, $0) } }
        upper = try ColumnMap(engine, places.map { $0.0 * b + $0.1 }, of: b * b)
        lower = try ColumnMap(engine, places.map { $0.1 * b + $0.0 }, of: b * b)
    }

    func initialize(_ random: RandomStream) {
        var random = random
        if !settings.isIdentity { q.value.fillNormal(0.1, &random) }
    }

    /// `x·R`
    func callAsFunction(_ x: Variable, _ tape: Tape) throws(PEFTError) -> Variable {
        let b = blockSize
        let r = try tape.isInference ? Variable(made(tape.engine) { () throws(PEFTError) in try matrices(tape).value.converted(to: .f32, tape.engine, .adapters) }) : matrices(tape)
        guard settings.isShared else { return try tape.blockLinear(x, r) }
        return try tape.reshaped(try tape.blockLinear(try tape.reshaped(x, [x.value.count / b, b]), r), x.shape)
    }

    /// `[n, b, b]`
    private func matrices(_ tape: Tape) throws(PEFTError) -> Variable {
        let b = blockSize
        return try tape.remade([try projected(tape)]) { [upper, lower, settings] (tape, inputs) throws(PEFTError) in
            let values = inputs[0]
            let skew = try tape.add(try tape.scatterColumns(values, upper), try tape.scaled(try tape.scatterColumns(values, lower), by: -1))
            let blocks = try tape.reshaped(skew, [values.value.rows, b, b])
            return if let terms = settings.terms { try Rotation.series(blocks, terms: terms, tape) } else { try Rotation.cayley(blocks, tape) }
        }
    }

    /// COFT sees its parameters in their ball; their gradients are those of the values there.
    private func projected(_ tape: Tape) throws(PEFTError) -> Variable {
        let values = tape.variable(q)
        guard settings.radius != nil else { return values }
        let inside = try values.value.converted(to: .f32, tape.engine)
        project(into: inside)
        let output = tape.result(inside, of: values)
        tape.record(output) { [engine = tape.engine, slot = values.slot] dY throws(PEFTError) in try slot?.add(dY, engine) }
        return output
    }

    /// Shortens blocks with ‖Q‖ > ε/√n to that.
    func project(into values: Tensor) {
        guard let radius = settings.radius else { return }
        let (rows, width) = (values.rows, values.columns)
        let most = radius / Float(max(rows, 1)).squareRoot()
        unsafe values.withMutableFloats { values in
            guard values.count == rows * width else { return }
            for row in 0..<rows {
                var square = 0.0
                for place in row * width..<(row + 1) * width { unsafe square += 2 * Double(values[place]) * Double(values[place]) }
                let norm = Float(square.squareRoot())
                guard norm > most else { continue }
                for place in row * width..<(row + 1) * width { unsafe values[place] *= most / norm }
            }
        }
    }
}

private final class MatrixOFT: MatrixModule {
    let target: MatrixTarget
    let rotation: OFTRotation

    init(_ target: MatrixTarget, _ rotation: OFTRotation) { (self.target, self.rotation) = (target, rotation) }

    var parameters: [Parameter] { [rotation.q] }
    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        rotation.initialize(random)
        return [:]
    }
    func input(_ x: Variable, _ site: HookSite) throws(PEFTError) -> Variable { try rotation(x, site.tape) }
}

/// Rows of an embedding are rotated: `E′ = E·R`.
private final class EmbeddingOFT: EmbeddingModule {
    let embedding: Embedding
    let rotation: OFTRotation

    init(_ embedding: Embedding, _ rotation: OFTRotation) { (self.embedding, self.rotation) = (embedding, rotation) }

    var parameters: [Parameter] { [rotation.q] }
    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        rotation.initialize(random)
        return [:]
    }
    func output(_ y: Variable, ids: Tensor, scale: Float, _ table: Tensor, _ tape: Tape) throws(PEFTError) -> Variable {
        let changed = try rotation(y, tape)
        return scale == 1 ? changed : try tape.add(try tape.scaled(y, by: 1 - scale), try tape.scaled(changed, by: scale))
    }
}
