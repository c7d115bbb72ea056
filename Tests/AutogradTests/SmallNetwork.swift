import Autograd
import Platform
import Tensors

/// Two transformer blocks with low-rank adapters on all their linears: what one training step of a language model runs.
final class SmallNetwork {
    static let hidden = 64, intermediate = 160, heads = 4, keyValueHeads = 2, headDim = 16, vocabulary = 96, rank = 4, layers = 2

    private struct Linear {
        let weight: Tensor
        let a: Parameter
        let b: Parameter
    }

    private struct Block {
        let norms: [Tensor]
        let linears: [String: Linear]
    }

    private let engine: Engine
    private let table: Tensor
    private let finalNorm: Parameter
    private var blocks: [Block] = []
    private let cos: Tensor
    private let sin: Tensor
    private(set) var parameters: [Parameter] = []
    var dropout: Float = 0.1

    init(_ engine: Engine, length: Int) throws {
        typealias Size = SmallNetwork
        self.engine = engine
        table = try tensor(engine, [Size.vocabulary, Size.hidden], seed: 1, scale: 0.5)
        finalNorm = Parameter(name: "norm", value: try tensor(engine, [Size.hidden], seed: 2))
        let angles = samples(length * Size.headDim / 2, seed: 3)
        cos = try Tensor(engine, angles.map { cosine($0) }, shape: [length, Size.headDim / 2])
        sin = try Tensor(engine, angles.map { sine($0) }, shape: [length, Size.headDim / 2])
        let keyWidth = Size.keyValueHeads * Size.headDim
        for layer in 0..<Size.layers {
            var linears: [String: Linear] = [:]
            for (index, (name, out, input)) in [
                ("q", Size.hidden, Size.hidden), ("k", keyWidth, Size.hidden), ("v", keyWidth, Size.hidden), ("o", Size.hidden, Size.hidden),
                ("gate", Size.intermediate, Size.hidden), ("up", Size.intermediate, Size.hidden), ("down", Size.hidden, Size.intermediate),
            ].enumerated() {
                let seed = UInt64(100 * layer + 10 * index)
                let a = Parameter(name: "\(layer).\(name).a", value: try tensor(engine, [Size.rank, input], seed: seed + 1, scale: 0.2))
                let b = Parameter(name: "\(layer).\(name).b", value: try tensor(engine, [out, Size.rank], seed: seed + 2, scale: 0.2))
                parameters += [a, b]
                linears[name] = Linear(weight: try quantized(engine, [out, input], .q8_0, seed: seed, scale: 1 / Float(input).squareRoot()), a: a, b: b)
            }
            let norms = try (0..<2).map { try tensor(engine, [Size.hidden], seed: UInt64($0 + 7)) }
            blocks.append(Block(norms: norms, linears: linears))
        }
        parameters.append(finalNorm)
    }

    private func apply(_ linear: Linear?, _ x: Variable, _ tape: Tape) throws(PEFTError) -> Variable {
        guard let linear else { throw PEFTError(.internal, "no such linear") }
        let y = try tape.linear(x, frozen: linear.weight)
        return try tape.addLowRank(to: y, input: x, a: tape.variable(linear.a), b: tape.variable(linear.b), scale: 2, dropout: dropout)
    }

    private func run(_ block: Block, _ x: Variable, _ positions: Tensor, batch: Int, _ tape: Tape) throws(PEFTError) -> Variable {
        typealias Size = SmallNetwork
        let normed = try tape.rmsNorm(x, weight: Variable(block.norms[0]), eps: 1e-5)
        let q = try tape.rope(
            apply(block.linears["q"], normed, tape), heads: Size.heads, headDim: Size.headDim, rotary: Size.headDim, cos: cos, sin: sin, positions: positions)
        let k = try tape.rope(
            apply(block.linears["k"], normed, tape), heads: Size.keyValueHeads, headDim: Size.headDim, rotary: Size.headDim, cos: cos, sin: sin,
            positions: positions)
        let v = try apply(block.linears["v"], normed, tape)
        let shape = AttentionShape(
            batch: batch, queryLength: x.value.rows / batch, heads: Size.heads, keyValueHeads: Size.keyValueHeads, headDim: Size.headDim, isCausal: true)
        let attended = try apply(block.linears["o"], tape.attention(q: q, k: k, v: v, shape: shape), tape)
        let middle = try tape.add(x, attended)
        let second = try tape.rmsNorm(middle, weight: Variable(block.norms[1]), eps: 1e-5)
        let gated = try tape.glu(apply(block.linears["gate"], second, tape), apply(block.linears["up"], second, tape), .silu)
        return try tape.add(middle, apply(block.linears["down"], gated, tape))
    }

    /// One forward and backward pass on `engine` (the network's own, or a planner).
    func step(
        on engine: Engine, _ precision: Precision, store: GradientStore, batch: Int, length: Int, recompute: Bool = false, rowsPerChunk: Int = 16
    ) throws(PEFTError) -> Double {
        let tape = Tape(engine, precision, gradients: store, isTraining: true, random: RandomStream(seed: 77))
        let rows = batch * length
        let positions = try Tensor(engine, (0..<rows).map { Int32($0 % length) }, shape: [rows])
        let ids = try Tensor(engine, (0..<rows).map { Int32($0 * 31 % SmallNetwork.vocabulary) }, shape: [rows])
        var x = try tape.embedding(ids, frozen: table)
        for block in blocks {
            if recompute {
                x = try tape.recomputed([x]) { [self] (tape, inputs) throws(PEFTError) in try run(block, inputs[0], positions, batch: batch, tape) }
            } else {
                x = try run(block, x, positions, batch: batch, tape)
            }
        }
        let labels = (0..<rows).map { $0 % 5 == 0 ? -100 : Int32(($0 + 1) * 31 % SmallNetwork.vocabulary) }
        let loss = try tape.chunkedCrossEntropy(x, labels: labels, divisor: Float(rows), rowsPerChunk: rowsPerChunk) { [self] (tape, rows) throws(PEFTError) in
            try tape.linear(tape.rmsNorm(rows, weight: tape.variable(finalNorm), eps: 1e-5), frozen: table, as: .f32)
        }
        try tape.backward(from: loss.variable, gradient: Tensor(engine, [1] as [Float], shape: [1]))
        return loss.sum
    }

    func gradients(_ store: GradientStore) throws -> [[Float]] {
        try parameters.map { try store.gradient(of: $0)?.floats(engine) ?? [] }
    }
}
