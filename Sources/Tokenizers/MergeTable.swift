internal import Platform

/// The merges of a BPE model: pair of tokens -> rank (lower merges first) and the token they become.
struct MergeTable: Sendable {
    struct Merge: Sendable {
        var rank: Int32
        var id: Int32
    }

    private struct Slot: Sendable {
        var key = MergeTable.free
        var merge = Merge(rank: 0, id: 0)
    }

    /// Open addressing with linear steps, at most half full; `free` marks an empty slot, ids are never negative.
    private var slots: [Slot]
    /// Odd and random: multiplication by it is a universal hash, so no file can be made to collide.
    private let multiplier = UInt64.random(in: .min ... .max) | 1
    private let shift: Int

    private static let free = UInt64.max

    /// Room for `count` merges.
    init(count: Int) {
        var bits = 4
        while 1 << bits < count * 2 { bits += 1 }
        shift = 64 - bits
        slots = [Slot](repeating: Slot(), count: 1 << bits)
    }

    /// Of a pair given twice the later one counts, as in HF `tokenizers`. At most as many as `init` made room for.
    mutating func insert(_ left: Int32, _ right: Int32, rank: Int32, id: Int32) {
        let key = MergeTable.key(left, right)
        slots[slot(key)] = Slot(key: key, merge: Merge(rank: rank, id: id))
    }

    func merge(_ left: Int32, _ right: Int32) -> Merge? {
        let slot = slots[slot(MergeTable.key(left, right))]
        return slot.key == MergeTable.free ? nil : slot.merge
    }

    private static func key(_ left: Int32, _ right: Int32) -> UInt64 {
        UInt64(UInt32(bitPattern: left)) << 32 | UInt64(UInt32(bitPattern: right))
    }

    private func slot(_ key: UInt64) -> Int {
        // Safe to wrap: hash arithmetic; the shift leaves an index within the table.
        var slot = Int(truncatingIfNeeded: (key &* multiplier) >> UInt64(shift))
        while slots[slot].key != MergeTable.free, slots[slot].key != key { slot = (slot + 1) & (slots.count - 1) }
        return slot
    }
}

extension MergeTable {
    typealias Pair = (left: ArraySlice<UInt8>, right: ArraySlice<UInt8>)

    /// "left right"
    static func pair(_ line: ArraySlice<UInt8>, _ index: Int) throws(PEFTError) -> Pair {
        guard let space = line.firstIndex(of: 0x20), !line[(space + 1)...].contains(0x20) else {
            throw PEFTError(
                .format,
                "merge \(index) \"\(String(decoding: line, as: UTF8.self))\" must be two tokens with a space between")
        }
        return (line[..<space], line[(space + 1)...])
    }

    /// `count` merges in the order of their rank; of the right tokens so many first bytes are no part of what they become. Errors: `.format` for a merge with a token
    /// that the vocabulary does not have.
    init(_ count: Int, _ vocabulary: Vocabulary, droppedPrefix: Int = 0, pair: (_ rank: Int) throws(PEFTError) -> Pair) throws(PEFTError) {
        self.init(count: count)
        var last: Int32 = -1
        for rank in 0..<count {
            let (left, right) = try pair(rank)
            // Vocabularies have their tokens in the order of the merges that make them, so that most are found behind the last.
            let found = unsafe left.withUnsafeBytes { left in
                unsafe right.withUnsafeBytes { right in
                    let rest = unsafe UnsafeRawBufferPointer(rebasing: right.dropFirst(droppedPrefix))
                    let isNext = unsafe last < .max ? vocabulary.finds(last + 1, left, rest) : false
                    return unsafe (left: vocabulary.id(of: left), right: vocabulary.id(of: right), whole: isNext ? last + 1 : vocabulary.id(of: (Array(left) + rest)[...]))
                }
            }
            func checked(_ id: Int32?, _ token: @autoclosure () -> ArraySlice<UInt8>) throws(PEFTError) -> Int32 {
                guard let id else { throw PEFTError(.format, "merge \(rank): \"\(String(decoding: token(), as: UTF8.self))\" is not in the vocabulary") }
                return id
            }
            let (leftID, rightID) = (try checked(found.left, left), try checked(found.right, right))
            last = try checked(found.whole, left + right.dropFirst(droppedPrefix))
            insert(leftID, rightID, rank: Int32(clamping: rank), id: last)
        }
    }
}
