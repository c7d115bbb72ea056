import Foundation
import Generation
import Platform
import Tensors
import Testing

/// What may be drawn, against the steps as transformers describes them, one after the other over the whole vocabulary.
@Suite struct SamplerTests {
    private static let vocabulary = 3001
    /// Portable, AVX2 and AVX-512, as far as this processor has them.
    static let levels = Set([0, 1, 3].map { Engine(level: $0).level }).sorted()

    /// Peaked, ordinary, flat, and with equal ones.
    private func logits(_ kind: Int) -> [Float] {
        var state: UInt64 = 12345 &+ UInt64(kind)
        return (0..<SamplerTests.vocabulary).map { _ in
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            let uniform = Float(state >> 40) / Float(1 << 24)
            switch kind {
            case 0: return -log(uniform + 1e-6) * 4
            case 1: return (uniform - 0.5) * 10
            case 2: return uniform * 0.01
            default: return Float(Int(uniform * 5))
            }
        }
    }

    /// Tokens by falling weight, as top-k, top-p and min-p leave them.
    private func expected(_ logits: [Float], _ options: SamplingOptions) -> [Int] {
        let largest = logits.max() ?? 0
        var kept = logits.enumerated().map { (token: $0, weight: exp(Double($1 - largest) / Double(options.temperature))) }.filter { $0.weight > exp(-30) }
        kept.sort { $0.weight == $1.weight ? $0.token < $1.token : $0.weight > $1.weight }
        if options.topK > 0 { kept = Array(kept.prefix(options.topK)) }
        let total = kept.reduce(0) { $0 + $1.weight }
        var (sum, count) = (0.0, 0)
        while count < kept.count, options.topP == 1 || sum < Double(options.topP) * total {
            sum += kept[count].weight
            count += 1
        }
        return kept.prefix(max(count, 1)).filter { $0.weight >= Double(options.minP) }.map(\.token)
    }

    @Test("top-k, top-p, min-p and what they leave together", arguments: [0, 1, 2, 3], [Float(0.3), 0.8, 2, 50])
    func candidates(_ kind: Int, _ temperature: Float) {
        let logits = logits(kind)
        let largest = logits.max() ?? 0
        let weight = logits.map { exp(Double($0 - largest) / Double(temperature)) }
        for (topK, topP, minP) in [(1, 1, 0), (40, 1, 0), (2900, 1, 0), (0, 0.95, 0), (0, 0.01, 0), (0, 0.9999, 0), (0, 1, 0.05), (0, 1, 1), (50, 0.9, 0.02), (5000, 0.5, 0)] as [(Int, Float, Float)] {
            var options = SamplingOptions()
            (options.temperature, options.topK, options.topP, options.minP) = (temperature, topK, topP, minP)
            let wanted = expected(logits, options)
            for level in SamplerTests.levels {
                let sampler = Sampler(options, level: level)
                let (weights, total) = sampler.weighed(logits, logits.firstIndex(of: largest) ?? 0)
                let found = sampler.candidates(weights, total).map(\.token)
                // Where weights differ by f32's roundings their order, and where a sum ends, may differ from double's: by a token, or by as little as sums are exact to.
                let differing = abs(found.suffix(from: min(wanted.count, found.count)).reduce(0) { $0 + weight[$1] } - wanted.suffix(from: min(wanted.count, found.count)).reduce(0) { $0 + weight[$1] })
                #expect(differing <= (topP < 1 ? 2e-5 * weight.reduce(0, +) + weight[wanted[wanted.count - 1]] : 1e-5), "\(kind) \(topK) \(topP) \(minP): \(found.count) of \(wanted.count)")
                #expect(Set(found).count == found.count && zip(found, wanted).allSatisfy { abs(weight[$0] - weight[$1]) <= 1e-5 * weight[$1] })
                if kind == 3, topP == 1 { #expect(found == wanted, "equal ones come in the order of tokens") }
            }
        }
    }

    @Test("draws follow the weights, and stay among what is left") func draws() throws {
        let logits = logits(0)
        for topK in [0, 5] {
            var options = SamplingOptions()
            (options.temperature, options.topK, options.seed) = (1.5, topK, 7)
            var sampler = Sampler(options, level: Engine(level: 1).level)
            let largest = logits.max() ?? 0, allowed = Set(expected(logits, options))
            let weights = logits.enumerated().map { allowed.contains($0) ? exp(Double($1 - largest) / 1.5) : 0 }, total = weights.reduce(0, +)
            var counts = [Int](repeating: 0, count: logits.count)
            for _ in 0..<20_000 { counts[Int(try sampler.sample(logits, history: [Int32]()))] += 1 }
            for (count, weight) in zip(counts, weights) {
                let mean = 20_000 * weight / total
                #expect(abs(Double(count) - mean) <= 5 * mean.squareRoot() + (weight > 0 ? 3 : 0))
            }
        }
    }

    @Test("greedy: the first of the largest, penalised and suppressed tokens, NaN and infinities", arguments: levels)
    func greedy(_ level: Int32) throws {
        for count in [1, 3, 16, 17, 100] {
            for place in 0..<count {
                var logits = [Float](repeating: -1, count: count)
                logits[place] = 2
                if place + 1 < count { logits[count - 1] = 2 }
                var sampler = Sampler(SamplingOptions(), level: level)
                #expect(try sampler.sample(logits, history: [Int32]()) == Int32(place))
                logits[place] = .nan
                #expect(throws: PEFTError.self) { try sampler.sample(logits, history: [Int32]()) }
                logits[place] = .infinity
                #expect(throws: PEFTError.self) { try sampler.sample(logits, history: [Int32]()) }
                #expect(throws: PEFTError.self) { try sampler.sample([Float](repeating: -.infinity, count: count), history: [Int32]()) }
            }
        }
        var options = SamplingOptions()
        options.repetitionPenalty = 2
        var sampler = Sampler(options, level: level)
        #expect(try sampler.sample([3, 2, 1], history: [0, 0, 9, -1]) == 1)
        options.suppressed = [1, 7]
        sampler.options = options
        #expect(try sampler.sample([3, 2, 1], history: [0, 0]) == 0)
        #expect(try sampler.sample([-1, -2, -3], history: [0, 0]) == 0)
    }
}
