internal import Autograd
internal import Models
internal import Platform
internal import Tensors

/// LoRA of a linear layer, with DoRA's magnitude where the configuration asks for one.
final class LinearLoRA: AdapterModule {
    let linear: Linear
    /// f32 `[r, in]`
    let a: Parameter
    /// f32 `[out, r]`
    let b: Parameter
    /// f32 `[out]`: `lora_bias`.
    let bias: Parameter?
    let magnitude: Magnitude?
    let rank: Int
    let factor: Double
    let start: LoRAStart
    let engine: Engine
    private let dropout: Float

    init(_ linear: Linear, key: String, rank: Int, scaling: Double, _ settings: LoRASettings, _ model: Model)
        throws(PEFTError)
    {
        self.linear = linear
        self.rank = rank
        factor = scaling
        start = settings.start
        dropout = settings.dropout
        engine = model.engine
        a = Parameter(
            name: key + ".lora_A.weight", value: try .zeros(engine, [rank, linear.inputSize], .f32, .adapters))
        b = Parameter(
            name: key + ".lora_B.weight", value: try .zeros(engine, [linear.outputSize, rank], .f32, .adapters),
            isTrainable: start != .mica)
        bias =
            settings.hasBias
            ? Parameter(name: key + ".lora_B.bias", value: try .zeros(engine, [linear.outputSize], .f32, .adapters))
            : nil
        magnitude = settings.hasMagnitude ? try Magnitude(key: key, size: linear.outputSize, model) : nil
    }

    var layer: any Layer { linear }
    var parameters: [Parameter] { [a, b, bias, magnitude?.parameter].compactMap { $0 } }
    var scaling: Double? { factor }
    var changesBase: Bool { start.changesBase }

    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        let residual = try start(random)
        try magnitude?.initialize(
            residual ?? linear.weight, isTransposed: linear.isTransposed, b: b, a: a, scale: Float(factor))
        return residual.map { ["weight": $0] } ?? [:]
    }

    func hook(scale: Float, beside replacements: [String: Parameter]) -> any LayerHook {
        LinearLoRAHook(self, scale: Float(factor) * scale, dropout: dropout, replacements)
    }

    func fold(into weights: inout FoldedWeights, scale: Float) throws(PEFTError) {
        let scale = Float(factor) * scale
        guard let w = try weights.tensor("weight") else { return }
        try addProduct(to: w, scale: scale)
        if let magnitude, let original = weights.original("weight") {
            weights.set(
                "weight", try magnitude.scaled(w, original, isTransposed: linear.isTransposed, b: b, a: a, scale: scale)
            )
        }
        guard let bias else { return }
        guard let layerBias = try weights.tensor("bias") else {
            throw PEFTError(.unsupported, "'\(linear.name)' has no bias that lora_bias could be merged into")
        }
        engine.axpby(scale, bias.value, 1, into: layerBias)
    }

    /// `w += scale·B·A`, as the layer stores it.
    func addProduct(to w: Tensor, scale: Float) throws(PEFTError) {
        if linear.isTransposed {  // W [in, out] += s·Aᵀ·Bᵀ
            try engine.multiply(
                .forward, try a.value.transposed(engine), b.value, into: w, compute: .f32, alpha: scale,
                accumulate: true)
        } else {  // W [out, in] += s·B·A
            try engine.multiply(
                .inputGradient, b.value, a.value, into: w, compute: .f32, alpha: scale, accumulate: true)
        }
    }
}

private final class LinearLoRAHook: LayerHook {
    private let module: LinearLoRA
    private let scale: Float
    private let dropout: Float
    private let replacements: [String: Parameter]

    init(_ module: LinearLoRA, scale: Float, dropout: Float, _ replacements: [String: Parameter]) {
        self.module = module
        self.scale = scale
        self.dropout = dropout
        self.replacements = replacements
    }

    func add(to y: consuming Variable, input x: Variable, of layer: Linear, _ tape: Tape) throws(PEFTError) -> Variable
    {
        let (a, b) = (tape.variable(module.a), tape.variable(module.b))
        if let magnitude = module.magnitude {
            let weight = replacements["weight"]?.value ?? layer.weight
            let bias = replacements["bias"].map { tape.variable($0) } ?? layer.bias.map { Variable($0) }
            return try magnitude.add(
                to: y, input: x, weight, bias: bias, isTransposed: layer.isTransposed, a: a, b: b, scale: scale,
                dropout: dropout, tape)
        }
        let sum = try tape.addLowRank(to: y, input: x, a: a, b: b, scale: scale, dropout: dropout)
        guard let bias = module.bias else { return sum }
        return try tape.scaleColumns(sum, scale: nil, shift: try tape.scaled(tape.variable(bias), by: scale))
    }
}

extension Tensor {
    /// An f32 matrix the other way round, in new memory.
    func transposed(_ engine: Engine) throws(PEFTError) -> Tensor {
        let result = try Tensor(engine, [columns, rows], .f32, .scratch)
        let (rows, columns) = (rows, columns)
        unsafe withFloats { from in
            unsafe result.withMutableFloats { to in
                guard from.count == to.count else { return }
                for row in 0..<rows {
                    for column in 0..<columns { unsafe to[column * rows + row] = from[row * columns + column] }
                }
            }
        }
        return result
    }
}
