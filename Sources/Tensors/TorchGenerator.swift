internal import Glibc

/// torch's generator on the CPU, bit for bit: adapters whose files leave frozen tensors out drew them from it.
///
/// MT19937 (Matsumoto & Nishimura 1998), seeded with the low 32 bits of the seed as `torch.Generator().manual_seed`.
/// Normal numbers are those of torch's AVX2 code, which every x86 machine of the last ten years runs.
package struct TorchGenerator: Sendable {
    private static let size = 624
    private var state: [UInt32]
    private var next = TorchGenerator.size
    /// The second number of a pair that was drawn one by one.
    private var spare: Double?

    package init(seed: UInt64) {
        state = [UInt32(truncatingIfNeeded: seed)]
        state.reserveCapacity(TorchGenerator.size)
        var last = state[0]
        for index in 1..<UInt32(TorchGenerator.size) {
            last = 1_812_433_253 &* (last ^ (last >> 30)) &+ index  // Safe: arithmetic modulo 2³².
            state.append(last)
        }
    }

    package mutating func nextWord() -> UInt32 {
        if next >= TorchGenerator.size { refill() }
        var word = state[next]
        next += 1
        word ^= word >> 11
        word ^= (word << 7) & 0x9d2c_5680
        word ^= (word << 15) & 0xefc6_0000
        return word ^ (word >> 18)
    }

    private mutating func refill() {
        let size = TorchGenerator.size
        for index in 0..<size {
            let mixed = (state[index] & 0x8000_0000) | (state[(index + 1) % size] & 0x7fff_ffff)
            state[index] = state[(index + 397) % size] ^ (mixed >> 1) ^ (mixed & 1 == 0 ? 0 : 0x9908_b0df)
        }
        next = 0
    }

    /// The high word comes first.
    private mutating func nextLong() -> UInt64 {
        let high = UInt64(nextWord())
        return high << 32 | UInt64(nextWord())
    }

    // MARK: Filling

    /// `torch.rand`, `uniform_` of f32; what rounds up to `high` becomes `low`.
    package mutating func uniform(_ count: Int, from low: Float = 0, to high: Float = 1) -> [Float] {
        (0..<max(count, 0)).map { _ in
            let value = low.addingProduct(Float(nextWord() & 0xff_ffff) * 0x1p-24, high - low)
            return value < high ? value : low
        }
    }

    /// `uniform_` of bf16: the same numbers, rounded.
    package mutating func uniformBF16(_ count: Int, from low: Float, to high: Float) -> [Float] {
        let (low16, high16) = (low.roundedToBF16, high.roundedToBF16)
        return uniform(count, from: low, to: high).map { value in
            let rounded = value.roundedToBF16
            return rounded < high16 ? rounded : low16
        }
    }

    /// `kaiming_uniform_` with a = 0 unless said otherwise: within ±√(6/((1 + a²)·fanIn)).
    package mutating func kaiming(_ count: Int, fanIn: Int, squaredSlope: Double = 0) -> [Float] {
        let bound = kaimingBound(fanIn: fanIn, squaredSlope: squaredSlope)
        return uniform(count, from: -bound, to: bound)
    }

    /// As torch computes it: √3·(gain/√fanIn).
    package func kaimingBound(fanIn: Int, squaredSlope: Double = 0) -> Float {
        let gain = (2 / (1 + squaredSlope)).squareRoot()
        return Float(3.0.squareRoot() * (gain / Double(max(fanIn, 1)).squareRoot()))
    }

    /// `torch.randn`, `normal_` of f32: from 16 numbers on in blocks of 16, the last of them over the last 16.
    package mutating func normal(_ count: Int, mean: Float = 0, deviation: Float = 1) -> [Float] {
        guard count >= 16 else {
            return (0..<max(count, 0)).map { _ in Float(single() * Double(deviation) + Double(mean)) }
        }
        var values = uniform(count)
        for start in stride(from: 0, to: count - 15, by: 16) {
            TorchGenerator.pair(&values, at: start, mean, deviation)
        }
        if count % 16 != 0 {
            values.replaceSubrange(count - 16..<count, with: uniform(16))
            TorchGenerator.pair(&values, at: count - 16, mean, deviation)
        }
        return values
    }

    /// `torch.randn` of f64.
    package mutating func normalDoubles(_ count: Int) -> [Double] {
        guard count >= 16 else { return (0..<max(count, 0)).map { _ in single() } }
        var values = (0..<count).map { _ in double() }
        for start in stride(from: 0, to: count - 15, by: 16) { TorchGenerator.pair(&values, at: start) }
        if count % 16 != 0 {
            values.replaceSubrange(count - 16..<count, with: (0..<16).map { _ in double() })
            TorchGenerator.pair(&values, at: count - 16)
        }
        return values
    }

    private static func pair(_ values: inout [Double], at start: Int) {
        for index in start..<start + 8 {
            let (radius, angle) = ((-2 * log(1 - values[index])).squareRoot(), 2 * Double.pi * values[index + 8])
            values[index] = radius * cos(angle)
            values[index + 8] = radius * sin(angle)
        }
    }

    /// Uniform in [0, 1), 53 bits.
    private mutating func double() -> Double { Double(nextLong() & 0x1f_ffff_ffff_ffff) * 0x1p-53 }

    /// Box–Muller of `values[start..<start + 16]`: the first eight give the radius, the others the angle.
    private static func pair(_ values: inout [Float], at start: Int, _ mean: Float, _ deviation: Float) {
        for index in start..<start + 8 {
            let radius = (-2 * logarithm(1 - values[index])).squareRoot()
            let (sine, cosine) = sineAndCosine(2 * Float.pi.nextUp * values[index + 8])
            values[index] = mean.addingProduct(radius * cosine, deviation)
            values[index + 8] = mean.addingProduct(radius * sine, deviation)
        }
    }

    /// One normal number in double, as torch draws fewer than 16.
    private mutating func single() -> Double {
        if let spare {
            self.spare = nil
            return spare
        }
        let angle = 2 * Double.pi * double()
        let radius = (-2 * log1p(-double())).squareRoot()
        spare = radius * sin(angle)
        return radius * cos(angle)
    }

    /// The first `count` of `torch.randperm(bound)`. Each place is final once it was swapped, so the rest need not be drawn,
    /// nor kept: only places that were moved are.
    package mutating func permutation(of bound: Int, first count: Int) -> [Int] {
        if bound >= Int(UInt32.max) / 20 { return longPermutation(of: bound, first: count) }
        var moved: [Int: Int] = [:]
        return (0..<max(min(bound, count), 0)).map { place in
            // The last place has nothing to be swapped with, and no number is drawn for it.
            let other = place < bound - 1 ? place + Int(nextWord()) % (bound - place) : place
            let value = moved[other] ?? other
            moved[other] = moved[place] ?? place
            return value
        }
    }

    /// torch's way for long ones, which fills from the inside out: all of it has to be drawn.
    private mutating func longPermutation(of bound: Int, first count: Int) -> [Int] {
        var order: [UInt32] = []
        order.reserveCapacity(bound)
        for place in 0..<bound {
            let other = Int(nextLong() % UInt64(place + 1))
            order.append(UInt32(clamping: place))
            order.swapAt(place, other)
        }
        return order.prefix(max(count, 0)).map { Int($0) }
    }
}

