internal import Glibc

/// Many readers or one writer (`pthread_rwlock`). A waiting writer goes before new readers: sessions that step all the
/// time do not starve an optimizer. Therefore it must not be taken twice by one thread.
@safe package final class ReadWriteLock: @unchecked Sendable {
    // Sendable: the lock itself is made for several threads; its address is constant; the counter is written by its holder.
    private let lock: UnsafeMutablePointer<pthread_rwlock_t>
    /// How often something was written. To be read under the lock: what was computed at the same number is still true.
    package private(set) var generation: UInt64 = 0

    package init() {
        unsafe lock = .allocate(capacity: 1)
        var attributes = pthread_rwlockattr_t()
        unsafe pthread_rwlockattr_init(&attributes)
        unsafe pthread_rwlockattr_setkind_np(&attributes, Int32(PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP))
        unsafe pthread_rwlock_init(lock, &attributes)
        unsafe pthread_rwlockattr_destroy(&attributes)
    }

    deinit {
        unsafe pthread_rwlock_destroy(lock)
        unsafe lock.deallocate()
    }

    package func read<R, E: Error>(_ body: () throws(E) -> R) throws(E) -> R {
        unsafe pthread_rwlock_rdlock(lock)
        defer { unsafe pthread_rwlock_unlock(lock) }
        return try body()
    }

    package func write<R, E: Error>(_ body: () throws(E) -> R) throws(E) -> R {
        unsafe pthread_rwlock_wrlock(lock)
        generation &+= 1  // Safe: 2⁶⁴ writes do not happen.
        defer { unsafe pthread_rwlock_unlock(lock) }
        return try body()
    }
}
