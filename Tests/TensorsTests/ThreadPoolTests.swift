import Glibc
import Synchronization
import Tensors
import Testing

@Suite struct ThreadPoolTests {
    /// Counts how often each part of a job ran.
    private final class Counts: Sendable {
        private let counts: Mutex<[Int]>
        init(_ parts: Int) { counts = Mutex(Array(repeating: 0, count: parts)) }
        func count(_ part: Int) { counts.withLock { $0[part] += 1 } }
        var all: [Int] { counts.withLock { $0 } }
    }

    @Test("every part runs exactly once", arguments: [1, 2, 4, 7])
    func once(threads: Int) {
        let pool = ThreadPool(threads: threads)
        for parts in [0, 1, 2, 3, 64, 1000] {
            let counts = Counts(parts)
            pool.run(parts) { counts.count($0) }
            #expect(counts.all == Array(repeating: 1, count: parts))
        }
    }

    @Test("thousands of short jobs, with pauses long enough for the workers to fall asleep")
    func stress() {
        let pool = ThreadPool(threads: 4)
        let total = Atomic(0)
        for job in 0..<5000 {
            pool.run(5) { total.wrappingAdd($0 + 1, ordering: .relaxed) }
            if job % 500 == 0 { usleep(2000) }
        }
        #expect(total.load(ordering: .relaxed) == 5000 * 15)
    }

    @Test("a job inside a job runs on the thread that asked")
    func nested() {
        let pool = ThreadPool(threads: 3)
        let counts = Counts(8)
        pool.run(8) { outer in pool.run(4) { _ in counts.count(outer) } }
        #expect(counts.all == Array(repeating: 4, count: 8))
    }

    @Test("several threads share one pool: nobody waits, nothing is lost")
    func concurrent() async {
        let pool = ThreadPool(threads: 3)
        let totals = await withTaskGroup(of: Int.self) { group in
            for _ in 0..<6 {
                group.addTask {
                    let total = Atomic(0)
                    for _ in 0..<1000 { pool.run(4) { total.wrappingAdd($0, ordering: .relaxed) } }
                    return total.load(ordering: .relaxed)
                }
            }
            return await group.reduce(into: []) { $0.append($1) }
        }
        #expect(totals == Array(repeating: 6000, count: 6))
    }

    @Test("pools come and go: their threads are joined")
    func lifetimes() {
        for round in 0..<100 {
            let pool = ThreadPool(threads: 4)
            if round % 2 == 0 { pool.run(4) { _ in } }
        }
        let threads = (try? countThreads()) ?? 0
        #expect(threads < 200)
    }

    private func countThreads() throws -> Int {
        guard let folder = opendir("/proc/self/task") else { return 0 }
        defer { closedir(folder) }
        var count = 0
        while readdir(folder) != nil { count += 1 }
        return count
    }

    @Test("the host's parallel-for is used instead of threads")
    func host() {
        let calls = Mutex<[Int]>([])
        let pool = ThreadPool(threads: 4) { count, body in
            calls.withLock { $0.append(count) }
            for index in (0..<count).reversed() { body(index) }
        }
        let counts = Counts(6)
        pool.run(6) { counts.count($0) }
        #expect(counts.all == Array(repeating: 1, count: 6) && calls.withLock { $0 } == [6])
    }
}
