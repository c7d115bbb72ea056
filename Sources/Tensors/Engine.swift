internal import Kernels
internal import Platform

/// What every computation of one context shares: threads, memory, the instruction-set level, the log.
///
/// A *planning* engine has the same shape but runs no kernel and takes no memory: executing a step on it tells what the
/// step needs (`budget.statistics`).
package final class Engine: Sendable {
    /// PK_LEVEL_…
    package let level: Int32
    /// Products of bf16 are made of pairs; else bf16 is what tensors are kept in, and arithmetic is f32's.
    package let multipliesPairs: Bool
    package let pool: ThreadPool
    package let budget: MemoryBudget
    package let isPlanning: Bool
    private let log: (@Sendable (LogLevel, String) -> Void)?

    package enum LogLevel: Int32, Sendable {
        case warning = 1
        case info = 2
    }

    /// - Parameters:
    ///   - level: highest instruction-set level to use; lowered to what the processor has. `.max`: its best, and the faster arithmetic for bf16.
    package init(
        threads: Int = 1, level: Int32 = .max, budget: MemoryBudget = MemoryBudget(), parallelFor: ThreadPool.HostParallelFor? = nil,
        log: (@Sendable (LogLevel, String) -> Void)? = nil
    ) {
        self.level = pk_take_level(max(PK_LEVEL_PORTABLE, level))
        self.multipliesPairs = level == .max ? pk_pairs_are_fast(self.level) != 0 : self.level >= PK_LEVEL_AVX512_BF16
        self.pool = ThreadPool(threads: threads, host: parallelFor)
        self.budget = budget
        self.isPlanning = false
        self.log = log
        if self.level < min(level, pk_best_level()) {
            warn("Linux does not give this process AMX' registers (a thread has an alternate signal stack without room for them): computing without")
        }
    }

    private init(planningFor engine: Engine, limit: Int) {
        (level, multipliesPairs) = (engine.level, engine.multipliesPairs)
        pool = engine.pool
        budget = .planning(limit: limit)
        isPlanning = true
        log = nil
    }

    /// An engine that only counts.
    package func planner(limit: Int = .max) -> Engine { Engine(planningFor: self, limit: limit) }

    package func warn(_ message: @autoclosure () -> String) {
        if let log { log(.warning, message()) }
    }

    package func info(_ message: @autoclosure () -> String) {
        if let log { log(.info, message()) }
    }

    /// Runs `body(part, parts)` for every part, on the pool. THE place where kernels are called: skipped when planning.
    package func parallel(_ parts: Int, _ body: (_ part: Int32, _ parts: Int32) -> Void) {
        guard !isPlanning, parts > 0 else { return }
        let count = Int32(clamping: parts)
        guard count > 1 else { return body(0, 1) }
        pool.run(Int(count)) { body(Int32(truncatingIfNeeded: $0), count) }
    }

    /// How many parts an elementwise kernel over `count` values is worth: waking a thread costs about what 16k values do.
    package func shares(_ count: Int) -> Int {
        max(1, min(pool.threadCount, count / 16384))
    }
}
