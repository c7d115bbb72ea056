import Tensors
import Testing

/// Streams of torch 2.13 and numpy 2.4, dumped on x86 (bit patterns of f32). Above each test stands what drew its numbers.
@Suite struct GeneratorTests {
    private func bits(_ values: some Sequence<Float>) -> [UInt32] { values.map(\.bitPattern) }

    /// g(s) = torch.Generator().manual_seed(s): empty(5).uniform_(-0.25, 0.75, generator=g(7)); kaiming_uniform_ of (3, 8)
    /// with a = 0 and √5, g(5); of (2, 8) in bfloat16.
    @Test func torchUniform() {
        var seven = TorchGenerator(seed: 7)
        #expect(
            bits(seven.uniform(5, from: -0.25, to: 0.75)) == [
                1_049_747_806, 3_176_248_256, 1_053_918_258, 1_053_840_364, 3_163_371_424,
            ])
        var five = TorchGenerator(seed: 5)
        #expect(
            bits(five.kaiming(24, fanIn: 8).prefix(6)) == [
                1_058_172_786, 3_206_924_487, 1_060_416_658, 1_057_872_757, 1_060_783_781, 3_207_199_551,
            ])
        five = TorchGenerator(seed: 5)
        #expect(
            bits(five.kaiming(24, fanIn: 8, squaredSlope: 5).prefix(6)) == [
                1_047_470_270, 3_196_542_144, 1_049_855_248, 1_046_980_324, 1_050_155_004, 3_196_766_733,
            ])
        five = TorchGenerator(seed: 5)
        let bound = five.kaimingBound(fanIn: 8, squaredSlope: 5)
        #expect(
            bits(five.uniformBF16(8, from: -bound, to: bound)) == [
                1_047_461_888, 3_196_518_400, 1_049_886_720, 1_047_003_136, 1_050_148_864, 3_196_780_544,
                3_195_207_680, 1_043_070_976,
            ])
    }

    /// randn(20, generator=g(42), dtype=float64) and randn(5, …): some of them.
    @Test func normalDoubles() {
        var many = TorchGenerator(seed: 42), few = TorchGenerator(seed: 42)
        let twenty = many.normalDoubles(20)
        for (index, wanted) in [(0, 0.2995562877502637), (3, -0.23294220898382634), (4, -0.03720300727052493), (11, -0.46946014308389283), (19, -0.33113931395169954)] {
            #expect(abs(twenty[index] - wanted) < 1e-14)
        }
        #expect(zip(few.normalDoubles(5), [0.33669035438385886, 0.1288094051365897, 0.23446236336153173, 0.2303330279146119, -1.1228563767381703]).allSatisfy { abs($0 - $1) < 1e-14 })
    }

    /// randn(5, generator=g(3)); randn(2007, generator=g(42)): its ends, and all of it xor-ed; empty(16).normal_(1.5, 0.3, g(9)).
    @Test func torchNormal() {
        var three = TorchGenerator(seed: 3)
        #expect(
            bits(three.normal(5)) == [1_062_052_736, 1_043_531_654, 1_035_352_614, 3_206_356_128, 1_027_418_575])
        var fortyTwo = TorchGenerator(seed: 42)
        let many = bits(fortyTwo.normal(2007))
        #expect(many.prefix(4) == [1_073_128_745, 1_069_440_851, 1_063_687_527, 3_221_668_059])
        #expect(many.suffix(3) == [3_204_723_469, 1_042_192_189, 3_210_066_704])
        #expect(many.reduce(0, ^) == 3_190_205_883)
        var nine = TorchGenerator(seed: 9)
        #expect(
            bits(nine.normal(16, mean: 1.5, deviation: 0.3).prefix(4)) == [
                1_066_861_333, 1_067_742_513, 1_072_289_889, 1_065_584_699,
            ])
    }

    /// randperm(1000, generator=g(777)), its ends; randperm(3000000, generator=g(1))[:6].
    @Test func torchPermutation() {
        var generator = TorchGenerator(seed: 777)
        let order = generator.permutation(of: 1000, first: 1000)
        #expect(order.prefix(8) == [735, 819, 201, 799, 435, 497, 175, 590])
        #expect(order.suffix(4) == [179, 73, 889, 284])
        #expect(order.sorted() == Array(0..<1000))
        generator = TorchGenerator(seed: 777)
        #expect(generator.permutation(of: 1000, first: 400) == Array(order.prefix(400)))
        generator = TorchGenerator(seed: 1)
        #expect(generator.permutation(of: 3_000_000, first: 6) == [95845, 1_877_567, 772_188, 307_376, 491_267, 1_291_233])
    }

    /// r = default_rng(s): r.choice(20, n, replace=False), then r.shuffle(arange(12)); default_rng(4).choice(20000, 500,
    /// replace=False).
    @Test func numpyChoiceAndShuffle() {
        let cases: [(seed: UInt64, count: Int, drawn: [Int])] = [
            (0, 10, [9, 16, 7, 6, 3, 0, 17, 4, 18, 1, 4, 9, 6, 2, 5, 1, 3, 11, 10, 8, 0, 7]),
            (42, 7, [19, 16, 7, 10, 1, 11, 17, 5, 11, 2, 4, 9, 7, 1, 8, 6, 10, 3, 0]),
            (1_099_511_627_779, 6, [12, 9, 18, 17, 10, 7, 0, 10, 8, 7, 2, 5, 11, 9, 6, 1, 4, 3]),
        ]
        for item in cases {
            var generator = NumPyGenerator(seed: item.seed)
            let chosen = generator.choice(of: 20, item.count)
            var shuffled = (0..<12).map { Int32($0) }
            generator.shuffle(&shuffled)
            #expect(chosen + shuffled.map { Int($0) } == item.drawn)
        }
        var generator = NumPyGenerator(seed: 4)
        let tail = generator.choice(of: 20000, 500)
        #expect(tail.prefix(5) == [8130, 18905, 19412, 12156, 4891])
        #expect(tail.suffix(3) == [17626, 18860, 14528])
    }
}
