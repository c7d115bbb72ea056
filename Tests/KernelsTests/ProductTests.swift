import Kernels
import Testing

/// The three products of a linear layer, for every weight format, at every level.
@Suite struct ProductTests {
    static let computes = [PK_COMPUTE_F32, PK_COMPUTE_BF16]

    /// Takes turns through types and options, so that all meet without a run for each combination.
    private func vary(_ product: Product, _ turn: Int) -> Product {
        var p = product
        p.types.x = turn % 2 == 0 ? PK_F32 : PK_BF16
        p.types.y = turn / 2 % 2 == 0 ? PK_F32 : PK_BF16
        p.alpha = turn % 3 == 0 ? 1 : -0.7
        p.hasBias = turn % 3 == 1
        p.accumulates = turn / 3 % 2 == 1
        p.gap = turn % 5 == 2 ? 3 : 0
        return p
    }

    @Test("sizes of all sorts with plain weights", arguments: [PK_NT, PK_NN, PK_TN], computes)
    func oddSizes(_ mode: Int32, _ compute: Int32) {
        let sizes = [
            (1, 1, 1), (1, 17, 5), (3, 1, 40), (2, 49, 33), (5, 47, 64), (6, 16, 7), (8, 48, 2), (9, 97, 31), (16, 96, 128), (13, 5, 300), (50, 50, 50), (70, 8, 129),
            (8, 70, 65), (65, 64, 8), (33, 100, 1), (300, 3, 17),
        ]
        for (turn, (m, n, k)) in sizes.enumerated() {
            for (index, type) in (mode == PK_TN ? [PK_F32, PK_BF16] : plainFormats).enumerated() {
                var p = vary(Product(m, n, k, seed: UInt64(turn + 1)), turn + index)
                (p.mode, p.compute, p.types.w) = (mode, compute, type)
                p.check()
            }
        }
    }

    @Test("more rows than stay in L2", arguments: [PK_NT, PK_NN, PK_TN], computes)
    func manyRows(_ mode: Int32, _ compute: Int32) {
        for (type, n) in [(PK_BF16, 250), (mode == PK_TN ? PK_F32 : PK_Q4_1, 224)] {
            var p = Product(1301, n, 416, seed: 3)
            (p.mode, p.compute, p.types) = (mode, compute, (PK_BF16, type, PK_F32))
            p.check(levels: levels.filter { $0 >= PK_LEVEL_AVX512 })
        }
    }

    @Test("every format forwards", arguments: weightFormats, computes)
    func forward(_ type: Int32, _ compute: Int32) {
        let block = Int(format(type).block_values)
        for (turn, (m, n, blocks)) in [(9, 3, 1), (11, 50, 3), (20, 16, 2), (37, 97, 1), (130, 20, 2)].enumerated() {
            var p = vary(Product(m, n, block == 1 ? 30 * blocks + turn : block * blocks, seed: UInt64(turn + 40)), turn)
            (p.compute, p.types.w) = (compute, type)
            p.check()
        }
    }

    @Test("every format backwards", arguments: weightFormats, computes)
    func inputGradient(_ type: Int32, _ compute: Int32) {
        let block = Int(format(type).block_values)
        for (turn, (m, blocks, k)) in [(1, 1, 7), (3, 3, 33), (9, 1, 64), (20, 2, 19), (70, 5, 4), (130, 1, 48)].enumerated() {
            var p = vary(Product(m, block == 1 ? 30 * blocks + turn : block * blocks, k, seed: UInt64(turn + 80)), turn)
            (p.mode, p.compute, p.types.w) = (PK_NN, compute, type)
            p.check()
        }
    }

    @Test("narrow sides, as adapters of low rank have them", arguments: [PK_NT, PK_NN, PK_TN], computes)
    func narrow(_ mode: Int32, _ compute: Int32) {
        let sizes = [(9, 1, 64), (20, 4, 65), (50, 8, 97), (49, 8, 160), (33, 13, 100), (100, 16, 128), (7, 17, 70)]
        for (turn, (rows, rank, long)) in sizes.enumerated() {
            for (index, type) in (mode == PK_TN ? [PK_F32, PK_BF16] : plainFormats + [PK_Q8_0]).enumerated() {
                // NT, NN: rank columns of sums over `long`; TN: a side of `rank`, on the left or on the right, summed over `rows`.
                let block = Int(format(type).block_values)
                guard mode == PK_NT || block == 1 else { continue }
                let k = mode == PK_TN ? rows : (long + block - 1) / block * block
                let (m, n) = mode != PK_TN ? (rows, rank) : turn % 2 == 0 ? (rank, long) : (long, rank)
                var p = vary(Product(m, n, k, seed: UInt64(turn + 200)), turn + index)
                (p.mode, p.compute, p.types.w) = (mode, compute, type)
                p.check()
            }
        }
    }

