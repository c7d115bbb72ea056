import Kernels
import Testing

/// Rows times W ⊗ (A·B), and their gradients, against the formulas in doubles.
@Suite struct KroneckerTests {
    struct Sizes: Sendable, CustomTestStringConvertible {
        let (rows, l, k, m, n, r): (Int, Int, Int, Int, Int, Int)
        init(_ rows: Int, _ l: Int, _ k: Int, _ m: Int, _ n: Int, _ r: Int) { (self.rows, self.l, self.k, self.m, self.n, self.r) = (rows, l, k, m, n, r) }
        var testDescription: String { "\(rows) rows, W [\(l), \(m)], A [\(k), \(r)], B [\(r), \(n)]" }
    }

    /// One row, single columns, whole tiles and what is left of them, more rows than one chunk of sums has.
    static let sizes = [Sizes(1, 1, 1, 1, 1, 1), Sizes(3, 2, 5, 3, 7, 2), Sizes(66, 24, 24, 24, 24, 8), Sizes(130, 9, 50, 11, 17, 20), Sizes(5, 32, 48, 24, 24, 33)]

    @Test("both passes, at every level, in any number of parts", arguments: sizes, activationTypes)
    func passes(_ s: Sizes, _ type: Int32) {
        var random = Random(5)
        let (w, a, b) = (random.values(s.l * s.m), random.values(s.k * s.r), random.values(s.r * s.n))
        let x = Buffer(type, random.values(s.rows * s.m * s.n)), dY = Buffer(type, random.values(s.rows * s.l * s.k))
        let old = random.values(s.rows * s.l * s.k), oldX = random.values(s.rows * s.m * s.n), scale: Float = 0.75
        var y = Buffer(type, old).doubles, dX = Buffer(type, oldX).doubles
        var (dW, dA, dB) = ([Double](repeating: 1, count: w.count), [Double](repeating: 1, count: a.count), [Double](repeating: 1, count: b.count))
        let (xs, dys) = (x.doubles, dY.doubles.map { $0 * Double(scale) })
        for row in 0..<s.rows {
            let (from, to) = (row * s.m * s.n, row * s.l * s.k)
            func product(_ rows: Int, _ columns: Int, _ depth: Int, _ left: (Int, Int) -> Double, _ right: (Int, Int) -> Double) -> [Double] {
                (0..<rows * columns).map { place in (0..<depth).reduce(0) { $0 + left(place / columns, $1) * right($1, place % columns) } }
            }
            let u = product(s.m, s.r, s.n, { xs[from + $0 * s.n + $1] }, { Double(b[$1 * s.n + $0]) })
            let z = product(s.l, s.r, s.m, { Double(w[$0 * s.m + $1]) }, { u[$0 * s.r + $1] })
            for (i, value) in product(s.l, s.k, s.r, { z[$0 * s.r + $1] }, { Double(a[$1 * s.r + $0]) }).enumerated() { y[to + i] += Double(scale) * value }
            let dZ = product(s.l, s.r, s.k, { dys[to + $0 * s.k + $1] }, { Double(a[$0 * s.r + $1]) })
            let dU = product(s.m, s.r, s.l, { Double(w[$1 * s.m + $0]) }, { dZ[$0 * s.r + $1] })
            for (i, value) in product(s.m, s.n, s.r, { dU[$0 * s.r + $1] }, { Double(b[$0 * s.n + $1]) }).enumerated() { dX[from + i] += value }
            for (i, value) in product(s.k, s.r, s.l, { dys[to + $1 * s.k + $0] }, { z[$0 * s.r + $1] }).enumerated() { dA[i] += value }
            for (i, value) in product(s.l, s.m, s.r, { dZ[$0 * s.r + $1] }, { u[$1 * s.r + $0] }).enumerated() { dW[i] += value }
            for (i, value) in product(s.r, s.n, s.m, { dU[$1 * s.r + $0] }, { xs[from + $0 * s.n + $1] }).enumerated() { dB[i] += value }
        }
        for level in levels {
            var op = pk_kronecker()
            (op.level, op.x_type, op.y_type, op.scale, op.accumulate) = (level, type, type, scale, 1)
            (op.rows, op.l, op.k, op.m, op.n, op.r) = (Int64(s.rows), Int64(s.l), Int64(s.k), Int64(s.m), Int64(s.n), Int64(s.r))
            var results: [[Float]] = []
            for parts: Int32 in [1, 3] {
                var (foundY, foundX) = (Buffer(type, old), Buffer(type, oldX))
                var (foundW, foundA, foundB) = ([Float](repeating: 1, count: w.count), [Float](repeating: 1, count: a.count), [Float](repeating: 1, count: b.count))
                w.withUnsafeBufferPointer { w in a.withUnsafeBufferPointer { a in b.withUnsafeBufferPointer { b in
                    x.bytes.withUnsafeBytes { x in dY.bytes.withUnsafeBytes { dY in foundY.bytes.withUnsafeMutableBytes { y in foundX.bytes.withUnsafeMutableBytes { dX in
                        foundW.withUnsafeMutableBufferPointer { dW in foundA.withUnsafeMutableBufferPointer { dA in foundB.withUnsafeMutableBufferPointer { dB in
                            (op.w, op.a, op.b, op.x, op.y, op.d_y, op.d_x) = (w.baseAddress, a.baseAddress, b.baseAddress, x.baseAddress, y.baseAddress, dY.baseAddress, dX.baseAddress)
                            (op.d_w, op.d_a, op.d_b) = (dW.baseAddress, dA.baseAddress, dB.baseAddress)
                            var (each, shared) = (0, 0)
                            pk_kronecker_scratch(&op, 1, &each, &shared)
                            withScratch(shared: shared, each: each, parts: parts) { shared, own in
                                inParts(parts) { pk_kronecker_forward(&op, $0, $1, own[Int($0)]) }
                                for phase: Int32 in 0..<2 { inParts(parts) { pk_kronecker_backward(&op, phase, $0, $1, shared, own[Int($0)]) } }
                            }
                        } } }
                    } } } }
                } } }
                let found = [foundY.values, foundX.values, foundW, foundA, foundB]
                if results.isEmpty { results = found } else { #expect(found == results, "level \(level): \(parts) parts") }
            }
            let deepest = Double(max(s.m, s.n, s.l, s.k, s.r) * s.rows)
            for (what, (found, expected)) in zip(["y", "dX", "dW", "dA", "dB"], zip(results, [y, dX, dW, dA, dB])) {
                let largest = expected.map(abs).max() ?? 0
                expectClose(found, expected, what == "y" || what == "dX" ? type : PK_F32, absolute: 1e-6 * largest + 1e-7 * deepest, "level \(level), \(what)")
            }
        }
    }
}
