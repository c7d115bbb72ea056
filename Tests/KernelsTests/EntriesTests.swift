import Kernels
import Testing

/// Weights of which some entries are changed.
@Suite struct EntriesTests {
    /// By rows; several in a row, one twice, more than one run of sums over lanes. Values stand in another order.
    private static let (rows, columns, order): ([Int32], [Int32], [Int32]) = {
        var random = Random(11)
        var places = (0..<45).map { _ in (Int32(random.below(9)), Int32(random.below(21))) }.sorted { $0.0 < $1.0 }
        places[20] = places[19]
        let count = Int32(places.count)
        return (places.map(\.0), places.map(\.1), (0..<count).map { $0 * 7 % count })
    }()

    private func withEntries(_ body: (pk_entries) -> Void) {
        EntriesTests.rows.withUnsafeBufferPointer { rows in
            EntriesTests.columns.withUnsafeBufferPointer { columns in
                EntriesTests.order.withUnsafeBufferPointer { order in
                    body(pk_entries(rows: rows.baseAddress, columns: columns.baseAddress, order: order.baseAddress, count: Int64(rows.count)))
                }
            }
        }
    }

    @Test("entries of a matrix and of one stored the other way round, in any number of parts", arguments: [false, true])
    func added(_ isTransposed: Bool) {
        var random = Random(3)
        let (w, values) = (random.values(9 * 21), random.values(45))
        var expected = w
        for p in 0..<45 {
            let (row, column) = (Int(EntriesTests.rows[p]), Int(EntriesTests.columns[p]))
            expected[isTransposed ? column * 9 + row : row * 21 + column] += 0.5 * values[Int(EntriesTests.order[p])]
        }
        for parts in [1, 2, 3, 7, 60] as [Int32] {
            for type in activationTypes {
                var y = Buffer(type, w)
                withEntries { e in
                    for part in 0..<parts { pk_add_entries(type, &y.bytes, isTransposed ? 1 : 21, isTransposed ? 9 : 1, e, values, 0.5, part, parts) }
                }
                let step: Float = type == PK_F32 ? 1e-6 : 0.02
                #expect(zip(y.values, expected).allSatisfy { abs($0 - $1) <= step }, "\(parts) parts")
            }
        }
    }

    @Test("gradients of entries against sums in doubles", arguments: [1, 63, 129, 300], activationTypes)
    func gradients(_ count: Int, _ type: Int32) {
        var random = Random(UInt64(count))
        let (x, dy) = (Buffer(type, random.values(count * 21)), Buffer(type, random.values(count * 9)))
        let (xs, dys) = (x.doubles, dy.doubles)
        let each = pk_entries_scratch(21, 9)
        for level in levels {
            var first: [Float] = []
            for parts in [1, 3] as [Int32] {
                var found = [Float](repeating: 1, count: 45)
                withScratch(shared: 0, each: each, parts: parts) { _, own in
                    withEntries { e in
                        for part in 0..<parts {
                            pk_entry_gradients(
                                level, type, x.bytes, 21, dy.bytes, 9, Int64(count), e, 0.5, &found, part, parts, own[Int(part)].assumingMemoryBound(to: Float.self))
                        }
                    }
                }
                for p in 0..<45 {
                    let (row, column) = (Int(EntriesTests.rows[p]), Int(EntriesTests.columns[p]))
                    let sum = (0..<count).reduce(0.0) { $0 + dys[$1 * 9 + row] * xs[$1 * 21 + column] }
                    #expect(abs(Double(found[Int(EntriesTests.order[p])]) - 1 - 0.5 * sum) < 1e-4, "level \(level), entry \(p)")
                }
                if first.isEmpty { first = found } else { #expect(found == first) }
            }
        }
    }
}
