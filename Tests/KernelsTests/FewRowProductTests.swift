import Kernels
import Testing

/// Products of up to eight rows, which stream the weights (decoding text).
@Suite struct FewRowProductTests {
    @Test("every format, one to eight rows, f32 and int8 activations", arguments: weightFormats, [PK_COMPUTE_F32, PK_COMPUTE_BF16, PK_COMPUTE_INT8])
    func rows(_ type: Int32, _ compute: Int32) {
        let block = Int(format(type).block_values)
        for m in 1...8 {
            for (turn, (n, blocks)) in [(1, 1), (7, 2), (30, 3), (5, 5), (12, 9)].enumerated() {
                var p = Product(m, n, block == 1 ? 37 * blocks + turn : block * blocks, seed: UInt64(m * 10 + turn))
                (p.compute, p.types.w) = (compute, type)
                p.types.x = (m + turn) % 2 == 0 ? PK_F32 : PK_BF16
                p.types.y = turn % 2 == 0 ? PK_F32 : PK_BF16
                p.hasBias = turn == 2
                p.accumulates = turn >= 3
                p.alpha = turn == 1 ? 2.5 : 1
                p.gap = turn == 4 ? 5 : 0
                p.check()
            }
        }
    }

    @Test("a row's result does not depend on how many rows go with it", arguments: [PK_COMPUTE_F32, PK_COMPUTE_INT8], [PK_F32, PK_BF16, PK_Q4_1, PK_Q8_0, PK_Q4_K, PK_Q5_K, PK_Q6_K])
    func rowsAreIndependent(_ compute: Int32, _ type: Int32) {
        for level in levels {
            var many = Product(8, 30, 512, seed: 3)
            (many.compute, many.types.w) = (compute, type)
            let all = many.run(level: level, parts: 1).values
            for count in 1...7 {
                var fewer = Product(rowsOf: many, count: count)
                (fewer.compute, fewer.types.w) = (compute, type)
                #expect(fewer.run(level: level, parts: 1).values == Array(all[0..<count * 30]), "level \(level), \(count) rows of \(name(type))")
            }
        }
    }

    @Test("more rows in int8 (prompts): sums within the bound, and where a kernel takes many, each row's bits as alone, at every level",
        arguments: [PK_Q4_0, PK_Q4_1, PK_Q5_0, PK_Q5_1, PK_Q8_0, PK_Q4_K, PK_Q5_K, PK_Q6_K, PK_Q3_K])
    func manyRows(_ type: Int32) {
        let block = Int(format(type).block_values)
        for (turn, (m, n, blocks)) in [(9, 1, 1), (20, 30, 5), (33, 17, 50), (64, 48, 97)].enumerated() where block == 32 || turn < 2 {
            var p = Product(m, n, block * blocks, seed: UInt64(turn))
            (p.compute, p.types) = (PK_COMPUTE_INT8, (turn % 2 == 0 ? PK_BF16 : PK_F32, type, turn < 2 ? PK_F32 : PK_BF16))
            (p.hasBias, p.accumulates, p.alpha, p.gap) = (turn == 1, turn == 2, turn == 3 ? -0.5 : 1, turn == 2 ? 3 : 0)
            p.check()
            guard !p.accumulates else { continue }
            let serving = levels.filter { pk_matmul_int8_serves_many($0, type) != 0 }
            for level in serving {
                let all = p.run(level: level, parts: 1).values
                #expect(all == p.run(level: serving[0], parts: 2).values, "level \(level) of \(p.description)")
                var alone = Product(rowsOf: p, count: 3)
                (alone.compute, alone.types, alone.hasBias, alone.alpha) = (p.compute, p.types, p.hasBias, p.alpha)
                if level < PK_LEVEL_AVX512_BF16, [PK_Q5_K, PK_Q6_K].contains(type) {  // few rows are rounded otherwise (matmul_gemv_k.c)
                    alone.check()
                    continue
                }
                #expect(alone.run(level: level, parts: 1).values == Array(all[0..<3 * n]), "\(p.description)")
            }
        }
    }

