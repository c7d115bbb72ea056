import Kernels
import Testing

@Suite struct ElementwiseTests {
    private static let counts = [1, 15, 16, 17, 64, 200, 1000]

    @Test("sums and products of two", arguments: levels, activationTypes)
    func pairs(_ level: Int32, _ act: Int32) {
        for count in ElementwiseTests.counts {
            var random = Random(UInt64(count))
            let a = Buffer(act, random.values(count)), b = Buffer(act, random.values(count)), (xs, ys) = (a.doubles, b.doubles)
            let sum = sameBits(act, b.values) { y, part, parts in pk_add(level, act, a.bytes, b.bytes, y, count, part, parts) }
            expectClose(sum, zip(xs, ys).map { $0 + $1 }, act)
            let product = sameBits(act, b.values) { y, part, parts in pk_mul(level, act, a.bytes, b.bytes, y, count, part, parts) }
            expectClose(product, zip(xs, ys).map { $0 * $1 }, act)
            let mixed = sameBits(act, b.values) { y, part, parts in pk_axpby(level, act, 0.3, a.bytes, -1.5, y, count, part, parts) }
            expectClose(mixed, zip(xs, ys).map { Double(Float(0.3)) * $0 - 1.5 * $1 }, act)
            var inPlace = b.bytes
            inPlace.withUnsafeMutableBytes { old in inParts(2) { pk_add(level, act, a.bytes, old.baseAddress, old.baseAddress, count, $0, $1) } }
            #expect(inPlace == Buffer(act, sum).bytes)
        }
    }

    @Test("y = a·x does not read y", arguments: levels, activationTypes)
    func scaledCopy(_ level: Int32, _ act: Int32) {
        let x = Buffer(act, [Float](repeating: 2, count: 100))
        var y = Buffer(act, [Float](repeating: .nan, count: 100))
        pk_axpby(level, act, 0.5, x.bytes, 0, &y.bytes, 100, 0, 1)
        #expect(y.values.allSatisfy { $0 == 1 })
    }

    @Test("each row's matrix turned, all sizes", arguments: activationTypes)
    func turned(_ act: Int32) {
        for (n, m) in [(1, 1), (1, 9), (8, 8), (24, 24), (17, 33), (3, 40), (16, 12), (100, 7)] {
            var random = Random(UInt64(n * m))
            let x = Buffer(act, random.values(3 * n * m))
            let y = sameBits(act, x.values) { y, part, parts in pk_turn_rows(act, x.bytes, y, 3, Int64(n), Int64(m), part, parts) }
            let right = (0..<3 * n * m).map { place in x.doubles[place / (n * m) * n * m + place % n * m + place % (n * m) / n] }
            #expect(y.map { Double($0) } == right, "\(n) × \(m)")
        }
    }

    @Test("scales and sums of columns, scales of rows", arguments: levels, activationTypes)
    func rowsAndColumns(_ level: Int32, _ act: Int32) {
        for (turn, (rows, n)) in [(1, 1), (3, 17), (7, 64), (5, 200), (40, 33)].enumerated() {
            var random = Random(UInt64(turn + 9))
            let x = Buffer(act, random.values(rows * n)), other = Buffer(act, random.values(rows * n)), (xs, others) = (x.doubles, other.doubles)
            let scale: [Float]? = turn == 1 ? nil : random.values(n), shift: [Float]? = turn == 2 ? nil : random.values(n)
            for accumulate: Int32 in [0, 1] {
                let y = sameBits(act, other.values) { y, part, parts in
                    pk_scale_columns(level, act, x.bytes, scale, shift, y, accumulate, Int64(rows), Int64(n), part, parts)
                }
                expectClose(
                    y, (0..<rows * n).map { xs[$0] * Double(scale?[$0 % n] ?? 1) + Double(shift?[$0 % n] ?? 0) + (accumulate == 1 ? others[$0] : 0) }, act)
            }
            for second in [nil, other.bytes] {
                let sums = sameBits(PK_F32, [Float](repeating: 1, count: n)) { sums, part, parts in
                    pk_column_sums(level, act, x.bytes, second, sums.floats, Int64(rows), Int64(n), part, parts)
                }
                let expected = (0..<n).map { c in (0..<rows).reduce(1.0) { $0 + xs[$1 * n + c] * (second == nil ? 1 : others[$1 * n + c]) } }
                expectClose(sums, expected, relative: 1e-5, absolute: 1e-5)
            }
            let factors = random.values(rows)
            let scaled = sameBits(act, other.values) { y, part, parts in
                pk_scale_rows(level, act, x.bytes, factors, y, Int64(rows), Int64(n), part, parts)
            }
            expectClose(scaled, (0..<rows * n).map { xs[$0] * Double(factors[$0 / n]) }, act)
        }
    }

    @Test("rows added to a table, repeated ids included", arguments: levels, activationTypes)
    func scatter(_ level: Int32, _ act: Int32) {
        for n in [1, 17, 64, 200] {
            var random = Random(UInt64(n))
            let ids: [Int32] = [2, 0, 2, 3, 2], dY = Buffer(act, random.values(ids.count * n)), old = random.values(5 * n)
            let table = sameBits(PK_F32, old) { table, part, parts in
                pk_scatter_add_rows(level, act, dY.bytes, ids, Int64(ids.count), Int64(n), 0.5, table.floats, part, parts)
            }
            var expected = old.map(Double.init)
            let values = dY.doubles
            for (row, id) in ids.enumerated() { for c in 0..<n { expected[Int(id) * n + c] += values[row * n + c] / 2 } }
            expectClose(table, expected)
        }
    }
}
