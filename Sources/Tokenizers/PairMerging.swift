/// Joins adjacent pairs of `symbols`, lowest rank first, leftmost first among equals, until no pair has a merge.
func mergePairs(_ symbols: [EncodedToken], _ merges: MergeTable) -> [EncodedToken] {
    if symbols.count < 2 { return symbols }
    // Words are short: looking at all pairs for each merge beats a queue. A line without spaces, or a whole text of a
    // model without pre-tokenizer, has millions of symbols: there only n·log n will do.
    return symbols.count <= 48 ? mergeByScan(symbols, merges) : mergeByQueue(symbols, merges)
}

private let noMerge = MergeTable.Merge(rank: .max, id: -1)

private func mergeByScan(_ symbols: [EncodedToken], _ merges: MergeTable) -> [EncodedToken] {
    var symbols = symbols
    /// The merge of symbol i with its right neighbour; the last has none.
    var pairs = [MergeTable.Merge](repeating: noMerge, count: symbols.count)
    for i in 0..<symbols.count - 1 { pairs[i] = merges.merge(symbols[i].id, symbols[i + 1].id) ?? noMerge }
    while true {
        var best = 0
        for i in 1..<pairs.count where pairs[i].rank < pairs[best].rank { best = i }
        guard pairs[best].id >= 0 else { return symbols }
        symbols[best] = EncodedToken(
            id: pairs[best].id, byteCount: symbols[best].byteCount + symbols[best + 1].byteCount)
        symbols.remove(at: best + 1)
        pairs.remove(at: best + 1)
        if best > 0 { pairs[best - 1] = merges.merge(symbols[best - 1].id, symbols[best].id) ?? noMerge }
        let isLast = best + 1 == symbols.count
        pairs[best] = isLast ? noMerge : merges.merge(symbols[best].id, symbols[best + 1].id) ?? noMerge
        if symbols.count == 1 { return symbols }
    }
}

/// The symbols as a doubly linked list by index, the possible merges in a heap of `rank << 32 | left index`. An entry
/// is stale when the pair at its index no longer has that rank.
private func mergeByQueue(_ symbols: [EncodedToken], _ merges: MergeTable) -> [EncodedToken] {
    var symbols = symbols
    let count = symbols.count
    var next = (0..<count).map { Int32(clamping: $0 + 1) }
    var previous = (0..<count).map { Int32(clamping: $0 - 1) }
    var queue = MinimumHeap()

    func key(_ merge: MergeTable.Merge, at index: Int) -> UInt64 {
        UInt64(UInt32(bitPattern: merge.rank)) << 32 | UInt64(index)
    }
    for i in 0..<count - 1 {
        if let merge = merges.merge(symbols[i].id, symbols[i + 1].id) { queue.push(key(merge, at: i)) }
    }
    while let top = queue.pop() {
        let left = Int(top & 0xFFFF_FFFF)
        let right = Int(next[left])
        guard symbols[left].byteCount > 0, right < count,
            let merge = merges.merge(symbols[left].id, symbols[right].id), key(merge, at: left) == top
        else { continue }
        symbols[left] = EncodedToken(id: merge.id, byteCount: symbols[left].byteCount + symbols[right].byteCount)
        symbols[right].byteCount = 0  // gone
        let after = Int(next[right])
        next[left] = Int32(clamping: after)
        if after < count {
            previous[after] = Int32(clamping: left)
            if let merge = merges.merge(symbols[left].id, symbols[after].id) { queue.push(key(merge, at: left)) }
        }
        let before = Int(previous[left])
        if before >= 0, let merge = merges.merge(symbols[before].id, symbols[left].id) {
            queue.push(key(merge, at: before))
        }
    }
    return symbols.filter { $0.byteCount > 0 }
}

/// A binary heap: the smallest key comes out first.
private struct MinimumHeap {
    private var keys: [UInt64] = []

    mutating func push(_ key: UInt64) {
        var child = keys.count
        keys.append(key)
        while child > 0 {
            let parent = (child - 1) / 2
            if keys[parent] <= key { break }
            keys[child] = keys[parent]
            child = parent
        }
        keys[child] = key
    }

    mutating func pop() -> UInt64? {
        guard let top = keys.first, let last = keys.popLast() else { return nil }
        if keys.isEmpty { return top }
        var parent = 0
        while true {
            var child = 2 * parent + 1
            guard child < keys.count else { break }
            if child + 1 < keys.count, keys[child + 1] < keys[child] { child += 1 }
            if last <= keys[child] { break }
            keys[parent] = keys[child]
            parent = child
        }
        keys[parent] = last
        return top
    }
}
