import Kernels
import Testing

@Suite struct OptimizerTests {
    private let count = 203

    @Test("AdamW over several steps is torch's", arguments: levels)
    func adamW(_ level: Int32) {
        var random = Random(1)
        let start = random.values(count)
        var (w, m, v) = (start.map(Double.init), [Double](repeating: 0, count: count), [Double](repeating: 0, count: count))
        var (weights, first, second) = (start, [Float](repeating: 0, count: count), [Float](repeating: 0, count: count))
        let (lr, beta1, beta2, eps, decay, scale): (Float, Float, Float, Float, Float, Float) = (0.01, 0.9, 0.999, 1e-8, 0.1, 0.5)
        for step in 1...5 {
            let g = random.values(count)
            for i in 0..<count {
                let gradient = Double(g[i]) * Double(scale)
                w[i] *= 1 - Double(lr) * Double(decay)
                m[i] = Double(beta1) * m[i] + (1 - Double(beta1)) * gradient
                v[i] = Double(beta2) * v[i] + (1 - Double(beta2)) * gradient * gradient
                let mean = m[i] / (1 - power(Double(beta1), step)), square = v[i] / (1 - power(Double(beta2), step))
                w[i] -= Double(lr) * mean / (square.squareRoot() + Double(eps))
            }
            inParts(step == 3 ? 7 : 1) { part, parts in
                pk_adamw(
                    level, &weights, g, &first, &second, count, scale, lr, beta1, beta2, eps, decay,
                    Int64(step), part, parts)
            }
            expectClose(weights, w, relative: 1e-5, absolute: 1e-6)
            expectClose(first, m, relative: 1e-5, absolute: 1e-7)
            expectClose(second, v, relative: 1e-5, absolute: 1e-9)
        }
    }

    private func power(_ base: Double, _ exponent: Int) -> Double { (0..<exponent).reduce(1) { product, _ in product * base } }

    @Test("SGD with and without momentum is torch's", arguments: levels, [0, 0.9] as [Float])
    func sgd(_ level: Int32, _ momentum: Float) {
        var random = Random(2)
        let start = random.values(count)
        var (w, velocity) = (start.map(Double.init), [Double](repeating: 0, count: count))
        var (weights, buffer) = (start, [Float](repeating: .nan, count: count))
        for step in 1...4 {
            let g = random.values(count)
            for i in 0..<count {
                let d = Double(g[i]) * 2 + 0.01 * w[i]
                velocity[i] = step == 1 ? d : Double(momentum) * velocity[i] + d
                w[i] -= 0.1 * (momentum == 0 ? d : velocity[i])
            }
            inParts(step == 2 ? 3 : 1) { part, parts in
                if momentum == 0 {
                    pk_sgd(level, &weights, g, nil, count, 2, 0.1, 0, 0.01, Int64(step), part, parts)
                } else {
                    pk_sgd(level, &weights, g, &buffer, count, 2, 0.1, momentum, 0.01, Int64(step), part, parts)
                }
            }
            expectClose(weights, w, relative: 1e-5, absolute: 1e-6)
        }
    }

    @Test("sums of squares", arguments: levels)
    func sumOfSquares(_ level: Int32) {
        for count in [0, 1, 31, 32, 33, 1000] {
            var random = Random(UInt64(count))
            let x = random.values(count, scale: 1e18)
            let expected = x.reduce(0) { $0 + Double($1) * Double($1) }
            #expect(abs(pk_sumsq(level, x, count) - expected) <= 1e-12 * expected)
        }
    }

    @Test("what is not finite is found, wherever it is", arguments: levels)
    func finite(_ level: Int32) {
        for type in [PK_F32, PK_BF16, PK_F16] {
            for bad in [Float.nan, .infinity, -.infinity] {
                for at in [0, 7, 16, 99] {
                    var values = [Float](repeating: -60000, count: 100)
                    #expect(pk_all_finite(level, type, Buffer(type, values).bytes, 100) == 1)
                    values[at] = bad
                    #expect(pk_all_finite(level, type, Buffer(type, values).bytes, 100) == 0)
                }
            }
        }
    }
}
