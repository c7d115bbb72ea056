import Kernels
import Platform
import Tensors
import Testing

@Suite struct TensorTests {
    private let engine = Engine(threads: 2)

    @Test("being alone is known")
    func alone() throws {
        func isAlone(_ tensor: inout Tensor) -> Bool { tensor.hasStorageAlone() }
        var whole = try Tensor(engine, [4, 3])
        let before = isAlone(&whole)
        var views = [try whole.rows(1..<3)]
        let during = isAlone(&whole)
        #expect(views.count == 1)
        views.removeAll()
        let after = isAlone(&whole)
        #expect(before && !during && after)
    }

    @Test("views share memory")
    func views() throws {
        let whole = try Tensor(engine, (0..<12).map { Float($0) }, shape: [4, 3])
        let part = try whole.rows(1..<3)
        #expect(part.shape == [2, 3] && part.storage === whole.storage)
        #expect(try part.floats(engine) == [3, 4, 5, 6, 7, 8])
        #expect(try part.reshaped([3, 2]).rows(2..<3).floats(engine) == [7, 8])
        #expect(throws: PEFTError.self) { try whole.rows(2..<5) }
        #expect(throws: PEFTError.self) { try whole.reshaped([5, 2]) }
        #expect(throws: PEFTError.self) { try whole.reshaped([-1, -12]) }
    }

    @Test("a view must lie inside its storage")
    func bounds() throws {
        let storage = try Storage(byteCount: 100, budget: engine.budget, category: .scratch)
        _ = try Tensor(storage, offset: 4, dtype: .f32, shape: [24])
        for (offset, dtype, shape) in [(8, DType.f32, [24]), (-4, .f32, [1]), (101, .f32, [0]), (0, .q8_0, [96 + 32]), (0, .f32, [Int.max, 2])] {
            #expect(throws: PEFTError.self) { try Tensor(storage, offset: offset, dtype: dtype, shape: shape) }
        }
        #expect(throws: PEFTError.self) { try DType.q4_1.byteCount(of: 33) }
        #expect(try DType.q4_1.byteCount(shape: [3, 64]) == 3 * 2 * 20)
    }

