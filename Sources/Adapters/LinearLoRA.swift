internal import Autograd
internal import Models
internal import Platform
internal import Tensors

/// LoRA of a linear layer.
final class LinearLoRA: AdapterModule {
    let linear: Linear
    /// f32 `[r, in]`
    let a: Parameter
    /// f32 `[out, r]`
    let b: Parameter
    /// f32 `[out]`: `lora_bias`.
    let bias: Parameter?
    private let factor: Double
    private let dropout: Float
    private let start: LoRAStart
    private let engine: Engine

    init(_ linear: Linear, key: String, rank: Int, scaling: Double, dropout: Float, hasBias: Bool, _ start: LoRAStart, _ model: Model) throws(PEFTError) {
        self.linear = linear
        engine = model.engine
        a = Parameter(name: key + ".lora_A.weight", value: try .zeros(engine, [rank, linear.inputSize], .f32, .adapters))
        b = Parameter(name: key + ".lora_B.weight", value: try .zeros(engine, [linear.outputSize, rank], .f32, .adapters))
        bias = hasBias ? Parameter(name: key + ".lora_B.bias", value: try .zeros(engine, [linear.outputSize], .f32, .adapters)) : nil
        factor = scaling
        self.dropout = dropout
        self.start = start
    }

    var layer: any Layer { linear }
    var parameters: [Parameter] { [a, b] + (bias.map { [$0] } ?? []) }
    var scaling: Double? { factor }

    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        var random = random
        let rank = a.value.rows
        func uniform(_ tensor: Tensor, _ fanIn: Int) {
            let bound = 1 / Float(max(fanIn, 1)).squareRoot()
            tensor.fill { (2 * random.uniform() - 1) * bound }
        }
        switch start {
        case .standard: uniform(a.value, linear.inputSize)
        case .gaussian: a.value.fill { random.normal() / Float(rank) }
        case .random:
            uniform(a.value, linear.inputSize)
            uniform(b.value, rank)
            if let bias { uniform(bias.value, rank) }
        }
        return [:]
    }

    func hook(scale: Float) -> any LayerHook {
        LinearLoRAHook(a: a, b: b, bias: bias, scale: Float(factor) * scale, dropout: dropout)
    }

    func fold(into weights: inout FoldedWeights, scale: Float) throws(PEFTError) {
        let scale = Float(factor) * scale
        guard let w = try weights.tensor("weight") else { return }
        if linear.isTransposed {  // W [in, out] += s·Aᵀ·Bᵀ
            try engine.multiply(.forward, try a.value.transposed(engine), b.value, into: w, compute: .f32, alpha: scale, accumulate: true)
        } else {  // W [out, in] += s·B·A
            try engine.multiply(.inputGradient, b.value, a.value, into: w, compute: .f32, alpha: scale, accumulate: true)
        }
        guard let bias else { return }
        guard let layerBias = try weights.tensor("bias") else {
            throw PEFTError(.unsupported, "'\(linear.name)' has no bias that lora_bias could be merged into")
        }
        engine.axpby(scale, bias.value, 1, into: layerBias)
    }
}

private final class LinearLoRAHook: LayerHook {
    private let a: Parameter
    private let b: Parameter
    private let bias: Parameter?
    private let scale: Float
    private let dropout: Float

    init(a: Parameter, b: Parameter, bias: Parameter?, scale: Float, dropout: Float) {
        self.a = a
        self.b = b
        self.bias = bias
        self.scale = scale
        self.dropout = dropout
    }

    func add(to y: consuming Variable, input x: Variable, of layer: Linear, _ tape: Tape) throws(PEFTError) -> Variable {
        let sum = try tape.addLowRank(to: y, input: x, a: tape.variable(a), b: tape.variable(b), scale: scale, dropout: dropout)
        guard let bias else { return sum }
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
