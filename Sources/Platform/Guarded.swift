internal import Glibc

/// A value that one thread at a time may touch, behind a `pthread_mutex`: for locks that are taken for every tensor. Swift's `Mutex` spins
/// for long before it waits, which with more threads than processors is time taken from the thread that holds it (eight sessions
/// on two processors: 38 % of all time).
@safe package final class Guarded<Value>: @unchecked Sendable {
    // Sendable: `value` is only touched under the lock, whose address is constant.
    private let lock: UnsafeMutablePointer<pthread_mutex_t>
    private var value: Value

    package init(_ value: Value) {
        self.value = value
        unsafe lock = .allocate(capacity: 1)
        unsafe pthread_mutex_init(lock, nil)
    }

    deinit {
        unsafe pthread_mutex_destroy(lock)
        unsafe lock.deallocate()
    }

    package func withLock<R>(_ body: (inout Value) -> R) -> R {
        unsafe pthread_mutex_lock(lock)
        defer { unsafe pthread_mutex_unlock(lock) }
        return body(&value)
    }
}
