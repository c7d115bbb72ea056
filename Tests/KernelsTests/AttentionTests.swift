import Kernels
import Testing

@Suite struct AttentionTests {
    @Test("lengths around the block of 64, causal and not", arguments: activationTypes, [true, false])
    func lengths(_ type: Int32, _ isCausal: Bool) {
        for (queries, keys) in [(5, 5), (63, 63), (64, 64), (65, 65), (130, 130), (7, 100), (65, 200), (20, 3)] {
            for headDim in [16, 64] {
                Attention(queries: queries, keys: keys, heads: 2, keyValueHeads: 1, headDim: headDim, type: type, isCausal: isCausal).check()
            }
        }
    }

    @Test("head sizes, even and odd", arguments: activationTypes)
    func headSizes(_ type: Int32) {
        for headDim in [1, 2, 7, 8, 20, 33, 64, 80, 128] {
            Attention(queries: 70, keys: 70, heads: 1, keyValueHeads: 1, headDim: headDim, type: type).check()
        }
    }

    @Test("heads that share keys and values; samples of a batch", arguments: activationTypes)
    func sharing(_ type: Int32) {
        for (batch, heads, keyValueHeads) in [(1, 9, 3), (3, 4, 4), (2, 6, 1), (5, 2, 2)] {
            Attention(batch: batch, queries: 33, keys: 40, heads: heads, keyValueHeads: keyValueHeads, headDim: 8, type: type, gap: 4).check()
        }
    }

    /// Heads of 32 values are whole tiles of AMX, those of 12 are not.
    @Test("masks, windows, packed sequences, soft caps, alone and together", arguments: activationTypes, [12, 32])
    func options(_ type: Int32, _ headDim: Int) {
        for (index, option) in [
            Attention(masked: 0.3), Attention(window: 10), Attention(softcap: 5), Attention(isPacked: true), Attention(isCausal: false, masked: 0.5),
            Attention(isCausal: false, window: 70), Attention(window: 100, softcap: 2, masked: 0.2, isPacked: true),
        ].enumerated() {
            var attention = option
            (attention.type, attention.batch, attention.heads, attention.headDim) = (type, 1 + index % 2, 2, headDim)
            (attention.queries, attention.keys) = index % 3 == 2 ? (80, 150) : (150, 150)
            attention.check()
        }
    }

    @Test("biases by distance, with everything else", arguments: activationTypes)
    func biases(_ type: Int32) {
        for attention in [
            Attention(queries: 70, keys: 70), Attention(queries: 130, keys: 130, isCausal: false), Attention(queries: 9, keys: 150, softcap: 4, masked: 0.3),
            Attention(queries: 1, keys: 90), Attention(queries: 3, keys: 17, masked: 0.2), Attention(queries: 100, keys: 140, window: 40),
        ] {
            var biased = attention
            (biased.type, biased.isBiased, biased.heads, biased.keyValueHeads, biased.headDim) = (type, true, 4, 2, 12)
            biased.check()
        }
    }

    @Test("queries that see nothing give zeros", arguments: activationTypes)
    func blindQueries(_ type: Int32) {
        for queries in [2, 40] {
            let attention = Attention(batch: 2, queries: queries, keys: queries, heads: 2, keyValueHeads: 2, headDim: 8, type: type, masked: 1)
            let inputs = attention.inputs()
            for level in levels {
                let result = attention.run(inputs, level: level, parts: 1).result
                #expect((result.out + result.dQ + result.dK + result.dV).allSatisfy { $0 == 0 } && result.logSums.allSatisfy { $0 == -.infinity })
            }
        }
        Attention(queries: 90, keys: 40, heads: 1, keyValueHeads: 1, headDim: 8, type: type).check()  // the first fifty come before all keys
    }

    @Test("few queries over a cache", arguments: activationTypes)
    func decoding(_ type: Int32) {
        for (index, (queries, keys)) in [(1, 1), (1, 2), (1, 17), (2, 64), (3, 100), (4, 300), (1, 1000)].enumerated() {
            for headDim in [8, 20, 64] {
                var attention = Attention(batch: 1 + index % 2, queries: queries, keys: keys, heads: 6, keyValueHeads: 2, headDim: headDim, type: type, gap: index % 3)
                if index == 3 { attention.softcap = 3 }
                if index == 4 { attention.masked = 0.4 }
                if index == 5 { attention.window = 50 }
                attention.check()
            }
        }
    }

    @Test("keys and values of another type than the queries: blocks of q8_0, bf16, f32", arguments: activationTypes, [PK_Q8_0, PK_BF16, PK_F32])
    func cachedTypes(_ type: Int32, _ cached: Int32) {
        for (index, (queries, keys)) in [(1, 1), (1, 17), (3, 100), (8, 65), (9, 64), (70, 150), (1, 700)].enumerated() {
            for headDim in [1, 8, 20, 33, 64, 80] {
                var attention = Attention(batch: 1 + index % 2, queries: queries, keys: keys, heads: 6, keyValueHeads: 2, headDim: headDim, type: type, cached: cached)
                if index == 2 { attention.masked = 0.4 }
                if index == 5 { attention.window = 50 }
                attention.check()
            }
        }
    }

    @Test("rows go into a cache as the format's encoder has them, heads filled up", arguments: activationTypes, [1, 20, 32, 33, 64])
    func cacheRows(_ type: Int32, _ headDim: Int) {
        var random = Random(UInt64(headDim))
        let rows = 5, heads = 3, x = Buffer(type, random.values(rows * heads * headDim, scale: 2)), stored = (headDim + 31) / 32 * 32
        let filled = stride(from: 0, to: x.values.count, by: headDim).flatMap { x.values[$0..<$0 + headDim] + [Float](repeating: 0, count: stored - headDim) }
        let expected = Buffer(PK_Q8_0, filled).bytes
        for level in levels {
            for parts: Int32 in [1, 4] {
                var made = [UInt8](repeating: 0xee, count: expected.count)
                made.withUnsafeMutableBytes { to in
                    x.bytes.withUnsafeBytes { from in
                        for part in 0..<parts {
                            pk_cache_rows(level, type, from.baseAddress, to.baseAddress, Int64(rows), Int64(heads), Int64(headDim), part, parts)
                        }
                    }
                }
                #expect(made == expected, "level \(level), \(parts) parts")
            }
        }
    }

    @Test("a query's result does not depend on the queries beside it", arguments: activationTypes)
    func queriesAreIndependent(_ type: Int32) {
        // Inference of a chunk of a prompt: the first queries of a longer pass.
        for level in levels {
            var long = Attention(queries: 100, keys: 100, heads: 2, keyValueHeads: 1, headDim: 16, type: type)
            let inputs = long.inputs(), all = long.run(inputs, level: level, parts: 1, backward: false).result.out
            var short = inputs
            short.q = Array(inputs.q[0..<70 * long.qWidth])
            (short.k, short.v) = (Array(inputs.k[0..<70 * long.kWidth]), Array(inputs.v[0..<70 * long.kWidth]))
            short.dOut = Array(inputs.dOut[0..<70 * long.qWidth])
            (long.queries, long.keys) = (70, 70)
            #expect(long.run(short, level: level, parts: 1, backward: false).result.out == Array(all[0..<70 * long.qWidth]))
        }
    }

    @Test("large scores do not overflow", arguments: activationTypes)
    func largeScores(_ type: Int32) {
        Attention(queries: 70, keys: 70, heads: 1, keyValueHeads: 1, headDim: 16, type: type, scale: 40).check(tolerance: 5e-4)  // scores of 1000, good to 1e-4
    }
}