    @Test("every format of the kernels' table is a data type of the same block size")
    func formats() {
        var count: Int32 = 0
        let table = pk_formats(&count)
        for index in 0..<Int(count) {
            guard let format = table?[index]?.pointee else { continue }
            let dtype = DType(rawValue: format.type)
            #expect(dtype?.blockValues == Int(format.block_values) && dtype?.blockBytes == Int(format.block_bytes) && dtype?.isWeightFormat == true)
        }
        #expect(Int(count) == DType.allCases.filter { $0.isWeightFormat && !$0.isWholeRow }.count)
        for dtype in DType.allCases where dtype.isWholeRow { #expect(pk_format_of(dtype.rawValue) != nil && dtype.isQuantized) }
    }

    @Test("conversions round to the nearest and come back", arguments: [DType.bf16, .f16])
    func conversions(_ dtype: DType) throws {
        let values: [Float] = [0, 1, -2.5, 0.333333, 1e-3, 100.7, -65000]
        let narrow = try Tensor(engine, values, shape: [7]).converted(to: dtype, engine)
        for (value, back) in zip(values, try narrow.floats(engine)) { #expect(abs(value - back) <= abs(value) * (dtype == .bf16 ? 0x1p-8 : 0x1p-11)) }
        #expect(throws: PEFTError.self) { try narrow.converted(to: .q8_0, engine) }
    }

    @Test("quantised weights decode, also into bf16")
    func quantised() throws {
        let values = (0..<64).map { Float($0 - 32) / 32 }
        let blocks = try Tensor(engine, [2, 32], .q8_0)
        try #require(pk_format_of(DType.q8_0.rawValue)).pointee.encode(values, blocks.pointer, 64)
        for plain in [try blocks.floats(engine), try blocks.converted(to: .bf16, engine).floats(engine)] {
            #expect(zip(values, plain).allSatisfy { abs($0 - $1) < 0.01 })
        }
    }

    @Test("products of all modes against sums in double", arguments: [DType.f32, .bf16])
    func products(_ dtype: DType) throws {
        let (m, n, k) = (5, 7, 9)
        func matrix(_ rows: Int, _ columns: Int, _ seed: UInt64) throws -> (Tensor, [Float]) {
            var stream = RandomStream(seed: seed)
            let tensor = try Tensor(engine, (0..<rows * columns).map { _ in stream.normal() }, shape: [rows, columns]).converted(to: dtype, engine)
            return (tensor, try tensor.floats(engine))
        }
        let bias = (0..<n).map { Float($0) }
        for mode in [Engine.ProductMode.forward, .inputGradient, .weightGradient] {
            let (x, xs) = try matrix(mode == .weightGradient ? k : m, mode == .weightGradient ? m : k, 1)
            let (w, ws) = try matrix(mode == .forward ? n : k, mode == .forward ? k : n, 2)
            let y = try Tensor(engine, [Float](repeating: 2, count: m * n), shape: [m, n])
            try engine.multiply(mode, x, w, into: y, compute: .f32, alpha: 0.5, bias: Tensor(engine, bias, shape: [n]), accumulate: true)
            let result = try y.floats(engine)
            for i in 0..<m {
                for j in 0..<n {
                    var sum = 0.0
                    for l in 0..<k { sum += Double(xs[mode == .weightGradient ? l * m + i : i * k + l]) * Double(ws[mode == .forward ? j * k + l : l * n + j]) }
                    #expect(abs(Double(result[i * n + j]) - (2 + 0.5 * sum + Double(j))) < 1e-5)
                }
            }
        }
        let error = #expect(throws: PEFTError.self) {
            let (x, _) = try matrix(2, 3, 1)
            try engine.multiply(.forward, x, x, into: x, compute: .f32)
        }
        #expect(error?.kind == .internal)
    }

    @Test("norms of W + s·B·A without W being decoded", arguments: [DType.f32, .q8_0, .q4_1], [false, true])
    func rowNorms(_ dtype: DType, _ transposed: Bool) throws {
        let (out, width, rank, scale) = (32, 64, 3, Float(0.7))
        var stream = RandomStream(seed: 5)
        let shape = transposed ? [width, out] : [out, width]
        let w = try Tensor(engine, shape, dtype)
        try #require(pk_format_of(dtype.rawValue)).pointee.encode((0..<out * width).map { _ in stream.normal() }, w.pointer, out * width)
        let a = (0..<rank * width).map { _ in stream.normal() }
        let b = (0..<out * rank).map { _ in stream.normal() }
        let norms = try engine.rowNormsSquared(
            w: w, plus: Tensor(engine, b, shape: [out, rank]), a: Tensor(engine, a, shape: [rank, width]), scale: scale, transposed: transposed
        ).floats(engine)
        let ws = try w.floats(engine)
        for o in 0..<out {
            var expected = 0.0
            for i in 0..<width {
                var value = Double(transposed ? ws[i * out + o] : ws[o * width + i])
                for r in 0..<rank { value += Double(scale * b[o * rank + r] * a[r * width + i]) }
                expected += value * value
            }
            #expect(abs(Double(norms[o]) - expected) < 1e-4 * expected)
        }
    }

    @Test("attention over a cache with strides is attention over contiguous keys")
    func stridedAttention() throws {
        let (keys, heads, headDim, capacity) = (5, 2, 4, 8)
        var stream = RandomStream(seed: 9)
        func random(_ count: Int) -> [Float] { (0..<count).map { _ in stream.normal() } }
        let q = try Tensor(engine, random(heads * headDim), shape: [1, heads * headDim])
        let (k, v) = (random(keys * headDim), random(keys * headDim))
        // The cache holds [token, (key | value)] for `capacity` tokens, of which `keys` are there.
        var cache = [Float](repeating: .nan, count: capacity * 2 * headDim)
        for token in 0..<keys {
            for d in 0..<headDim { (cache[token * 2 * headDim + d], cache[token * 2 * headDim + headDim + d]) = (k[token * headDim + d], v[token * headDim + d]) }
        }
        let shape = AttentionShape(batch: 1, queryLength: 1, keyLength: keys, heads: heads, keyValueHeads: 1, headDim: headDim, isCausal: true)
        func attend(_ k: AttentionOperand, _ v: AttentionOperand) throws -> [Float] {
            let out = try Tensor(engine, [1, heads * headDim])
            try engine.attention(q: AttentionOperand(q, length: 1), k: k, v: v, out: AttentionOperand(out, length: 1), shape: shape)
            return try out.floats(engine)
        }
        let cached = try Tensor(engine, cache, shape: [capacity, 2 * headDim])
        let strided = try attend(
            AttentionOperand(cached, tokenStride: 2 * headDim, batchStride: 0), AttentionOperand(cached, tokenStride: 2 * headDim, batchStride: 0, start: headDim))
        let plain = try attend(
            AttentionOperand(Tensor(engine, k, shape: [keys, headDim]), length: keys), AttentionOperand(Tensor(engine, v, shape: [keys, headDim]), length: keys))
        #expect(strided == plain && strided.allSatisfy(\.isFinite))
        #expect(throws: PEFTError.self) { try attend(AttentionOperand(cached, tokenStride: 2 * headDim, batchStride: 0, start: 1000), AttentionOperand(cached, length: keys)) }
    }
}
