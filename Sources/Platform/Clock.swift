internal import Glibc

/// Time passed, for figures and deadlines. (The standard library's clocks come with its concurrency runtime.)
package enum Clock {
    /// Seconds since an unspecified moment; only goes forward.
    package static var seconds: Double {
        var time = timespec()
        unsafe clock_gettime(CLOCK_MONOTONIC, &time)
        return Double(time.tv_sec) + Double(time.tv_nsec) * 1e-9
    }
}
