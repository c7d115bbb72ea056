import Autograd
import Platform
import Tensors
import Testing

/// The loss that never has the logits in f32, against the one that has.
@Suite struct HeadLossTests {
    private let rows = 70, n = 40, classes = 2500
    private let labels = (0..<70).map { $0 % 6 == 2 ? ignoredLabel : Int32($0 * 37 % 2500) }

    private func inputs(_ engine: Engine, _ dtype: DType) throws -> (hidden: Tensor, head: Tensor, bias: Tensor) {
        (
            try tensor(engine, [rows, n], seed: 1, scale: 2).converted(to: .bf16, engine), try tensor(engine, [classes, n], seed: 2, scale: 0.3).converted(to: dtype, engine),
            try tensor(engine, [classes], seed: 3)
        )
    }

    private func byBlocks(_ engine: Engine, chunkBytes: Int, isTraining: Bool = true) throws -> (sum: Double, gradient: [Float]) {
        let (hidden, head, bias) = try inputs(engine, .f32)
        let tape = Tape(engine, .bf16, gradients: isTraining ? GradientStore(engine) : nil)
        let leaf = tape.leaf(hidden)
        let loss = try tape.headCrossEntropy(leaf, head: head, bias: bias, labels: labels, divisor: 58, gradientScale: 0.5, chunkBytes: chunkBytes)
        #expect(loss.count == labels.count { $0 != ignoredLabel })
        try tape.backward(from: loss.variable, gradient: Tensor(engine, [1] as [Float], shape: [1]))
        return (loss.sum, try leaf.slot?.take()?.floats(engine) ?? [])
    }

    @Test("loss and gradient are those of logits in f32, to bf16's digits")
    func againstLogits() throws {
        let engine = Engine(threads: 2)
        let (hidden, head, bias) = try inputs(engine, .f32)
        let tape = Tape(engine, .bf16, gradients: GradientStore(engine))
        let leaf = tape.leaf(hidden)
        let loss = try tape.chunkedCrossEntropy(leaf, labels: labels, divisor: 58, gradientScale: 0.5, rowsPerChunk: 32) { (tape, rows) throws(PEFTError) in
            try tape.linear(rows, frozen: head, bias: bias, as: .f32)
        }
        try tape.backward(from: loss.variable, gradient: Tensor(engine, [1] as [Float], shape: [1]))
        let expected = try #require(leaf.slot?.take()).floats(engine)
        let found = try byBlocks(engine, chunkBytes: 1 << 20)
        #expect(abs(found.sum - loss.sum) < 1e-5 * loss.sum)
        let largest = expected.map(abs).max() ?? 0
        #expect(largest > 0 && zip(found.gradient, expected).allSatisfy { abs($0 - $1) < 0.01 * largest })
        for row in 0..<rows where labels[row] == ignoredLabel { #expect(found.gradient[row * n..<(row + 1) * n].allSatisfy { $0 == 0 }) }
    }

    @Test("the same bits for any number of threads and any height of the chunks")
    func bits() throws {
        let whole = try byBlocks(Engine(threads: 1), chunkBytes: 1 << 30)
        for (threads, bytes) in [(1, 32 * 2 * 2500), (2, 1 << 30), (3, 32 * 2 * 2500)] {
            let other = try byBlocks(Engine(threads: threads), chunkBytes: bytes)
            #expect(other.sum == whole.sum && other.gradient == whole.gradient)
        }
        #expect(try byBlocks(Engine(threads: 1), chunkBytes: 1 << 30, isTraining: false).sum == whole.sum)
    }

    @Test("a planned loss takes the bytes of a real one")
    func plan() throws {
        let real = Engine(threads: 1)
        _ = try byBlocks(real, chunkBytes: 1 << 20)
        let planner = Engine(threads: 1).planner()
        _ = try? byBlocks(planner, chunkBytes: 1 << 20)
        #expect(planner.budget.statistics.peakLive == real.budget.statistics.peakLive)
    }

    @Test("a label that is no class is an error that names it")
    func wrongLabel() throws {
        let engine = Engine(threads: 1)
        let (hidden, head, _) = try inputs(engine, .f32)
        var wrong = labels
        wrong[5] = 2500
        let error = #expect(throws: PEFTError.self) {
            try Tape(engine, .bf16).headCrossEntropy(Variable(hidden), head: head, bias: nil, labels: wrong, divisor: 1, chunkBytes: 1 << 20)
        }
        #expect(error?.kind == .argument && error?.message.contains("2500") == true)
    }
}
