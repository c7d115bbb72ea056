import Autograd
import Kernels
import Platform
import Tensors
import Testing

@Suite struct OperationTests {
    @Test("derivatives agree with differences", arguments: OperationCase.all)
    func derivatives(_ operation: OperationCase) throws {
        try operation.checkGradients(Engine(threads: 1))
    }

    @Test("derivatives agree with differences, portable kernels", arguments: OperationCase.all)
    func portableDerivatives(_ operation: OperationCase) throws {
        try operation.checkGradients(Engine(threads: 1, level: 0))
    }

    @Test("bf16 stays near f32", arguments: OperationCase.all)
    func bf16(_ operation: OperationCase) throws {
        let engine = Engine(threads: 1)
        let (exact, rough) = (try operation.run(engine, .f32), try operation.run(engine, .bf16))
        for (a, b) in zip([exact.result] + exact.gradients, [rough.result] + rough.gradients) {
            let largest = a.map(abs).max() ?? 0
            let difference = zip(a, b).map { abs($0 - $1) }.max() ?? 0
            #expect(a.count == b.count && difference <= operation.bf16Tolerance * max(largest, 0.1), "\(operation.name): off by \(difference) of \(largest)")
        }
    }

    @Test("recomputing gives the same bits", arguments: OperationCase.all)
    func recomputed(_ operation: OperationCase) throws {
        let engine = Engine(threads: 1)
        for precision in [Precision.f32, .bf16] {
            let (kept, again) = (try operation.run(engine, precision), try operation.run(engine, precision, recompute: true))
            #expect(kept.result == again.result && kept.gradients == again.gradients, "\(operation.name)")
        }
    }

    @Test("a weight with changed entries gives what the product and a sparse branch give", arguments: [Precision.f32, .bf16])
    func sparseWeight(_ precision: Precision) throws {
        let engine = Engine(threads: 2)
        func output(_ make: (Tape, Variable, Tensor, Variable, SparsePlaces) throws -> Variable) throws -> [Float] {
            let tape = Tape(engine, precision, gradients: GradientStore(engine))
            let x = tape.leaf(try tensor(engine, [70, 48], seed: 1).converted(to: precision.activation, engine))
            let places = try SparsePlaces(engine, rows: [31, 0, 5, 5], columns: [7, 47, 0, 5], from: .none(48), to: .none(32))
            return try make(tape, x, try tensor(engine, [32, 48], seed: 2), Variable(try tensor(engine, [4], seed: 3)), places).value.floats(engine)
        }
        let one = try output { try $0.linear($1, frozen: $2, plus: $3, at: $4, scale: 2, bias: nil, transposed: false, as: nil) }
        let two = try output { try $0.addSpectral(to: try $0.linear($1, frozen: $2), input: $1, $3, at: $4, from: .none(48), to: .none(32), scale: 2) }
        let tolerance: Float = precision == .f32 ? 1e-5 : 0.03
        #expect(zip(one, two).allSatisfy { abs($0 - $1) <= tolerance * max(1, abs($1)) })
    }

    @Test("a frozen input costs no record: nothing is kept, nothing comes back")
    func constants() throws {
        let engine = Engine(threads: 1)
        let tape = Tape(engine, .f32, gradients: GradientStore(engine))
        let x = Variable(try tensor(engine, [2, 3], seed: 1))
        let y = try tape.glu(tape.linear(x, frozen: tensor(engine, [3, 3], seed: 2)), x, .silu)
        #expect(!y.needsGradient)
    }

    @Test("known values: log-softmax, mean over counted rows, ignored rows without gradient")
    func crossEntropyValues() throws {
        let engine = Engine(threads: 1)
        let tape = Tape(engine, .f32, gradients: GradientStore(engine))
        let logits = tape.leaf(try Tensor(engine, [0, 0, 1, 2] as [Float], shape: [2, 2]))
        let loss = try tape.crossEntropy(logits, labels: Tensor(engine, [1, -100] as [Int32], shape: [2]))
        #expect(loss.count == 1 && abs(loss.sum - 0.693147) < 1e-5)
        try tape.backward(from: loss.variable, gradient: Tensor(engine, [2] as [Float], shape: [1]))
        let gradient = try #require(logits.slot?.take()).floats(engine)
        #expect(gradient == [1, -1, 0, 0])
    }

    @Test("a query that sees only padding: the mean of all values, derivatives through its scores, as in transformers' eager attention")
    func blindQueries() throws {
        let engine = Engine(threads: 1)
        let tape = Tape(engine, .f32, gradients: GradientStore(engine))
        let k: [Float] = [1, 2, 3, 5, 8, 13]
        let (q, v) = (tape.leaf(try Tensor(engine, [2, 1, 0, 4, 1, 1] as [Float], shape: [3, 2])), tape.leaf(try Tensor(engine, [0, 1, 3, 1, 6, 4] as [Float], shape: [3, 2])))
        let mask = try Tensor(engine, [3], .u8)
        for (index, value) in ([0, 0, 1] as [UInt8]).enumerated() { mask.pointer.storeBytes(of: value, toByteOffset: index, as: UInt8.self) }
        let shape = AttentionShape(batch: 1, queryLength: 3, heads: 1, keyValueHeads: 1, headDim: 2, scale: 0.5, isCausal: true)
        let out = try tape.attention(q: q, k: Variable(Tensor(engine, k, shape: [3, 2])), v: v, shape: shape, keyMask: mask)
        #expect(try out.value.floats(engine) == [3, 2, 3, 2, 6, 4])
        try tape.backward(from: out, gradient: Tensor(engine, [1, 0, 0, 0, 0, 0] as [Float], shape: [3, 2]))
        // dS = P ∘ (dO·v − δ) = ⅓·(−3, 0, 3), dQ = scale · dS·K = 0.5 · (8 − 1, 13 − 2), dV = ⅓·dO.
        let (dQ, dV) = (try #require(q.slot?.take()).floats(engine), try #require(v.slot?.take()).floats(engine))
        for (value, expected) in zip(dQ + dV, [3.5, 5.5, 0, 0, 0, 0, 1.0 / 3, 0, 1.0 / 3, 0, 1.0 / 3, 0] as [Float]) { #expect(abs(value - expected) < 1e-5) }
    }

    @Test("labels, ids, rows and positions outside their range are errors that name them")
    func outOfRange() throws {
        let engine = Engine(threads: 1)
        let tape = Tape(engine, .f32, gradients: GradientStore(engine))
        let x = Variable(try tensor(engine, [2, 4], seed: 1))
        func ints(_ values: Int32...) throws -> Tensor { try Tensor(engine, values, shape: [values.count]) }
        let table = try tensor(engine, [3, 1], seed: 1)
        for (what, body) in [
            ("label 4", { _ = try tape.crossEntropy(x, labels: ints(0, 4)) }),
            ("label -1", { _ = try tape.crossEntropy(x, labels: ints(-1, 0)) }),
            ("token id 2", { _ = try tape.embedding(ints(2), frozen: x.value) }),
            ("row -1", { _ = try tape.gatherRows(x, [-1]) }),
            ("position 3", { _ = try tape.rope(x, heads: 2, headDim: 2, rotary: 2, cos: table, sin: table, positions: ints(0, 3)) }),
            ("rows", { _ = try tape.rows(x, 1..<3) }),
        ] as [(String, () throws -> Void)] {
            let error = #expect(throws: PEFTError.self) { try body() }
            #expect(error?.kind == .argument && error?.message.contains(what) == true, "\(what): \(String(describing: error))")
        }
    }
}
