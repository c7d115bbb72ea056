/// numpy's `default_rng`, bit for bit: PCG64 (O'Neill 2014, XSL RR 128/64) seeded through a SeedSequence.
package struct NumPyGenerator: Sendable {
    private var state: UInt128
    private let increment: UInt128
    /// The high half of a word whose low half was used.
    private var half: UInt32?

    package init(seed: UInt64) {
        let words = SeedSequence(seed).words(8)
        let pairs = (0..<4).map { UInt128(words[2 * $0]) | UInt128(words[2 * $0 + 1]) << 32 }
        increment = (pairs[2] << 64 | pairs[3]) << 1 | 1
        state = increment &+ (pairs[0] << 64 | pairs[1])  // Safe: arithmetic modulo 2¹²⁸.
        step()
    }

    private mutating func step() {
        let multiplier = UInt128(2_549_297_995_355_413_924) << 64 | UInt128(4_865_540_595_714_422_341)
        state = state &* multiplier &+ increment  // Safe: arithmetic modulo 2¹²⁸.
    }

    private mutating func nextLong() -> UInt64 {
        step()
        let folded = UInt64(truncatingIfNeeded: state >> 64) ^ UInt64(truncatingIfNeeded: state)
        let turn = UInt64(truncatingIfNeeded: state >> 122)
        return folded >> turn | folded << ((64 - turn) & 63)
    }

    private mutating func nextWord() -> UInt32 {
        if let half {
            self.half = nil
            return half
        }
        let word = nextLong()
        half = UInt32(truncatingIfNeeded: word >> 32)
        return UInt32(truncatingIfNeeded: word)
    }

    /// 0…most by Lemire's multiplication.
    private mutating func bounded(_ most: UInt32) -> Int {
        guard most > 0 else { return 0 }
        guard most < .max else { return Int(nextWord()) }
        let range = UInt64(most) + 1
        var product = UInt64(nextWord()) * range
        if UInt32(truncatingIfNeeded: product) < most {
            let threshold = UInt32(UInt64(UInt32.max - most) % range)
            while UInt32(truncatingIfNeeded: product) < threshold { product = UInt64(nextWord()) * range }
        }
        return Int(product >> 32)
    }

    /// 0…most by masking and rejection.
    private mutating func masked(_ most: UInt32) -> Int {
        guard most > 0 else { return 0 }
        let mask = UInt32.max >> UInt32(most.leadingZeroBitCount)
        while true {
            let value = nextWord() & mask
            if value <= most { return Int(value) }
        }
    }

    /// `choice(population, count, replace=False)`; both below 2³².
    package mutating func choice(of population: Int, _ count: Int) -> [Int] {
        guard count > 0, count <= population else { return [] }
        var chosen: [Int]
        if population > 10000, count > population / 50 {
            chosen = Array(0..<population)
            shuffle(&chosen, from: max(population - count, 1))
            return Array(chosen.suffix(count))
        }
        // Floyd's algorithm (Bentley & Floyd 1987).
        chosen = []
        var seen: Set<Int> = []
        for last in population - count..<population {
            let value = bounded(UInt32(clamping: last))
            let taken = seen.insert(value).inserted ? value : last
            seen.insert(taken)
            chosen.append(taken)
        }
        shuffle(&chosen, from: 1)
        return chosen
    }

    private mutating func shuffle(_ values: inout [Int], from first: Int) {
        for index in stride(from: values.count - 1, through: first, by: -1) {
            values.swapAt(index, bounded(UInt32(clamping: index)))
        }
    }

    /// `shuffle` of a whole array, which draws in another way than `choice`.
    package mutating func shuffle(_ values: inout [Int32]) {
        for index in stride(from: values.count - 1, through: 1, by: -1) {
            values.swapAt(index, masked(UInt32(clamping: index)))
        }
    }
}

/// numpy's SeedSequence: spreads a small seed over a pool of four words (after O'Neill's `seed_seq_fe`).
private struct SeedSequence {
    private var pool: [UInt32] = []
    private var constant: UInt32 = 0x43b0_d7e5

    init(_ seed: UInt64) {
        let entropy = [UInt32(truncatingIfNeeded: seed), UInt32(truncatingIfNeeded: seed >> 32), 0, 0]
        for word in entropy { pool.append(hashed(word)) }
        for source in 0..<4 {
            for target in 0..<4 where target != source {
                // Safe: hashing is arithmetic modulo 2³², here and below.
                let mixed = 0xca01_f9dd &* pool[target] &- 0x4973_f715 &* hashed(pool[source])
                pool[target] = mixed ^ mixed >> 16
            }
        }
    }

    private mutating func hashed(_ word: UInt32) -> UInt32 {
        let value = word ^ constant
        constant = constant &* 0x931e_8875
        let product = value &* constant
        return product ^ product >> 16
    }

    func words(_ count: Int) -> [UInt32] {
        var constant: UInt32 = 0x8b51_f9dd
        return (0..<count).map { index in
            let value = pool[index % 4] ^ constant
            constant = constant &* 0x58f3_8ded
            let product = value &* constant
            return product ^ product >> 16
        }
    }
}
