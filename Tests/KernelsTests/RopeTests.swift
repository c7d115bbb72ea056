import Glibc
import Kernels
import Testing

@Suite struct RopeTests {
    @Test("pairs turn by their angles, both arrangements, and back", arguments: levels, activationTypes)
    func rotation(_ level: Int32, _ act: Int32) {
        for (turn, (rows, heads, headDim, rotary)) in [(1, 1, 2, 2), (3, 2, 8, 8), (4, 3, 64, 64), (5, 1, 80, 32), (2, 2, 10, 6)].enumerated() {
            for isInterleaved in [false, true] {
                var random = Random(UInt64(turn))
                let half = rotary / 2, token = heads * headDim + turn % 3, positions = 11
                let angles = random.values(positions * half, scale: 3).map(Double.init)
                let cosines = angles.map { Float(cos($0)) }, sines = angles.map { Float(sin($0)) }
                let at = (0..<rows).map { Int32(($0 * 7 + 3) % positions) }
                let x = Buffer(act, random.values(rows * token))
                let xs = x.doubles, old = Buffer(act, [Float](repeating: 9, count: rows * token)).values
                for inverse: Int32 in [0, 1] {
                    var expected = old.map(Double.init)
                    for r in 0..<rows {
                        for h in 0..<heads {
                            let start = r * token + h * headDim
                            for d in 0..<headDim { expected[start + d] = xs[start + d] }
                            for i in 0..<half {
                                let (a, b) = isInterleaved ? (start + 2 * i, start + 2 * i + 1) : (start + i, start + i + half)
                                let table = Int(at[r]) * half + i
                                let c = Double(cosines[table]), s = Double(sines[table]) * (inverse == 1 ? -1 : 1)
                                (expected[a], expected[b]) = (xs[a] * c - xs[b] * s, xs[b] * c + xs[a] * s)
                            }
                        }
                    }
                    func rotate(_ x: UnsafeRawPointer, _ y: UnsafeMutableRawPointer, _ part: Int32, _ parts: Int32) {
                        pk_rope(
                            level, act, x, y, cosines, sines, at, Int64(rows), Int64(heads), Int64(headDim), Int64(rotary), Int64(token), Int64(token),
                            isInterleaved ? 1 : 0, inverse, part, parts)
                    }
                    let y = sameBits(act, old) { rotate(x.bytes, $0, $1, $2) }
                    expectClose(y, expected, act, absolute: 1e-6, "interleaved \(isInterleaved), inverse \(inverse), \(rows)×\(heads)×\(headDim)/\(rotary)")
                    var inPlace = x
                    inPlace.bytes.withUnsafeMutableBytes { if let x = $0.baseAddress { rotate(x, x, 0, 1) } }
                    let turned = inPlace.values
                    let kept = (0..<y.count).filter { $0 % token < heads * headDim }
                    #expect(kept.allSatisfy { turned[$0] == y[$0] })
                }
            }
        }
    }
}
