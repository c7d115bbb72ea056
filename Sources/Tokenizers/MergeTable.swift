/// The merges of a BPE model: pair of tokens -> rank (lower merges first) and the token they become.
struct MergeTable: Sendable {
    struct Merge: Sendable {
        var rank: Int32
        var id: Int32
    }

    /// Open addressing with linear steps, at most half full; `free` marks an empty slot, ids are never negative.
    private var keys: [UInt64]
    private var merges: [Merge]
    /// Odd and random: multiplication by it is a universal hash, so no file can be made to collide.
    private let multiplier = UInt64.random(in: .min ... .max) | 1
    private let shift: Int

    private static let free = UInt64.max

    /// Room for `count` merges.
    init(count: Int) {
        var bits = 4
        while 1 << bits < count * 2 { bits += 1 }
        shift = 64 - bits
        keys = [UInt64](repeating: MergeTable.free, count: 1 << bits)
        merges = [Merge](repeating: Merge(rank: 0, id: 0), count: 1 << bits)
    }

    /// Of a pair given twice the later one counts, as in HF `tokenizers`. At most as many as `init` made room for.
    mutating func insert(_ left: Int32, _ right: Int32, rank: Int32, id: Int32) {
        let slot = slot(MergeTable.key(left, right))
        keys[slot] = MergeTable.key(left, right)
        merges[slot] = Merge(rank: rank, id: id)
    }

    func merge(_ left: Int32, _ right: Int32) -> Merge? {
        let slot = slot(MergeTable.key(left, right))
        return keys[slot] == MergeTable.free ? nil : merges[slot]
    }

    private static func key(_ left: Int32, _ right: Int32) -> UInt64 {
        UInt64(UInt32(bitPattern: left)) << 32 | UInt64(UInt32(bitPattern: right))
    }

    private func slot(_ key: UInt64) -> Int {
        // Safe to wrap: hash arithmetic; the shift leaves an index within the table.
        var slot = Int(truncatingIfNeeded: (key &* multiplier) >> UInt64(shift))
        while keys[slot] != MergeTable.free, keys[slot] != key { slot = (slot + 1) & (keys.count - 1) }
        return slot
    }
}
