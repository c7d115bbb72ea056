import Glibc
import Kernels
import Testing

@Suite struct LossTests {
    @Test("cross-entropy and its gradient, ignored rows, soft cap, rows with gaps", arguments: levels)
    func crossEntropy(_ level: Int32) {
        for (turn, (rows, n, ld)) in [(1, 1, 1), (4, 7, 7), (3, 64, 70), (5, 129, 129), (2, 3000, 3001)].enumerated() {
            for softcap: Float in [0, 4] {
                var random = Random(UInt64(turn))
                var logits = random.values(rows * ld, scale: 8)
                if turn == 3 { for c in 0..<n { logits[c] += 500 } }  // far from 0: the maximum must be taken off
                let labels = (0..<rows).map { row in row == 2 ? Int32(-100) : Int32(random.below(n)) }
                var losses: [Double] = [], gradients = logits.map(Double.init)
                let scale: Float = 0.25, cap = Double(softcap)
                for r in 0..<rows {
                    let xs = (0..<n).map { Double(logits[r * ld + $0]) }, capped = cap == 0 ? xs : xs.map { cap * tanh($0 / cap) }
                    let top = capped.max() ?? 0, sum = capped.reduce(0) { $0 + exp($1 - top) }, label = Int(labels[r])
                    losses.append(label < 0 ? 0 : top + log(sum) - capped[label])
                    for c in 0..<n {
                        let slope = cap == 0 ? 1 : 1 - (capped[c] / cap) * (capped[c] / cap)
                        gradients[r * ld + c] = label < 0 ? 0 : Double(scale) * (exp(capped[c] - top) / sum - (c == label ? 1 : 0)) * slope
                    }
                }
                var rowLosses = [Float](repeating: 0, count: rows)
                let result = sameBits(PK_F32, logits) { logits, part, parts in
                    pk_cross_entropy(level, logits.floats, Int64(rows), Int64(n), Int64(ld), labels, softcap, scale, &rowLosses, part, parts)
                }
                expectClose(result, gradients, relative: 2e-5, absolute: 2e-7, "\(rows)×\(n) cap \(softcap)")
                expectClose(rowLosses, losses, relative: 2e-6, absolute: 1e-4)
                var only = logits
                pk_cross_entropy(level, &only, Int64(rows), Int64(n), Int64(ld), labels, softcap, 0, &rowLosses, 0, 1)
                #expect(only == logits)
                expectClose(rowLosses, losses, relative: 2e-6, absolute: 1e-4)
            }
        }
    }

    @Test("cross-entropy over logits that come by blocks of columns, kept as f16", arguments: levels)
    func blocks(_ level: Int32) {
        for (turn, (rows, n, block)) in [(1, 1, 1), (3, 40, 16), (4, 129, 129), (2, 3000, 1152), (5, 70, 33)].enumerated() {
            for softcap: Float in [0, 4] {
                var random = Random(UInt64(turn + 30))
                let logits = random.values(rows * n, scale: 8)
                let labels = (0..<rows).map { row in row == 2 ? Int32(-100) : Int32(random.below(n)) }
                let scale: Float = 0.25, cap = Double(softcap)
                var (expected, losses) = ([Double](), [Double]())
                for r in 0..<rows {
                    let xs = logits[r * n..<(r + 1) * n].map { cap == 0 ? Double($0) : cap * tanh(Double($0) / cap) }
                    let top = xs.max() ?? 0, logSum = top + log(xs.reduce(0) { $0 + exp($1 - top) }), label = Int(labels[r])
                    losses.append(label < 0 ? 0 : logSum - xs[label])
                    for c in 0..<n {
                        let slope = cap == 0 ? 1 : 1 - (xs[c] / cap) * (xs[c] / cap)
                        expected.append(label < 0 ? 0 : Double(scale) * (exp(xs[c] - logSum) - (c == label ? 1 : 0)) * slope)
                    }
                }
                func run(parts: Int32, keeps: Bool) -> (gradient: [UInt16], losses: [Float]) {
                    var (top, sum, target) = ([Float](repeating: -.infinity, count: rows), [Float](repeating: 0, count: rows), [Float](repeating: 0, count: rows))
                    var (halves, losses) = ([UInt16](repeating: 7, count: keeps ? rows * n : 0), [Float](repeating: 9, count: rows))
                    halves.withUnsafeMutableBufferPointer { halves in
                        for first in stride(from: 0, to: n, by: block) {
                            let width = min(block, n - first)
                            let part = (0..<rows).flatMap { logits[$0 * n + first..<$0 * n + first + width] }
                            inParts(parts) {
                                pk_softmax_observe(
                                    level, part, Int64(rows), Int64(width), Int64(first), labels, softcap, &top, &sum, &target, keeps ? halves.baseAddress : nil,
                                    Int64(n), $0, $1)
                            }
                        }
                        inParts(parts) {
                            pk_softmax_gradient(
                                level, keeps ? halves.baseAddress : nil, Int64(rows), Int64(n), labels, top, sum, target, softcap, scale, &losses, $0, $1)
                        }
                    }
                    return (halves, losses)
                }
                let (gradient, rowLosses) = run(parts: 1, keeps: true)
                let values = gradient.map { Float(bitPattern: UInt32($0) << 16) }
                // f16 keeps a logit of 8 to 2⁻⁸: that much, relatively, of e^logit; f32's last digits are lost in 1 − (l/cap)².
                expectClose(values, expected, PK_BF16, relative: softcap == 0 ? 0.005 : 0.02, absolute: softcap == 0 ? 1e-9 : 2e-4, "\(rows)×\(n) cap \(softcap)")
                expectClose(rowLosses, losses, relative: 2e-6, absolute: 1e-5)
                for parts: Int32 in [2, 3, 7] { #expect(run(parts: parts, keeps: true).gradient == gradient) }
                #expect(run(parts: 1, keeps: false).losses == rowLosses)
            }
        }
    }

    @Test("NaN among the logits reaches the loss", arguments: levels)
    func nan(_ level: Int32) {
        for at in [0, 5, 16, 69, 99] {
            var logits = [Float](repeating: 1, count: 100)
            logits[at] = .nan
            var loss: Float = 0
            pk_cross_entropy(level, &logits, 1, 100, 100, [3], 0, 1, &loss, 0, 1)
            #expect(loss.isNaN && logits.contains { $0.isNaN }, "NaN at \(at)")
        }
    }

    @Test("softmax of rows", arguments: levels)
    func softmax(_ level: Int32) {
        for (rows, n, ld) in [(1, 1, 1), (3, 5, 8), (2, 64, 64), (4, 333, 340)] {
            var random = Random(UInt64(n))
            var values = random.values(rows * ld, scale: 20)
            values[0] = -.infinity
            if n == 1 { values[0] = 3 }
            var expected = values.map(Double.init)
            for r in 0..<rows {
                let row = r * ld..<r * ld + n, top = expected[row].max() ?? 0
                let e = expected[row].map { exp($0 - top) }, sum = e.reduce(0, +)
                expected.replaceSubrange(row, with: e.map { $0 / sum })
            }
            let result = sameBits(PK_F32, values) { x, part, parts in pk_softmax_rows(level, x.floats, Int64(rows), Int64(n), Int64(ld), part, parts) }
            expectClose(result, expected, relative: 2e-5, absolute: 1e-30)
        }
    }
}
