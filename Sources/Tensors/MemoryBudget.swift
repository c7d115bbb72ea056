internal import Platform
internal import Glibc

/// What a piece of memory is for. A plan and the statistics report bytes by category.
package enum MemoryCategory: Int, Sendable, CaseIterable {
    case weights, adapters, gradients, optimizer, activations, cache, scratch

    package var name: String { String(describing: self) }
}

/// Allocation functions of the host. `allocate` may return nil; both must be callable from any thread.
@safe package struct HostAllocator: Sendable {
    package typealias Allocate = @Sendable (_ byteCount: Int, _ alignment: Int) -> UnsafeMutableRawPointer?
    package typealias Free = @Sendable (_ pointer: UnsafeMutableRawPointer, _ byteCount: Int) -> Void

    package let allocate: Allocate
    package let free: Free

    package init(allocate: @escaping Allocate, free: @escaping Free) {
        unsafe self.allocate = allocate
        unsafe self.free = free
    }
}

/// Where all data-sized memory of one context comes from: a failable allocator with exact accounting and a hard limit.
///
/// Freed blocks are kept for reuse in size classes (a training step asks for the same sizes again and again, and fresh
/// pages cost more than the arithmetic on them); kept blocks count as used until they are given back, which happens
/// before the limit is allowed to refuse anything.
package final class MemoryBudget: Sendable {
    /// A snapshot in bytes.
    package struct Statistics: Sendable {
        /// Highest ever of live + kept: what the process had.
        package var peak = 0
        /// Highest ever of live: the smallest limit under which the same work succeeds.
        package var peakLive = 0
        package var live = 0
        /// Freed blocks kept for reuse.
        package var kept = 0
        package var byCategory = [Int](repeating: 0, count: MemoryCategory.allCases.count)
        /// Highest ever of each category by itself.
        package var peakByCategory = [Int](repeating: 0, count: MemoryCategory.allCases.count)
    }

    private struct State {
        var statistics = Statistics()
        /// Kept blocks by size class, the last freed last.
        var kept: [Int: [Kept]] = [:]
        /// Counts frees.
        var clock: UInt64 = 0
        /// Highest ever of live, whatever `resetPeak` says.
        var mostLive = 0
    }

    /// The address is a number because raw pointers are not Sendable.
    private struct Kept {
        let address: UInt
        let freedAt: UInt64
    }

    /// What live and kept together may exceed the most that was ever live by, beside a 32nd of it: with less, a step takes pages anew that it gave back.
    private static let slack = 4 << 20

    /// Every block starts on a cache line.
    package static let alignment = 64
    /// Blocks of at least this size begin on a huge page and ask for them: products walk through rows that lie pages apart,
    /// and each page of 4 kB must be looked up (2 % of a training step).
    private static let hugePage = 2 << 20
    /// Blocks of at least this size are pages of their own: what is given back is the machine's at once. The C library would keep most of
    /// it in pieces between others (30 MB after a few training steps).
    private static let ownPages = 128 << 10

    /// Bytes; `Int.max` means no limit.
    package let limit: Int
    private let host: HostAllocator?
    /// False in a planning budget: sizes are counted, no memory is taken.
    private let isReal: Bool
    private let state = Guarded(State())

    package init(limit: Int = .max, host: HostAllocator? = nil) {
        self.limit = limit
        self.host = host
        self.isReal = true
    }

    private init(planningWithin limit: Int) {
        self.limit = limit
        self.host = nil
        self.isReal = false
    }

    /// A budget that only counts: executing a step against it tells what the step will need, to the byte.
    package static func planning(limit: Int = .max) -> MemoryBudget { MemoryBudget(planningWithin: limit) }

    /// Bytes that can still be taken; nil: no limit.
    package var room: Int? { limit == .max ? nil : limit - statistics.live }

    package var statistics: Statistics { state.withLock { $0.statistics } }

    /// Starts the peaks anew from the present use.
    package func resetPeak() {
        state.withLock { state in
            state.statistics.peak = state.statistics.live + state.statistics.kept
            state.statistics.peakLive = state.statistics.live
            state.statistics.peakByCategory = state.statistics.byCategory
        }
    }

    /// Sizes are rounded up to eighths of a power of two, so that a freed block fits the next request of about its size.
    package static func sizeClass(_ byteCount: Int) -> Int {
        guard byteCount > 512 else { return max((byteCount + 63) & ~63, 64) }
        let step = 1 << (Int.bitWidth - 1 - (byteCount - 1).leadingZeroBitCount - 3)
        return (byteCount + step - 1) & ~(step - 1)
    }

    /// Takes at least `byteCount` bytes (uninitialised).
    /// - Throws: `.memory` with the numbers when the limit or the machine refuses.
    func allocate(_ byteCount: Int, _ category: MemoryCategory) throws(PEFTError) -> UnsafeMutableRawPointer? {
        guard byteCount >= 0, byteCount < Int.max / 2 else {
            throw PEFTError(.memory, "a block of \(byteCount) bytes was asked for", detail: Int64(byteCount))
        }
        let size = MemoryBudget.sizeClass(byteCount)
        let reused: UInt?? = state.withLock { state in
            if let block = state.kept[size]?.popLast() {
                state.statistics.kept -= size
                count(size, category, in: &state.statistics)
                return .some(.some(block.address))
            }
            if limit - state.statistics.live - state.statistics.kept < size { giveBack(&state) }
            // Steps of changing shapes leave blocks that fit nothing any more: live and kept together stay near the most
            // that was ever live.
            let total = state.statistics.live + size
            let most = max(state.mostLive, total)
            state.mostLive = most
            giveBackOldest(total + state.statistics.kept - (most + most / 32 + MemoryBudget.slack), &state)
            guard limit - state.statistics.live >= size else { return nil }
            count(size, category, in: &state.statistics)
            return .some(.none)
        }
        guard let reused else {
            let now = statistics
            throw PEFTError(
                .memory, "\(category.name): \(size) bytes do not fit in the memory budget of \(limit) bytes, of which \(now.live) are in use",
                detail: Int64(now.live + size - limit))
        }
        guard isReal else { return nil }
        if let reused { return unsafe UnsafeMutableRawPointer(bitPattern: reused) }
        if let fresh = unsafe systemAllocate(size) { return unsafe fresh }
        state.withLock { giveBack(&$0) }
        if let fresh = unsafe systemAllocate(size) { return unsafe fresh }
        state.withLock { count(-size, category, in: &$0.statistics) }
        throw PEFTError(.memory, "\(category.name): the machine has no \(size) bytes left", detail: Int64(size))
    }

    /// Returns a block of `allocate`; it is kept for reuse.
    func free(_ pointer: UnsafeMutableRawPointer?, _ byteCount: Int, _ category: MemoryCategory) {
        let size = MemoryBudget.sizeClass(byteCount)
        state.withLock { state in
            count(-size, category, in: &state.statistics)
            state.clock += 1
            state.kept[size, default: []].append(Kept(address: UInt(bitPattern: pointer), freedAt: state.clock))  // address 0 when planning
            state.statistics.kept += size
        }
    }

    /// Gives all kept blocks back to the machine.
    package func trim() {
        state.withLock { giveBack(&$0) }
    }

    deinit { trim() }

    private func count(_ size: Int, _ category: MemoryCategory, in statistics: inout Statistics) {
        statistics.live += size
        statistics.peakLive = max(statistics.peakLive, statistics.live)
        statistics.peak = max(statistics.peak, statistics.live + statistics.kept)
        statistics.byCategory[category.rawValue] += size
        statistics.peakByCategory[category.rawValue] = max(statistics.peakByCategory[category.rawValue], statistics.byCategory[category.rawValue])
    }

    private func giveBack(_ state: inout State) {
        for (size, blocks) in state.kept {
            for block in blocks { systemFree(block, size) }
        }
        state.kept = [:]
        state.statistics.kept = 0
    }

    /// Gives back at least `bytes` of kept blocks, those freed longest ago first; nothing for `bytes` ≤ 0.
    private func giveBackOldest(_ bytes: Int, _ state: inout State) {
        var left = bytes
        while left > 0 {
            var oldest: (size: Int, freedAt: UInt64)?
            for (size, blocks) in state.kept {
                if let first = blocks.first, first.freedAt < oldest?.freedAt ?? .max { oldest = (size, first.freedAt) }
            }
            guard let size = oldest?.size, let block = state.kept[size]?.removeFirst() else { return }
            systemFree(block, size)
            state.statistics.kept -= size
            left -= size
        }
    }

    private func systemFree(_ block: Kept, _ size: Int) {
        if let pointer = unsafe UnsafeMutableRawPointer(bitPattern: block.address) { unsafe systemFree(pointer, size) }
    }

    private func systemAllocate(_ size: Int) -> UnsafeMutableRawPointer? {
        if let host { return unsafe host.allocate(size, MemoryBudget.alignment) }
        if size >= MemoryBudget.ownPages { return unsafe MemoryBudget.mapPages(size) }
        var pointer: UnsafeMutableRawPointer?
        guard unsafe posix_memalign(&pointer, MemoryBudget.alignment, size) == 0 else { return nil }
        return unsafe pointer
    }

    private func systemFree(_ pointer: UnsafeMutableRawPointer, _ size: Int) {
        if let host { return unsafe host.free(pointer, size) }
        if size >= MemoryBudget.ownPages { unsafe munmap(pointer, size) } else { unsafe Glibc.free(pointer) }
    }

    /// Fresh pages, from the beginning of a huge one where that is worth it.
    private static func mapPages(_ size: Int) -> UnsafeMutableRawPointer? {
        let isLarge = size >= hugePage
        let length = isLarge ? size + hugePage : size
        guard let base = unsafe mmap(nil, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), unsafe base != MAP_FAILED else { return nil }
        guard isLarge else { return unsafe base }
        let before = (hugePage - Int(bitPattern: base) % hugePage) % hugePage
        let start = unsafe base + before
        // Pages are 4 kB; sizes of this size class are multiples of that.
        if before > 0 { unsafe munmap(base, before) }
        if before < hugePage { unsafe munmap(start + size, hugePage - before) }
        unsafe madvise(start, size, MADV_HUGEPAGE)  // a hint: a refusal is no error
        return unsafe start
    }
}