    @Test("branches of low rank, some for some rows, against products one after the other", arguments: [PK_F32, PK_Q4_1, PK_Q6_K], [(PK_F32, PK_F32), (PK_BF16, PK_F32), (PK_BF16, PK_BF16)])
    func branches(_ type: Int32, _ types: (activation: Int32, factors: Int32)) {
        // Kernels of int8 take 16 rows of W at a time: one whole run of them and a part.
        let (n, k) = (30, 512)
        for (turn, (m, ranks)) in [(1, [8]), (1, [1, 33]), (3, [5]), (8, [8, 4, 64]), (1, [16]), (8, [8, 24, 5])].enumerated() {
            var product = Product(m, n, k, seed: UInt64(m + ranks.count))
            (product.types.w, product.types.x, product.alpha, product.hasBias) = (type, types.activation, 1.5, true)
            product.compute = turn < 3 ? PK_COMPUTE_F32 : PK_COMPUTE_INT8
            var random = Random(7)
            let factors = ranks.enumerated().map { (index, rank) in
                (a: Buffer(types.factors, random.values(rank * k)).values, b: Buffer(types.factors, random.values(n * rank)).values, rank: rank, rows: index == 0 ? 0..<m : m / 2..<m, scale: Float(index) - 0.5)
            }
            let x = Buffer(types.activation, product.xValues).values
            for level in levels where level >= PK_LEVEL_AVX2 {
                var expected = product.run(level: level, parts: 1).values.map(Double.init)
                for branch in factors {
                    for row in branch.rows {
                        let h = (0..<branch.rank).map { r in (0..<k).reduce(0.0) { $0 + Double(x[row * k + $1]) * Double(branch.a[r * k + $1]) } }
                        for column in 0..<n {
                            expected[row * n + column] += Double(branch.scale) * (0..<branch.rank).reduce(0.0) { $0 + h[$1] * Double(branch.b[column * branch.rank + $1]) }
                        }
                    }
                }
                let found = product.run(level: level, parts: 1, branches: factors, as: types.factors).values
                #expect(zip(found, expected).allSatisfy { abs(Double($0) - $1) < 2e-4 * (1 + abs($1)) }, "level \(level), \(m) rows of \(name(type)), ranks \(ranks)")
                #expect(product.run(level: level, parts: 3, branches: factors, as: types.factors).values == found)
                // Rows of the first branch times something for each output, their bias aside.
                let outer = (0..<n).map { Float($0 % 7) - 2.5 }
                let scaled = product.run(level: level, parts: 2, branches: factors, as: types.factors, factors: outer).values
                for (index, value) in scaled.enumerated() {
                    let (row, column) = (index / n, index % n)
                    let bias = Double(product.bias[column])
                    let wanted = factors[0].rows.contains(row) ? (expected[index] - bias) * Double(outer[column]) + bias : expected[index]
                    #expect(abs(Double(value) - wanted) < 1e-3 * (1 + abs(wanted)), "level \(level), row \(row), column \(column)")
                }
            }
        }
    }

    @Test("K formats: activations of every size side by side, and the largest bytes there are", arguments: [PK_Q4_K, PK_Q5_K, PK_Q6_K])
    func extremes(_ type: Int32) {
        for m in [1, 3, 8, 9] {
            var p = Product(m, 20, 1024, seed: UInt64(m))
            (p.compute, p.types.w) = (PK_COMPUTE_INT8, type)
            p.isUneven = m <= 8 && type != PK_Q4_K
            for index in p.xValues.indices { p.xValues[index] *= [1, 0.004, 0, 30, 1e-12, 0.5, 3, 0.06, 1e-4][index / 32 % 9] }
            p.check()
            // Weights where activations are small alone, which coarser scales would lose.
            for index in p.xValues.indices { p.xValues[index] = [30, 0.5, 2, 0.5][index / 32 % 4] }
            for index in p.wValues.indices { p.wValues[index] = index / 32 % 2 == 1 ? 1 : 0 }
            p.check()
            p.isUneven = false
            for index in p.xValues.indices { p.xValues[index] = m == 3 && index % 2 == 1 ? -1 : 1 }
            let bytes = Int(format(type).block_bytes), d = type == PK_Q6_K ? 208..<210 : 0..<4
            for scale: UInt8 in [0xff, 0x80, 0x7f] {
                p.wBytes = (0..<p.n * p.k / 256 * bytes).map { place in
                    let at = place % bytes
                    if d.contains(at) { return at % 2 == 0 ? 0x00 : 0x3c }
                    return type == PK_Q6_K && at >= 192 ? scale : 0xff
                }
                p.check()
            }
        }
    }

    @Test("a NaN or an infinity among the activations is not lost in int8", arguments: [PK_Q4_0, PK_Q4_1, PK_Q5_0, PK_Q5_1, PK_Q8_0, PK_Q4_K, PK_Q5_K, PK_Q6_K])
    func badActivations(_ type: Int32) {
        for level in levels {
            for bad in [Float.nan, .infinity] {
                var p = Product(1, 4, 256, seed: 5).replacing(x: 70, by: bad)
                (p.compute, p.types.w) = (PK_COMPUTE_INT8, type)
                #expect(p.run(level: level, parts: 1).values.allSatisfy { !$0.isFinite }, "level \(level), \(name(type))")
            }
        }
    }

    @Test("activations too small for a scale do not become large ones in int8", arguments: [PK_Q4_0, PK_Q4_1, PK_Q5_1, PK_Q8_0, PK_Q5_K, PK_Q6_K])
    func tinyActivations(_ type: Int32) {
        for level in levels {
            var p = Product(1, 20, 256, seed: 6)
            for index in 0..<256 { p = p.replacing(x: index, by: index % 3 == 0 ? 0 : 1e-38) }
            (p.compute, p.types.w) = (PK_COMPUTE_INT8, type)
            let largest = Buffer(type, p.wValues).values.reduce(0) { max($0, abs($1)) }
            #expect(p.run(level: level, parts: 1).values.allSatisfy { abs($0) <= 256 * 1e-38 * largest }, "level \(level), \(name(type))")
        }
    }
}

extension Product {
    func replacing(x index: Int, by value: Float) -> Product { Product(self, x: index, value) }

    private init(_ other: Product, x index: Int, _ value: Float) {
        (m, n, k) = (other.m, other.n, other.k)
        var x = other.xValues
        x[index] = value
        (xValues, wValues, yValues, bias) = (x, other.wValues, other.yValues, other.bias)
    }
}
