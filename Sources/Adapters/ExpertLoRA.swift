internal import Autograd
internal import Models
internal import Platform
internal import Tensors

/// LoRA of a stack of matrices, one for each expert e (PEFT's ParamWrapper, `target_parameters`):
///
///     W_e ← W_e + s·B_e·A_e        A [experts·r, in], rows by expert      B [out, r·experts], columns by rank
final class ExpertLoRA: AdapterModule {
    let layer: any Layer
    private let stack: ExpertStack
    private let a: Parameter
    private let b: Parameter
    /// Of each expert, its columns of B.
    private let columns: [ColumnMap]
    private let rank: Int
    private let factor: Double
    private let start: LoRAStart
    private let engine: Engine

    init(_ experts: Experts, _ stack: ExpertStack, key: String, rank: Int, scaling: Double, _ start: LoRAStart, _ model: Model) throws(PEFTError) {
        layer = experts
        self.stack = stack
        self.rank = rank
        self.start = start
        factor = scaling
        let engine = model.engine
        self.engine = engine
        let count = stack.matrices.count
        a = Parameter(name: key + ".lora_A.weight", value: try .zeros(engine, [count * rank, stack.inputSize], .f32, .adapters))
        b = Parameter(name: key + ".lora_B.weight", value: try .zeros(engine, [stack.outputSize, rank * count], .f32, .adapters))
        columns = try (0..<count).map { (expert) throws(PEFTError) in
            try ColumnMap(engine, (0..<rank).map { $0 * count + expert }, of: rank * count)
        }
    }

    var parameters: [Parameter] { [a, b] }
    var scaling: Double? { factor }

    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        var random = random
        switch start {
        case .gaussian: a.value.fillNormal(1 / Float(rank), &random)
        case .random:
            a.value.fillUniform(fanIn: stack.inputSize, &random)
            b.value.fillUniform(fanIn: b.value.columns, &random)
        default: a.value.fillUniform(fanIn: stack.inputSize, &random)
        }
        return [:]
    }

    /// A and B of one expert.
    fileprivate func factors(_ expert: Int, _ tape: Tape) throws(PEFTError) -> (a: Variable, b: Variable) {
        let a = try tape.rows(tape.variable(a), expert * rank..<(expert + 1) * rank)
        return (a, try tape.gatherColumns(tape.variable(b), columns[expert]))
    }

    /// One of the matrices that it adapts, by identity of the stack.
    fileprivate func isOf(_ linear: Linear) -> Bool { linear.part < stack.matrices.count && stack.matrices[linear.part] === linear }

    func hook(scale: Float, beside replacements: [String: Parameter]) -> any LayerHook { ExpertLoRAHook(self, scale: Float(factor) * scale) }

    func fold(into weights: inout FoldedWeights, scale: Float) throws(PEFTError) {
        guard let w = try weights.tensor(stack.name) else { return }
        let tape = Tape(engine, .f32)
        for expert in stack.matrices.indices {
            let (a, b) = try factors(expert, tape)
            try engine.multiply(
                .inputGradient, b.value, a.value, into: try w.matrix(expert), compute: .f32, alpha: Float(factor) * scale, accumulate: true)
        }
    }
}

private final class ExpertLoRAHook: LayerHook {
    private let module: ExpertLoRA
    private let scale: Float

    init(_ module: ExpertLoRA, scale: Float) {
        self.module = module
        self.scale = scale
    }

    func add(to y: consuming Variable, input x: Variable, of layer: Linear, _ tape: Tape) throws(PEFTError) -> Variable {
        // The other stacks of the experts have hooks of their own.
        guard module.isOf(layer) else { return y }
        let (a, b) = try module.factors(layer.part, tape)
        return try tape.addLowRank(to: y, input: x, a: a, b: b, scale: scale)
    }
}
