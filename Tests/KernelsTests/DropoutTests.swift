import Glibc
import Kernels
import Testing

@Suite struct DropoutTests {
    @Test("the generator gives Random123's known answers (kat_vectors, philox4x32-10)")
    func knownAnswers() {
        for (counter, key, answer) in [
            ([0, 0, 0, 0], [0, 0], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([0xffff_ffff, 0xffff_ffff, 0xffff_ffff, 0xffff_ffff], [0xffff_ffff, 0xffff_ffff], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            ([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0], [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]),
        ] as [([UInt32], [UInt32], [UInt32])] {
            var out = [UInt32](repeating: 0, count: 4)
            pk_philox_block(counter, key, &out)
            #expect(out == answer)
        }
    }

    private func stream(_ seed: UInt64, _ offset: UInt64, _ count: Int) -> [UInt32] {
        var words = [UInt32](repeating: 0, count: count)
        pk_philox(seed, offset, &words, count)
        return words
    }

    @Test("a stream is one sequence, wherever it is entered")
    func streams() {
        let whole = stream(42, 0, 100)
        for offset in [1, 2, 3, 4, 7, 50] { #expect(stream(42, UInt64(offset), 100 - offset) == Array(whole[offset...])) }
        #expect(stream(43, 0, 100) != whole)
        #expect(stream(42, UInt64(1) << 34, 4) != Array(whole[0..<4]))
    }

    @Test("an element falls where its word of the stream says, at every level", arguments: levels, activationTypes)
    func masks(_ level: Int32, _ act: Int32) {
        for (count, offset, p) in [(1, 0, 0.5), (15, 3, 0.1), (64, 1, 0.5), (200, 4, 0.9), (1000, 6, 0.25), (70, (UInt64(1) << 34) - 9, 0.5)] as [(Int, UInt64, Float)] {
            var random = Random(UInt64(count))
            let x = Buffer(act, random.values(count)), old = Buffer(act, random.values(count)).values, xs = x.doubles
            let words = stream(7, offset, count), bound = UInt64(Double(p) * 0x1p32)
            for accumulate: Int32 in [0, 1] {
                let y = sameBits(act, old) { y, part, parts in pk_dropout(level, act, x.bytes, y, count, p, 7, offset, accumulate, part, parts) }
                let expected = (0..<count).map { (UInt64(words[$0]) >= bound ? xs[$0] / (1 - Double(p)) : 0) + (accumulate == 1 ? Double(old[$0]) : 0) }
                expectClose(y, expected, act, absolute: 1e-6, "p \(p), offset \(offset), count \(count)")
            }
            var inPlace = Buffer(act, x.values)
            inPlace.bytes.withUnsafeMutableBytes { x in inParts(3) { pk_dropout(level, act, x.baseAddress, x.baseAddress, count, p, 7, offset, 0, $0, $1) } }
            var apart = Buffer(act, old)
            pk_dropout(level, act, x.bytes, &apart.bytes, count, p, 7, offset, 0, 0, 1)
            #expect(inPlace.values == apart.values)
        }
    }

    @Test("nothing falls at 0, everything at 1", arguments: levels)
    func extremes(_ level: Int32) {
        let x = (1...100).map(Float.init)
        var y = [Float](repeating: .nan, count: 100)
        pk_dropout(level, PK_F32, x, &y, 100, 0, 1, 0, 0, 0, 1)
        #expect(y == x)
        pk_dropout(level, PK_F32, x, &y, 100, 1, 1, 0, 0, 0, 1)
        #expect(y.allSatisfy { $0 == 0 })
    }

    @Test("the share that falls is p, the mean stays, neighbours are independent")
    func statistics() {
        let count = 100_000, level = levels.last ?? 0
        let x = [Float](repeating: 1, count: count)
        var y = [Float](repeating: 0, count: count)
        for (seed, p) in [(1, 0.05), (2, 0.5), (3, 0.9)] as [(UInt64, Float)] {
            pk_dropout(level, PK_F32, x, &y, count, p, seed, 0, 0, 0, 1)
            let kept = y.map { $0 != 0 }, q = Double(1 - p)
            let deviation = (q * (1 - q) / Double(count)).squareRoot()
            #expect(abs(Double(kept.filter { $0 }.count) / Double(count) - q) < 4 * deviation)
            for lag in [1, 2, 4, 64] {
                let both = (lag..<count).filter { kept[$0] && kept[$0 - lag] }.count
                #expect(abs(Double(both) / Double(count - lag) - q * q) < 6 * deviation)
            }
        }
    }

    @Test("normal numbers are Box–Muller's of the stream's words, wherever it is entered, at every level", arguments: levels)
    func normals(_ level: Int32) {
        for (count, offset) in [(1, 0), (2, 3), (70, 6), (200, 1), (1000, (UInt64(1) << 34) - 10)] as [(Int, UInt64)] {
            let words = stream(7, offset, count + 1)
            let expected = (0..<count).map { index in
                let (u, v) = (Double(words[index / 2 * 2] >> 8), Double(words[index / 2 * 2 + 1] >> 8))
                let (radius, angle) = ((-2 * log((u + 1) * 0x1p-24)).squareRoot(), 2 * Double.pi * v * 0x1p-24)
                return radius * (index % 2 == 0 ? cos(angle) : sin(angle))
            }
            let y = sameBits(PK_F32, [Float](repeating: 0, count: count)) { y, part, parts in
                pk_normals(level, y.assumingMemoryBound(to: Float.self), count, 7, offset, part, parts)
            }
            expectClose(y, expected, PK_F32, absolute: 2e-6, "offset \(offset), count \(count)")
        }
    }

    @Test("samples are means with noise of their variances", arguments: levels, activationTypes)
    func samples(_ level: Int32, _ act: Int32) {
        let (rows, n) = (3, 21)
        var random = Random(5)
        let x = Buffer(act, random.values(rows * 2 * n)), normals = random.values(rows * n), xs = x.doubles
        var noise = Buffer(act, [Float](repeating: 0, count: rows * n))
        let z = sameBits(act, [Float](repeating: 0, count: rows * n)) { z, part, parts in
            noise.bytes.withUnsafeMutableBytes { pk_sample(level, act, x.bytes, normals, $0.baseAddress, z, Int64(rows), Int64(n), part, parts) }
        }
        let expected = (0..<rows * n).map { place in
            let (row, column) = (place / n, place % n)
            return xs[2 * row * n + column] + exp(0.5 * xs[(2 * row + 1) * n + column]) * Double(normals[place])
        }
        expectClose(z, expected, act, absolute: 1e-5, "samples")
        #expect(noise.values.contains { $0 != 0 })
    }
}
