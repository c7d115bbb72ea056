internal import Autograd
package import Models
package import Platform
internal import Tensors

/// MiSS (formerly Bone; Kang & Yin, arXiv:2409.15371): one small matrix added to every block of columns of the weight,
///
///     ΔW[:, j] = M[j mod r, :]        M [r, out]
///
/// that is, the input is summed over its blocks of r first. "mini" repeats M over the outputs as well; "bat" multiplies by
/// the weight: blocks `[r, r]` become `W_oi + W_oi·M_o + M_o`. For linear layers.
package struct MiSS: AdapterMethod {
    package static let peftType = "MISS"
    package static let layerKinds = ["Linear"]

    package static let defaults: JSONObject = [
        "bias": .string("none"), "exclude_modules": .null, "init_weights": .bool(true), "layers_pattern": .null, "layers_to_transform": .null,
        "mini_r": .integer(1), "miss_dropout": .number(0), "modules_to_save": .null, "r": .integer(64), "target_modules": .null,
    ]

    private let rank: Int
    private let miniature: Int
    private let dropout: Float
    /// "true", "false", "bat" or "mini"
    private let form: String

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        try configuration.checkBias()
        rank = try configuration.positive("r")
        miniature = try configuration.positive("mini_r")
        dropout = try configuration.probability("miss_dropout")
        form = try configuration.choice("init_weights", ["bat", "mini"], orFlag: true)
    }

    package func module(for layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule {
        let target = try MatrixTarget(layer, of: MiSS.self)
        let (inputs, outputs) = (target.inputSize, target.outputSize)
        guard rank <= inputs else { throw PEFTError(.argument, "r is \(rank); '\(layer.name)' has \(inputs) inputs, and r can be no more") }
        func parameter(_ shape: [Int]) throws(PEFTError) -> Parameter {
            Parameter(name: key + ".miss_block", value: try .zeros(model.engine, shape, .f32, .adapters))
        }
        if form == "bat" {
            guard inputs % rank == 0, outputs % rank == 0 else {
                throw PEFTError(.argument, "init_weights 'bat': '\(layer.name)' is \(outputs) × \(inputs), which r \(rank) does not divide")
            }
            return MiSSBat(target, try parameter([outputs / rank, rank, rank]), rank)
        }
        guard form == "mini" else {
            return try MiSSModule(target, try parameter([rank, outputs]), dropout: dropout, isZero: form == "true", model.engine)
        }
        guard outputs % miniature == 0 else {
            throw PEFTError(.argument, "mini_r is \(miniature), which does not divide the \(outputs) outputs of '\(layer.name)'")
        }
        return try MiSSModule(target, try parameter([rank, miniature]), dropout: dropout, isZero: true, model.engine)
    }
}

private final class MiSSModule: MatrixModule {
    let target: MatrixTarget
    /// f32 `[r, out]`, or fewer columns that are repeated
    private let block: Parameter
    private let dropout: Float
    private let isZero: Bool
    /// Which of r sums a column goes to.
    private let sums: ColumnMap
    private let repetition: ColumnMap?
    private let engine: Engine

    init(_ target: MatrixTarget, _ block: Parameter, dropout: Float, isZero: Bool, _ engine: Engine) throws(PEFTError) {
        (self.target, self.engine) = (target, engine)
        self.block = block
        (self.dropout, self.isZero) = (dropout, isZero)
        let (rank, width) = (block.value.rows, block.value.columns)
        sums = try ColumnMap(engine, (0..<target.inputSize).map { $0 % rank }, of: rank)
        repetition = width < target.outputSize ? try ColumnMap(engine, (0..<target.outputSize).map { $0 % width }, of: width) : nil
    }

    var parameters: [Parameter] { [block] }

    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        var random = random
        if !isZero { block.value.fillKaiming(&random) }
        return [:]
    }

    /// It is LoRA with Mᵀ for B, and for A the sums: 1 where a column goes to a row.
    func change(scale: Float) throws(PEFTError) -> WeightChange? {
        let (rank, inputs, outputs) = (block.value.rows, target.inputSize, target.outputSize)
        let a = try Tensor.zeros(engine, [rank, inputs], .f32, .scratch)
        unsafe a.withMutableFloats { a in
            for column in 0..<min(inputs, a.count / max(rank, 1)) { unsafe a[column % rank * inputs + column] = 1 }
        }
        let own = try block.value.transposed(engine)
        let b = try Tensor(engine, [outputs, rank], .f32, .scratch)
        for start in stride(from: 0, to: outputs, by: max(own.rows, 1)) { engine.axpby(1, own, 0, into: try b.rows(start..<start + own.rows)) }
        return WeightChange(.product(b: b, a: a, scale: Double(scale)))
    }

    func add(to y: consuming Variable, input x: Variable, scale: Float, _ site: HookSite) throws(PEFTError) -> Variable {
        let tape = site.tape
        let sum = try tape.scaled(try tape.scatterColumns(try tape.dropout(x, dropout), sums), by: scale)
        var matrix = tape.variable(block)
        if let repetition { matrix = try tape.gatherColumns(matrix, repetition) }
        return try tape.add(y, try tape.linear(sum, matrix, transposed: true, as: y.value.dtype))
    }
}

private final class MiSSBat: MatrixModule {
    let target: MatrixTarget
    /// f32 `[out/r, r, r]`
    private let block: Parameter
    private let rank: Int
    let readsWeight = true

    init(_ target: MatrixTarget, _ block: Parameter, _ rank: Int) { (self.target, self.block, self.rank) = (target, block, rank) }

    var parameters: [Parameter] { [block] }

    /// `ΔW_oi = (W_oi + I)·M_o`
    func add(to y: consuming Variable, input x: Variable, scale: Float, _ site: HookSite) throws(PEFTError) -> Variable {
        let (stored, layer, rank) = (site.weight, site.layer, rank)
        return try site.tape.addProduct(to: y, input: x, scale: scale, of: [site.tape.variable(block)]) { (tape, inputs) throws(PEFTError) in
            let (outputs, width) = (layer.outputSize, layer.inputSize)
            let converted = try stored.converted(to: .f32, tape.engine, .scratch)
            let w = layer.isTransposed ? try converted.transposed(tape.engine) : converted
            unsafe w.withMutableFloats { w in
                guard w.count == outputs * width else { return }
                for row in 0..<outputs {
                    for column in stride(from: row % rank, to: width, by: rank) { unsafe w[row * width + column] += 1 }
                }
            }
            let blocks = try w.reshaped([outputs / rank, width, rank])
            return try tape.reshaped(try tape.blockProducts(Variable(blocks), inputs[0]), [outputs, width])
        }
    }
}
