internal import CPEFTSwift
internal import Glibc
internal import Synchronization
internal import Tensors

/// The functions a host gave to a context, with its pointer; callable from any thread.
@safe struct HostHooks: @unchecked Sendable {
    // Sendable: the header makes the host promise that these may be called from any thread.
    let options: peft_context_options

    var log: (@Sendable (Engine.LogLevel, String) -> Void)? {
        guard let function = unsafe options.log else { return nil }
        return { level, message in
            hookCalls.calling { unsafe message.withCString { unsafe function(options.user_data, level.rawValue, $0) } }
        }
    }

    var allocator: HostAllocator? {
        guard let allocate = unsafe options.allocate, let deallocate = unsafe options.deallocate else { return nil }
        return unsafe HostAllocator(
            allocate: { size, alignment in unsafe hookCalls.calling { unsafe allocate(options.user_data, size, alignment) } },
            free: { pointer, size in hookCalls.calling { unsafe deallocate(options.user_data, pointer, size) } })
    }

    var parallelFor: ThreadPool.HostParallelFor? {
        guard let function = unsafe options.parallel_for else { return nil }
        return { count, body in
            withoutActuallyEscaping(body) { body in
                let box = Box(body)
                hookCalls.calling {
                    unsafe function(
                        options.user_data, Int32(clamping: count),
                        { data, index in
                            guard let data = unsafe data else { return }
                            unsafe Unmanaged<Box>.fromOpaque(data).takeUnretainedValue().body(Int(index))
                        }, Unmanaged.passUnretained(box).toOpaque())
                }
                box.body = { _ in }
            }
        }
    }

    private final class Box {
        var body: (Int) -> Void
        init(_ body: @escaping (Int) -> Void) { self.body = body }
    }
}

/// Which threads are inside a hook now.
let hookCalls = HookCalls()

/// Hooks are called in the middle of things, with locks held: a hook that calls the library must get an error, not a
/// deadlock, so it has to be known on which threads hooks run.
final class HookCalls: Sendable {
    private let count = Atomic<Int>(0)
    private let threads = Mutex<[pthread_t: Int]>([:])

    func calling<R>(_ hook: () -> R) -> R {
        let thread = pthread_self()
        count.add(1, ordering: .relaxed)
        threads.withLock { $0[thread, default: 0] += 1 }
        defer {
            threads.withLock { threads in
                let left = threads[thread, default: 1] - 1
                threads[thread] = left > 0 ? left : nil
            }
            count.subtract(1, ordering: .relaxed)
        }
        return hook()
    }

    var areOnThisThread: Bool {
        // A thread that is inside a hook sees at least its own count.
        guard count.load(ordering: .relaxed) > 0 else { return false }
        return threads.withLock { $0[pthread_self()] != nil }
    }
}
