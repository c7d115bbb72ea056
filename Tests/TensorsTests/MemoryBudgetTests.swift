import Glibc
import Platform
import Synchronization
import Tensors
import Testing

@Suite struct MemoryBudgetTests {
    private func block(_ bytes: Int, _ budget: MemoryBudget, _ category: MemoryCategory = .activations) throws -> Storage {
        try Storage(byteCount: bytes, budget: budget, category: category)
    }

    @Test("live, kept and peaks, by category")
    func accounting() throws {
        let budget = MemoryBudget()
        var first: Storage? = try block(1000, budget, .weights)
        let size = budget.statistics.live
        #expect(size >= 1000 && size < 1150)
        let second = try block(1000, budget, .cache)
        #expect(budget.statistics.live == 2 * size && budget.statistics.byCategory[MemoryCategory.weights.rawValue] == size)
        first = nil
        _ = first
        #expect(budget.statistics.live == size && budget.statistics.kept == size && budget.statistics.peak == 2 * size)
        #expect(budget.statistics.byCategory[MemoryCategory.weights.rawValue] == 0)
        #expect(budget.statistics.peakByCategory[MemoryCategory.weights.rawValue] == size)
        budget.trim()
        #expect(budget.statistics.kept == 0)
        budget.resetPeak()
        #expect(budget.statistics.peak == size && budget.statistics.peakLive == size)
        _ = second.byteCount
    }

    @Test("a freed block serves the next request of its size")
    func reuse() throws {
        let budget = MemoryBudget()
        let address = try { UInt(bitPattern: try block(5000, budget).base) }()
        let again = try block(4990, budget)
        #expect(UInt(bitPattern: again.base) == address && budget.statistics.kept == 0)
        #expect(address % UInt(MemoryBudget.alignment) == 0)
    }

    @Test("the limit: an error with the missing bytes; kept blocks go first; afterwards everything works")
    func limit() throws {
        let budget = MemoryBudget(limit: 64 * 1024)
        do { _ = try block(40 * 1024, budget) }
        #expect(budget.statistics.kept == 40 * 1024)
        let large = try block(48 * 1024, budget)  // fits only because the kept block is given back
        #expect(budget.statistics.kept == 0)
        let error = #expect(throws: PEFTError.self) { _ = try block(32 * 1024, budget, .cache) }
        #expect(error?.kind == .memory && error?.detail == 16 * 1024 && error?.message.contains("cache") == true)
        #expect(budget.statistics.live == 48 * 1024)
        _ = try block(16 * 1024, budget)
        _ = large.byteCount
    }

    @Test("large blocks that are given back are the machine's at once, also between others")
    func pages() throws {
        let budget = MemoryBudget()
        for bytes in [200 << 10, 3 << 20] {
            let page = Int(sysconf(Int32(_SC_PAGESIZE)))
            var blocks = try (0..<16).map { (_) throws -> Storage? in try block(bytes, budget) }
            let addresses = blocks.map { $0?.base }
            if bytes >= 2 << 20 { #expect(addresses.allSatisfy { UInt(bitPattern: $0) % (2 << 20) == 0 }) }
            for block in blocks.compactMap({ $0 }) { memset(block.base, 1, bytes) }
            for index in stride(from: 1, to: 16, by: 2) { blocks[index] = nil }
            budget.trim()
            var there: UInt8 = 0
            let mapped = addresses.map { mincore($0, page, &there) == 0 }
            // Another thread of the tests may have got one of those pages since.
            #expect((0..<16).filter { $0 % 2 == 0 && mapped[$0] }.count == 8 && (0..<16).filter { $0 % 2 == 1 && mapped[$0] }.count <= 4)
            withExtendedLifetime(blocks) {}
        }
    }

    @Test("sizes that cannot be", arguments: [-1, Int.max, Int.max / 2])
    func absurd(bytes: Int) {
        let error = #expect(throws: PEFTError.self) { _ = try block(bytes, MemoryBudget()) }
        #expect(error?.kind == .memory)
    }

    @Test("the machine refuses: an error, and the accounts are right")
    func refusal() throws {
        let attempts = Mutex(0)
        let host = HostAllocator(
            allocate: { bytes, alignment in
                attempts.withLock { $0 += 1 }
                return bytes > 10_000 ? nil : aligned_alloc(alignment, bytes)
            }, free: { pointer, _ in free(pointer) })
        let budget = MemoryBudget(host: host)
        let small = try block(1024, budget)
        let error = #expect(throws: PEFTError.self) { _ = try block(20_000, budget) }
        #expect(error?.kind == .memory && budget.statistics.live == 1024)
        #expect(attempts.withLock { $0 } == 3, "one small, two tries for the large one")
        _ = small.byteCount
    }

    @Test("the host's allocator gets back exactly what it gave")
    func hostBalance() throws {
        let balance = Mutex<[UInt: Int]>([:])
        do {
            let host = HostAllocator(
                allocate: { bytes, alignment in
                    guard let pointer = aligned_alloc(alignment, bytes) else { return nil }
                    balance.withLock { $0[UInt(bitPattern: pointer)] = bytes }
                    return pointer
                },
                free: { pointer, bytes in
                    balance.withLock { if $0[UInt(bitPattern: pointer)] == bytes { $0[UInt(bitPattern: pointer)] = nil } }
                    free(pointer)
                })
            let budget = MemoryBudget(host: host)
            var blocks: [Storage] = []
            for size in stride(from: 1, to: 20_000, by: 777) { blocks.append(try block(size, budget)) }
            blocks.removeAll()
            _ = try block(3000, budget)
        }
        #expect(balance.withLock { $0.isEmpty })
    }

    @Test("a planning budget counts what a real one takes, without taking it")
    func planning() throws {
        let budgets = [MemoryBudget(), MemoryBudget.planning()]
        for budget in budgets {
            var blocks: [Storage] = []
            for size in [100, 5000, 70_000, 100] { blocks.append(try block(size, budget)) }
            blocks.removeFirst(2)
            blocks.append(try block(5100, budget))
            blocks.append(try block(90, budget, .scratch))
            #expect(blocks.allSatisfy { $0.isReal } == (budget === budgets[0]))
        }
        let (real, planned) = (budgets[0].statistics, budgets[1].statistics)
        #expect(real.peak == planned.peak && real.peakLive == planned.peakLive && real.kept == planned.kept && real.peakByCategory == planned.peakByCategory)
        let huge = MemoryBudget.planning(limit: 1 << 50)
        _ = try block(1 << 49, huge)
        #expect(huge.statistics.peakLive == 1 << 49)
        #expect(throws: PEFTError.self) { _ = try block(1 << 51, huge) }
    }

    @Test("threads allocate and free at the same time: the accounts end at zero")
    func concurrent() async throws {
        let budget = MemoryBudget()
        try await withThrowingTaskGroup(of: Void.self) { group in
            for task in 0..<4 {
                group.addTask {
                    var held: [Storage] = []
                    for index in 0..<2000 {
                        held.append(try Storage(byteCount: (index * 37 + task) % 9000, budget: budget, category: .scratch))
                        if held.count > 8 { held.remove(at: index % 8) }
                    }
                }
            }
            try await group.waitForAll()
        }
        #expect(budget.statistics.live == 0)
    }
}
