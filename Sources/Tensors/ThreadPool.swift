internal import Glibc
internal import Kernels
internal import Synchronization

/// Runs the parts of a kernel on several threads.
///
/// Workers start at the first use (so a host may fork before it), spin briefly after a job (kernels follow each other
/// within microseconds), then sleep, and are joined when the pool goes. A pool that is busy with somebody else's job
/// does not wait: the caller runs its parts itself; results never depend on who runs what.
package final class ThreadPool: Sendable {
    /// The host's own parallel-for: must call `body(index)` once for each index in 0..<count, on any threads, and return
    /// when all are done.
    package typealias HostParallelFor = @Sendable (_ count: Int, _ body: (Int) -> Void) -> Void

    /// Threads that work on a job, the caller's included.
    package let threadCount: Int
    private let host: HostParallelFor?
    private let shared: SharedState
    private let isBusy = Atomic<Bool>(false)
    private let workers = Mutex<[pthread_t]?>(nil)

    package init(threads: Int, host: HostParallelFor? = nil) {
        threadCount = max(1, min(threads, 256))
        self.host = host
        shared = SharedState()
    }

    deinit {
        shared.stop()
        for worker in workers.withLock({ $0 ?? [] }) { pthread_join(worker, nil) }
    }

    /// Calls `body` once for each part, and returns when all have returned.
    package func run(_ parts: Int, _ body: (Int) -> Void) {
        guard parts > 1, threadCount > 1 else { return ThreadPool.runAlone(parts, body) }
        if let host { return host(parts, body) }
        guard isBusy.compareExchange(expected: false, desired: true, ordering: .acquiring).exchanged else {
            return ThreadPool.runAlone(parts, body)
        }
        startWorkers()
        withoutActuallyEscaping(body) { shared.run(parts, $0) }
        isBusy.store(false, ordering: .releasing)
    }

    private static func runAlone(_ parts: Int, _ body: (Int) -> Void) {
        for part in 0..<parts { body(part) }
    }

    /// Only the holder of `isBusy` gets here.
    private func startWorkers() {
        workers.withLock { workers in
            guard workers == nil else { return }
            var started: [pthread_t] = []
            // A host's signals are the host's: workers block them all.
            var all = sigset_t()
            var before = sigset_t()
            unsafe sigfillset(&all)
            unsafe pthread_sigmask(SIG_SETMASK, &all, &before)
            for _ in 1..<threadCount {
                var thread = pthread_t()
                let argument = unsafe Unmanaged.passRetained(shared).toOpaque()
                let status = unsafe pthread_create(
                    &thread, nil,
                    { argument in
                        if let argument = unsafe argument { unsafe Unmanaged<SharedState>.fromOpaque(argument).takeRetainedValue().work() }
                        return nil
                    }, argument)
                if status == 0 { started.append(thread) } else { unsafe Unmanaged<SharedState>.fromOpaque(argument).release() }
            }
            unsafe pthread_sigmask(SIG_SETMASK, &before, nil)
            workers = started
        }
    }
}

/// What the pool's threads look at.
@safe private final class SharedState: @unchecked Sendable {
    // Sendable: `job` and `partCount` are written only by the thread that holds the pool's `isBusy`, before it opens the
    // job (release), and read by workers that have joined it (acquire) until the caller has seen them all leave.

    /// bits 0…15 workers inside the job, bit 16 job is open, bit 17 stop, from bit 18 the job's number.
    private let state = Atomic<UInt64>(0)
    private let nextPart = Atomic<Int>(0)
    private let sleepers = Atomic<Int>(0)
    private var job: ((Int) -> Void)?
    private var partCount = 0
    private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
    private let wake = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)

    private static let open: UInt64 = 1 << 16
    private static let stopping: UInt64 = 1 << 17
    private static let oneJob: UInt64 = 1 << 18
    private static let insideMask: UInt64 = 0xffff
    /// About 30 µs of `pause`: longer than the gap between two kernels, shorter than a host would notice.
    private static let spins = 1000

    init() {
        unsafe pthread_mutex_init(mutex, nil)
        unsafe pthread_cond_init(wake, nil)
    }

    deinit {
        unsafe pthread_mutex_destroy(mutex)
        unsafe pthread_cond_destroy(wake)
        unsafe mutex.deallocate()
        unsafe wake.deallocate()
    }

    func run(_ parts: Int, _ body: @escaping (Int) -> Void) {
        job = body
        partCount = parts
        nextPart.store(0, ordering: .relaxed)
        state.wrappingAdd(SharedState.oneJob | SharedState.open, ordering: .sequentiallyConsistent)
        if sleepers.load(ordering: .sequentiallyConsistent) > 0 { wakeAll() }
        takeParts(body, parts)
        state.bitwiseXor(SharedState.open, ordering: .acquiringAndReleasing)
        var spins = 0
        while state.load(ordering: .acquiring) & SharedState.insideMask != 0 {
            spins += 1
            if spins < SharedState.spins { pk_pause() } else { sched_yield() }
        }
        job = nil
    }

    func stop() {
        state.bitwiseOr(SharedState.stopping, ordering: .sequentiallyConsistent)
        wakeAll()
    }

    /// A worker's life.
    func work() {
        var lastJob: UInt64 = 0
        while true {
            var seen = state.load(ordering: .acquiring)
            var spins = 0
            while seen & SharedState.stopping == 0, seen & SharedState.open == 0 || seen >> 18 == lastJob {
                spins += 1
                if spins < SharedState.spins { pk_pause() } else { sleep(after: lastJob) }
                seen = state.load(ordering: .acquiring)
            }
            if seen & SharedState.stopping != 0 { return }
            guard state.compareExchange(expected: seen, desired: seen + 1, ordering: .acquiringAndReleasing).exchanged else { continue }
            lastJob = seen >> 18
            if let job { takeParts(job, partCount) }
            state.wrappingSubtract(1, ordering: .releasing)
        }
    }

    private func takeParts(_ body: (Int) -> Void, _ parts: Int) {
        while true {
            let part = nextPart.wrappingAdd(1, ordering: .relaxed).oldValue
            guard part < parts else { return }
            body(part)
        }
    }

    private func sleep(after lastJob: UInt64) {
        unsafe pthread_mutex_lock(mutex)
        sleepers.wrappingAdd(1, ordering: .sequentiallyConsistent)
        while true {
            let seen = state.load(ordering: .sequentiallyConsistent)
            let hasJob = seen & SharedState.open != 0 && seen >> 18 != lastJob
            if hasJob || seen & SharedState.stopping != 0 { break }
            unsafe pthread_cond_wait(wake, mutex)
        }
        sleepers.wrappingSubtract(1, ordering: .sequentiallyConsistent)
        unsafe pthread_mutex_unlock(mutex)
    }

    private func wakeAll() {
        unsafe pthread_mutex_lock(mutex)
        unsafe pthread_cond_broadcast(wake)
        unsafe pthread_mutex_unlock(mutex)
    }
}