// The single-precision functions of Cephes (Moshier), in the order and with the fused operations of torch's build.
extension TorchGenerator {
    private static func polynomial(_ x: Float, _ coefficients: [Float]) -> Float {
        coefficients.dropFirst().reduce(coefficients.first ?? 0) { $1.addingProduct($0, x) }
    }

    private static let logarithmTerms: [Float] = [
        7.037_683_629_2e-2, -1.151_461_031_0e-1, 1.167_699_874_0e-1, -1.242_014_084_6e-1, 1.424_932_278_7e-1,
        -1.666_805_766_5e-1, 2.000_071_476_5e-1, -2.499_999_399_3e-1, 3.333_333_117_4e-1,
    ]
    private static let sineTerms: [Float] = [-1.951_529_589_1e-4, 8.332_160_873_6e-3, -1.666_665_461_1e-1]
    private static let cosineTerms: [Float] = [
        2.443_315_711_809_948e-5, -1.388_731_625_493_765e-3, 4.166_664_568_298_827e-2,
    ]

    /// ln x for 0 < x ≤ 1.
    private static func logarithm(_ value: Float) -> Float {
        let bits = max(value, .leastNormalMagnitude).bitPattern
        var exponent = Float(Int32(bits >> 23) - 126)
        var x = Float(bitPattern: bits & 0x807f_ffff | 0x3f00_0000)
        if x < 0.707_106_781_186_547_524 {
            exponent -= 1
            x = (x - 1) + x
        } else {
            x -= 1
        }
        let z = x * x
        var y = (polynomial(x, logarithmTerms) * x * z).addingProduct(exponent, -2.121_944_40e-4)
        y.addProduct(-z, 0.5)
        return (x + y).addingProduct(exponent, 0.693_359_375)
    }

    /// For x ≥ 0.
    private static func sineAndCosine(_ value: Float) -> (Float, Float) {
        let octant = (Int32(value * 1.273_239_544_735_16) + 1) & ~1
        let y = Float(octant)
        var x = value.addingProduct(y, -0.785_156_25)
        x.addProduct(y, -2.418_756_484_985_351_562_5e-4)
        x.addProduct(y, -3.774_894_977_445_941_08e-8)
        let z = x * x
        let cosine = (-(z * 0.5)).addingProduct(polynomial(z, cosineTerms) * z, z) + 1
        let sine = x.addingProduct(polynomial(z, sineTerms) * z, x)
        let isSwapped = octant & 2 != 0
        let (first, second) = isSwapped ? (cosine, sine) : (sine, cosine)
        return (octant & 4 != 0 ? -first : first, (octant - 2) & 4 == 0 ? -second : second)
    }
}

extension Float {
    /// To nearest, ties to even.
    package var roundedToBF16: Float {
        guard isFinite else { return self }
        let rounding = 0x7fff + (bitPattern >> 16 & 1)
        return Float(bitPattern: (bitPattern &+ rounding) & 0xffff_0000)  // Safe: a finite pattern has room for the carry.
    }
}
