import Glibc
import Kernels
import Testing

@Suite struct NormTests {
    static let shapes = [(1, 1), (3, 7), (2, 64), (5, 129), (4, 576)]
    private let eps: Float = 1e-5

    private func tolerance(_ n: Int) -> Double { 1e-6 * Double(n).squareRoot() + 2e-6 }

    @Test("root mean square: y, its statistics, both gradients", arguments: levels, activationTypes)
    func rms(_ level: Int32, _ act: Int32) {
        for (turn, (rows, n)) in NormTests.shapes.enumerated() {
            var random = Random(UInt64(turn))
            let offset: Float = turn % 2 == 0 ? 0 : 1
            let x = Buffer(act, random.values(rows * n, scale: 3)), dY = Buffer(act, random.values(rows * n)), weight = random.values(n)
            let old = Buffer(act, random.values(rows * n)).values
            let (xs, dYs, ws) = (x.doubles, dY.doubles, weight.map { Double($0) + Double(offset) })
            var (y, inverse, dX, dWeight) = ([Double](), [Double](), [Double](), [Double](repeating: 0, count: n))
            for r in 0..<rows {
                let row = r * n..<(r + 1) * n
                let inv = 1 / (xs[row].reduce(0) { $0 + $1 * $1 } / Double(n) + Double(eps)).squareRoot()
                inverse.append(inv)
                // dx = inv·(w·dy − x·inv²·Σ(w·dy·x)/n)
                let mixed = row.reduce(0.0) { $0 + ws[$1 - row.lowerBound] * dYs[$1] * xs[$1] } / Double(n)
                for i in row {
                    let w = ws[i - row.lowerBound]
                    y.append(xs[i] * inv * w)
                    dX.append(inv * (w * dYs[i] - xs[i] * inv * inv * mixed))
                    dWeight[i - row.lowerBound] += dYs[i] * xs[i] * inv
                }
            }
            var inv = [Float](repeating: 0, count: rows)
            let result = sameBits(act, [Float](repeating: 0, count: rows * n)) { y, part, parts in
                pk_rmsnorm_forward(level, act, x.bytes, weight, offset, eps, y, &inv, Int64(rows), Int64(n), part, parts)
            }
            expectClose(result, y, act, relative: tolerance(n))
            expectClose(inv, inverse, relative: tolerance(n))
            for accumulate: Int32 in [0, 1] {
                let result = sameBits(act, old) { dX, part, parts in
                    pk_rmsnorm_backward(
                        level, act, x.bytes, weight, offset, inv, dY.bytes, dX, accumulate, Int64(rows), Int64(n), part, parts)
                }
                expectClose(result, zip(dX, old).map { $0 + (accumulate == 1 ? Double($1) : 0) }, act, relative: tolerance(n), absolute: 1e-5)
            }
            let sums = sameBits(PK_F32, [Float](repeating: 2, count: n)) { sums, part, parts in
                pk_rmsnorm_weight_backward(level, act, x.bytes, inv, dY.bytes, sums.floats, Int64(rows), Int64(n), part, parts)
            }
            expectClose(sums, dWeight.map { $0 + 2 }, relative: 1e-5, absolute: 1e-5)
        }
    }

    @Test("layer norm: y, its statistics, all gradients", arguments: levels, activationTypes)
    func layer(_ level: Int32, _ act: Int32) {
        for (turn, (rows, n)) in NormTests.shapes.enumerated() {
            var random = Random(UInt64(turn + 50))
            let x = Buffer(act, random.values(rows * n, scale: 3).map { $0 + 1 }), dY = Buffer(act, random.values(rows * n))
            let weight: [Float]? = turn == 2 ? nil : random.values(n), bias: [Float]? = turn == 3 ? nil : random.values(n)
            let old = Buffer(act, random.values(rows * n)).values
            let (xs, dYs, ws) = (x.doubles, dY.doubles, (weight ?? [Float](repeating: 1, count: n)).map(Double.init))
            var (y, statistics, dX) = ([Double](), [Double](), [Double]())
            var (dWeight, dBias) = ([Double](repeating: 0, count: n), [Double](repeating: 0, count: n))
            for r in 0..<rows {
                let row = r * n..<(r + 1) * n
                let mean = xs[row].reduce(0, +) / Double(n)
                let inv = 1 / (xs[row].reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / Double(n) + Double(eps)).squareRoot()
                statistics += [mean, inv]
                // dx = inv·(g − mean(g) − x̂·mean(g·x̂)), g = w·dy
                let g = row.map { ws[$0 - row.lowerBound] * dYs[$0] }, normed = row.map { (xs[$0] - mean) * inv }
                let meanG = g.reduce(0, +) / Double(n), mixed = zip(g, normed).reduce(0) { $0 + $1.0 * $1.1 } / Double(n)
                for i in 0..<n {
                    y.append(normed[i] * ws[i] + Double(bias?[i] ?? 0))
                    dX.append(inv * (g[i] - meanG - normed[i] * mixed))
                    dWeight[i] += dYs[row.lowerBound + i] * normed[i]
                    dBias[i] += dYs[row.lowerBound + i]
                }
            }
            var stats = [Float](repeating: 0, count: 2 * rows)
            let result = sameBits(act, [Float](repeating: 0, count: rows * n)) { y, part, parts in
                pk_layernorm_forward(level, act, x.bytes, weight, bias, eps, y, &stats, Int64(rows), Int64(n), part, parts)
            }
            // A row of one value has no spread: everything is a difference of equals, times 1/√eps.
            let absolute = n == 1 ? 1e-3 : 2e-5
            expectClose(result, y, act, relative: tolerance(n), absolute: absolute)
            expectClose(stats, statistics, relative: 2e-5, absolute: 1e-6)
            for accumulate: Int32 in [0, 1] {
                let result = sameBits(act, old) { dX, part, parts in
                    pk_layernorm_backward(level, act, x.bytes, weight, stats, dY.bytes, dX, accumulate, Int64(rows), Int64(n), part, parts)
                }
                expectClose(result, zip(dX, old).map { $0 + (accumulate == 1 ? Double($1) : 0) }, act, relative: tolerance(n), absolute: absolute)
            }
            var (sums, biasSums) = ([Float](repeating: 1, count: n), [Float](repeating: 3, count: n))
            inParts(3) {
                pk_layernorm_weight_backward(
                    level, act, x.bytes, stats, dY.bytes, &sums, &biasSums, Int64(rows), Int64(n), $0, $1)
            }
            expectClose(sums, dWeight.map { $0 + 1 }, relative: 1e-5, absolute: absolute)
            expectClose(biasSums, dBias.map { $0 + 3 }, relative: 1e-5, absolute: 1e-5)
            pk_layernorm_weight_backward(level, act, x.bytes, stats, dY.bytes, nil, &biasSums, Int64(rows), Int64(n), 0, 1)
            expectClose(biasSums, dBias.map { 2 * $0 + 3 }, relative: 1e-5, absolute: 2e-5)
        }
    }

    @Test("layer norm far from zero keeps its digits", arguments: levels)
    func farFromZero(_ level: Int32) {
        let n = 256, x = (0..<n).map { 10000 + Float($0 % 5) }
        let mean = x.map(Double.init).reduce(0, +) / Double(n), variance = x.reduce(0) { $0 + (Double($1) - mean) * (Double($1) - mean) } / Double(n)
        var y = x
        pk_layernorm_forward(level, PK_F32, x, nil, nil, 0, &y, nil, 1, Int64(n), 0, 1)
        expectClose(y, x.map { (Double($0) - mean) / variance.squareRoot() }, relative: 1e-3, absolute: 1e-3)
    }
}
