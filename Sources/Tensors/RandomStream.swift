internal import Glibc
internal import Kernels

/// A counter-based stream of random numbers (Philox 4x32-10, Salmon et al. 2011): the whole state is (seed, position), so a
/// checkpoint stores two integers and a resumed run draws the same numbers.
package struct RandomStream: Sendable, Equatable {
    package let seed: UInt64
    /// Words drawn so far.
    package var position: UInt64

    package init(seed: UInt64, position: UInt64 = 0) {
        self.seed = seed
        self.position = position
    }

    /// A stream of its own for a purpose (a tensor's name, "shuffle", …) under one seed: FNV-1a of the name into the seed.
    package init(seed: UInt64, purpose: String) {
        var hash: UInt64 = 0xcbf2_9ce4_8422_2325
        for byte in purpose.utf8 { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01b3 }  // Safe: a hash wraps by definition.
        self.init(seed: seed ^ hash)
    }

    package mutating func nextWord() -> UInt32 {
        var word: UInt32 = 0
        unsafe pk_philox(seed, position, &word, 1)
        position &+= 1  // Safe: 2⁶⁴ draws do not happen; wrapping would only repeat the stream.
        return word
    }

    /// The next words, faster than one by one.
    package mutating func words(_ count: Int) -> [UInt32] {
        var words = [UInt32](repeating: 0, count: max(count, 0))
        unsafe words.withUnsafeMutableBufferPointer { unsafe pk_philox(seed, position, $0.baseAddress, $0.count) }
        position &+= UInt64(words.count)  // Safe: as in nextWord.
        return words
    }

    /// Uniform in [0, 1), 24 bits.
    package mutating func uniform() -> Float { Float(nextWord() >> 8) * 0x1p-24 }

    /// Uniform in 0..<bound without bias (rejection); `bound` 0 gives 0.
    package mutating func below(_ bound: UInt32) -> UInt32 {
        guard bound > 1 else { return 0 }
        let limit = UInt32.max - UInt32.max % bound
        while true {
            let word = nextWord()
            if word < limit { return word % bound }
        }
    }

    /// Standard normal (Box–Muller; the cosine half only, so that one value costs exactly two words).
    package mutating func normal() -> Float {
        let u = Double(nextWord()) + 1
        let v = Double(nextWord())
        return Float((-2 * log(u * 0x1p-32)).squareRoot() * cos(2 * Double.pi * v * 0x1p-32))
    }

    /// Many standard normal numbers, both halves of Box–Muller: faster than one by one, and another stream.
    package mutating func normals(_ count: Int) -> [Float] {
        var values = [Float](repeating: 0, count: max(count, 0))
        let start = skipNormals(count)
        unsafe values.withUnsafeMutableBufferPointer { unsafe pk_normals(0, $0.baseAddress, $0.count, seed, start, 0, 1) }
        return values
    }

    /// Leaves out so many of `normals`: the position they begin at.
    package mutating func skipNormals(_ count: Int) -> UInt64 {
        let start = position
        position &+= UInt64(max(count, 0) + max(count, 0) % 2)  // Safe: as in nextWord; a count of values in memory is far from Int.max.
        return start
    }

    /// A permutation of 0..<count (Fisher–Yates).
    package mutating func permutation(_ count: Int) -> [Int] {
        var order = Array(0..<count)
        for index in stride(from: count - 1, to: 0, by: -1) {
            order.swapAt(index, Int(below(UInt32(clamping: index + 1))))
        }
        return order
    }
}