    /// Beside the bound of rounding: the levels have the same codes, so they differ by roundings of f32 only, and NaN does not hide.
    @Test("both sides in eight bits", arguments: weightFormats)
    func rounded(_ type: Int32) {
        let block = Int(format(type).block_values)
        for (turn, (m, n, k)) in [(1, 1, 1), (3, 49, 33), (9, 47, 64), (8, 48, 192), (33, 100, 200), (17, 97, 576), (40, 20, 1000)].enumerated() {
            var p = vary(Product(m, n, (k + block - 1) / block * block, seed: UInt64(turn + 300)), turn)
            (p.compute, p.types.w) = (PK_COMPUTE_ROUNDED, type)
            p.check(levels: [PK_LEVEL_PORTABLE, levels.last ?? 0])
            p.types.y = PK_F32
            let reference = p.run(level: PK_LEVEL_PORTABLE, parts: 1).values
            let largest = reference.reduce(0) { max($0, abs($1)) }
            for (a, b) in zip(p.run(level: levels.last ?? 0, parts: 2).values, reference) { #expect(abs(a - b) <= 1e-5 * largest) }
        }
    }

    @Test("what is not finite does not become a number in eight bits", arguments: [Float.nan, .infinity])
    func roundedNotFinite(_ wrong: Float) {
        var p = Product(3, 50, 400, seed: 7)
        p.compute = PK_COMPUTE_ROUNDED
        p.xValues[400 + 250] = wrong
        for level in [PK_LEVEL_PORTABLE, levels.last ?? 0] {
            let y = p.run(level: level, parts: 1).values
            for (index, value) in y.enumerated() { #expect(value.isNaN == (index / 50 == 1)) }
        }
        p.xValues[400 + 250] = 1
        p.wValues[20 * 400 + 399] = wrong
        for level in [PK_LEVEL_PORTABLE, levels.last ?? 0] {
            let y = p.run(level: level, parts: 1).values
            for (index, value) in y.enumerated() { #expect(value.isNaN == (index % 50 == 20)) }
        }
    }

    @Test("every code of f8 in products of bf16: the largest, the smallest, what is no number", arguments: [PK_F8_E4M3, PK_F8_E5M2])
    func codes(_ type: Int32) throws {
        let decode = try #require(format(type).decode)
        var all = [Float](repeating: 0, count: 256)
        (0..<256).map { UInt8($0) }.withUnsafeBytes { decode($0.baseAddress, &all, 256) }
        let finite = all.map { $0.isFinite ? $0 : 0 }
        #expect(finite.contains(type == PK_F8_E4M3 ? 448 : 57344) && all.contains { $0.isNaN })
        var p = Product(256, 2, 256)
        (p.compute, p.types) = (PK_COMPUTE_BF16, (PK_BF16, type, PK_F32))
        p.xValues = (0..<256 * 256).map { $0 % 257 == 0 ? 1 : 0 }
        p.wValues = finite + all
        for level in levels {
            let y = p.run(level: level, parts: 1).values
            for code in 0..<256 { #expect(y[2 * code] == finite[code] && y[2 * code + 1].isNaN) }
        }
    }

    @Test("a layer's own sizes", arguments: computes)
    func layers(_ compute: Int32) {
        for (turn, (mode, type, m, n, k)) in [
            (PK_NT, PK_Q4_1, 64, 192, 576), (PK_NN, PK_Q4_1, 64, 576, 192), (PK_NT, PK_F32, 120, 8, 576), (PK_NT, PK_F32, 120, 576, 8), (PK_TN, PK_F32, 576, 8, 120),
            (PK_TN, PK_BF16, 8, 576, 120), (PK_NN, PK_F32, 120, 8, 576), (PK_NN, PK_F32, 120, 576, 8), (PK_NT, PK_Q8_0, 40, 96, 2048), (PK_NN, PK_Q8_0, 40, 96, 5000),
            (PK_NN, PK_BF16, 30, 100, 9001), (PK_NT, PK_F16, 30, 100, 9001), (PK_TN, PK_F32, 30, 100, 9001),
        ].enumerated() {
            var p = vary(Product(m, n, k, seed: UInt64(turn + 120)), turn + 1)
            (p.mode, p.compute, p.types.w) = (mode, compute, type)
            p.check(levels: k > 2048 || m * n * k > 4_000_000 ? levels.filter { $0 > PK_LEVEL_PORTABLE } : levels)
        }
    }

    @Test("a product of nothing is zero plus what is added", arguments: [PK_NT, PK_NN, PK_TN], computes)
    func empty(_ mode: Int32, _ compute: Int32) {
        for (m, n) in [(3, 5), (9, 50)] {
            var p = Product(m, n, 0)
            (p.mode, p.compute, p.hasBias, p.accumulates) = (mode, compute, true, true)
            p.check()
        }
        for level in levels {
            #expect(Product(0, 5, 7).run(level: level, parts: 2).bytes.isEmpty)
            #expect(Product(5, 0, 7).run(level: level, parts: 2).bytes.isEmpty)
        }
    }

    @Test("a row's result does not depend on the rows beside it", arguments: [PK_NT, PK_NN], computes)
    func rowsAreIndependent(_ mode: Int32, _ compute: Int32) {
        for level in levels {
            let (n, k) = (50, 64)
            var many = Product(40, n, k, seed: 9)
            (many.mode, many.compute) = (mode, compute)
            let all = many.run(level: level, parts: 1).values
            var fewer = Product(rowsOf: many, count: 13)
            (fewer.mode, fewer.compute) = (mode, compute)
            #expect(fewer.run(level: level, parts: 1).values == Array(all[0..<13 * n]))
        }
    }

    @Test("the number of parts stays between one and the threads")
    func usefulParts() {
        var op = pk_matmul()
        (op.m, op.n, op.k) = (1, 10, 10)
        #expect(pk_matmul_parts(&op, 8) == 1)
        (op.m, op.n, op.k) = (512, 576, 576)
        #expect(pk_matmul_parts(&op, 8) == 8)
        (op.m, op.n, op.k) = (1, 576, 576)
        #expect((1...8).contains(pk_matmul_parts(&op, 8)))
    }
}

extension Product {
    /// The first rows of another product's X.
    init(rowsOf other: Product, count: Int) {
        (m, n, k) = (count, other.n, other.k)
        xValues = Array(other.xValues[0..<count * other.k])
        wValues = other.wValues
        yValues = Array(other.yValues[0..<count * other.n])
        bias = other.bias
    }
}
