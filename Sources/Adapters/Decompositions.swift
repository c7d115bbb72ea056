internal import COpenBLAS
internal import Glibc
package import Platform
internal import Synchronization
package import Tensors

/// Singular values, QR factors, eigenvectors and solutions of equations of f32 matrices (row-major), by LAPACK. Memory: the engine's budget.
package struct Decompositions {
    let engine: Engine
    private let lapack: LAPACK

    /// - Throws: `.unsupported` when OpenBLAS is not on this machine.
    package init(_ engine: Engine) throws(PEFTError) {
        self.engine = engine
        lapack = try LAPACK.opened()
    }

    /// Runs work that may decompose many matrices; afterwards OpenBLAS and its threads leave the process.
    package static func session<R>(_ body: () throws(PEFTError) -> R) throws(PEFTError) -> R {
        defer { LAPACK.close() }
        return try body()
    }

    /// `a = u·diag(s)·vh`; `a` `[m, n]`, `u` `[m, k]`, `s` `[k]` descending, `vh` `[k, n]`, k = min(m, n). `a` is overwritten.
    /// - Throws: `.numeric` when it does not converge (NaN in `a`).
    package func singularValues(_ a: Tensor) throws(PEFTError) -> (u: Tensor, s: Tensor, vh: Tensor) {
        let (m, n) = (a.rows, a.columns)
        let k = min(m, n)
        let u = try Tensor(engine, [m, k], .f32, .scratch)
        let s = try Tensor(engine, [k], .f32, .scratch)
        let vh = try Tensor(engine, [k, n], .f32, .scratch)
        guard k > 0, !engine.isPlanning else { return (u, s, vh) }
        // Row-major `a` is aᵀ column by column, whose left singular vectors are our right ones.
        let integers = try Tensor(engine, [8 * k], .i32, .scratch)
        unsafe try run("sgesdd", size: k) { (work: UnsafeMutablePointer<Float>, size) in
            let (rows, columns, inner) = ([Int32(clamping: n)], [Int32(clamping: m)], [Int32(clamping: k)])
            var info: Int32 = 0
            unsafe lapack.sgesdd(
                "S", rows, columns, a.floats, rows, s.floats, vh.floats, rows, u.floats, inner, work, [size],
                integers.pointer.assumingMemoryBound(to: Int32.self), &info)
            return info
        }
        return (u, s, vh)
    }

    /// The first `count` columns of Q `[m, count]` and rows of R `[count, n]` of `a = Q·R`; `a` `[m, n]`, count ≤ min(m, n).
    package func factors(_ a: Tensor, count: Int) throws(PEFTError) -> (q: Tensor, r: Tensor) {
        let (m, n) = (a.rows, a.columns)
        let columnwise = try a.transposed(engine)  // `[n, m]`, which is `a` column by column
        let tau = try Tensor(engine, [max(min(m, n), 1)], .f32, .scratch)
        let (rows, columns, wanted) = ([Int32(clamping: m)], [Int32(clamping: n)], [Int32(clamping: count)])
        if !engine.isPlanning {
            unsafe try run("sgeqrf", size: min(m, n)) { (work: UnsafeMutablePointer<Float>, size) in
                var info: Int32 = 0
                unsafe lapack.sgeqrf(rows, columns, columnwise.floats, rows, tau.floats, work, [size], &info)
                return info
            }
        }
        let r = try Tensor.zeros(engine, [count, n], .f32, .scratch)
        unsafe columnwise.withFloats { from in
            unsafe r.withMutableFloats { to in
                guard from.count == m * n, to.count == count * n else { return }
                for row in 0..<count {
                    for column in row..<n { unsafe to[row * n + column] = from[column * m + row] }
                }
            }
        }
        let q = try columnwise.rows(0..<count)
        if !engine.isPlanning {
            unsafe try run("sorgqr", size: count) { (work: UnsafeMutablePointer<Float>, size) in
                var info: Int32 = 0
                unsafe lapack.sorgqr(rows, wanted, wanted, q.floats, rows, tau.floats, work, [size], &info)
                return info
            }
        }
        return (try q.transposed(engine), r)
    }

    /// `a = Z·diag(w)·Zᵀ` of a symmetric `a` `[n, n]`, in doubles: Z, w descending. They converge where equal values in great number keep
    /// the singular values of `a` from it.
    /// - Throws: `.numeric` for NaN or infinity in `a`.
    package func eigenvectors(of a: Tensor) throws(PEFTError) -> Tensor {
        let n = a.rows
        let vectors = try Tensor(engine, [n, n], .f32, .scratch)
        guard n > 0, !engine.isPlanning else { return vectors }
        guard a.squaredNorm.isFinite else { throw PEFTError(.numeric, "a matrix of \(n) × \(n) has NaN or infinity in it; are all weights finite?") }
        let (z, w) = (try Doubles(a, engine), try Doubles(count: n, engine))
        let size = [Int32(clamping: n)]
        let count = Int32(clamping: 5 * n + 3)
        let integers = try Tensor(engine, [Int(count)], .i32, .scratch)
        unsafe try run("dsyevd", size: n) { (work: UnsafeMutablePointer<Double>, room) in
            var info: Int32 = 0
            unsafe lapack.dsyevd(
                "V", "U", size, z.pointer, size, w.pointer, work, [room], integers.pointer.assumingMemoryBound(to: Int32.self), [count], &info)
            return info
        }
        z.copy(to: vectors) { (n - 1 - $0 % n) * n + $0 / n }
        return vectors
    }

    /// Each row of `rows` `[m, n]` replaced by the x with `a·x` = it, in doubles; `a` `[n, n]`. nil: `a` is singular.
    package func solutions(of a: Tensor, rows: Tensor) throws(PEFTError) -> Tensor? {
        let (n, m) = (a.rows, rows.rows)
        let x = try Tensor(engine, [m, n], .f32, .scratch)
        guard n > 0, m > 0, !engine.isPlanning else { return x }
        // What is columns for LAPACK are rows here.
        let (factors, sides) = (try Doubles(try a.transposed(engine), engine), try Doubles(rows, engine))
        let pivots = try Tensor(engine, [n], .i32, .scratch)
        let (size, count) = ([Int32(clamping: n)], [Int32(clamping: m)])
        var info: Int32 = 0
        alone(n) {
            unsafe lapack.dgesv(size, count, factors.pointer, size, pivots.pointer.assumingMemoryBound(to: Int32.self), sides.pointer, size, &info)
        }
        guard info >= 0 else { throw PEFTError(.internal, "dgesv gives \(info)") }
        guard info == 0 else { return nil }
        sides.copy(to: x) { $0 }
        return x
    }

    /// Sides up to which one thread is as good as several.
    private static let small = 1024

    private func alone(_ size: Int, _ body: () -> Void) {
        let isAlone = size <= Decompositions.small
        if isAlone { lapack.beginAlone() }
        defer { if isAlone { lapack.endAlone() } }
        body()
    }

    /// Asks a LAPACK routine how much room it wants (size −1), and runs it with that.
    private func run<Value: BinaryFloatingPoint>(_ name: String, size side: Int, _ body: (UnsafeMutablePointer<Value>, Int32) -> Int32) throws(PEFTError) {
        var answer: Value = 0
        var status = unsafe body(&answer, -1)
        if status == 0 {
            // A float's answer may have been rounded down.
            let size = Int32(clamping: Int(min(max(answer.nextUp, 1), 1e9)))
            let room = try Tensor(engine, [Int(size)], MemoryLayout<Value>.size == 8 ? .f64 : .f32, .scratch)
            alone(side) { status = unsafe body(room.pointer.assumingMemoryBound(to: Value.self), size) }
        }
        guard status == 0 else {
            throw PEFTError(
                status > 0 ? .numeric : .internal,
                "\(name) gives \(status): \(status > 0 ? "the decomposition does not converge; are all weights finite?" : "")"
            )
        }
    }
}

/// Doubles for LAPACK, in the engine's memory.
private struct Doubles {
    private let tensor: Tensor
    let count: Int

    init(count: Int, _ engine: Engine) throws(PEFTError) {
        self.count = count
        tensor = try Tensor(engine, [count], .f64, .scratch)
    }

    init(_ values: Tensor, _ engine: Engine) throws(PEFTError) {
        try self.init(count: values.count, engine)
        let pointer = unsafe pointer
        unsafe values.withFloats { from in
            for index in from.indices { unsafe pointer[index] = Double(from[index]) }
        }
    }

    var pointer: UnsafeMutablePointer<Double> { unsafe tensor.pointer.assumingMemoryBound(to: Double.self) }

    /// Value number i of `target` is the one at `place(i)` here.
    func copy(to target: Tensor, _ place: (Int) -> Int) {
        let pointer = unsafe pointer
        unsafe target.withMutableFloats { to in
            for index in to.indices { unsafe to[index] = Float(pointer[place(index)]) }
        }
    }
}

extension Tensor {
    fileprivate var floats: UnsafeMutablePointer<Float> { unsafe pointer.assumingMemoryBound(to: Float.self) }
}

/// The routines of the machine's OpenBLAS. It starts threads of its own when it is opened, which are to be gone when the
/// host's context is: so it is closed when nobody uses it. They wait for each other in loops, which takes a hundred times as long
/// where processors are busy with something else: what is small does without them.
@safe private final class LAPACK: Sendable {
    let sgesdd: peft_sgesdd
    let sgeqrf: peft_sgeqrf
    let sorgqr: peft_sorgqr
    let dgesv: peft_dgesv
    let dsyevd: peft_dsyevd
    /// nil: another LAPACK than OpenBLAS.
    private let setThreads: peft_openblas_set_threads?
    /// Threads it had when it was opened.
    private let threads: Int32
    /// Who wants it to have one.
    private let alone = Mutex(0)
    /// What dlopen gave (a number, because raw pointers are not Sendable).
    private let library: UInt

    private static let names = ["libopenblas.so.0", "libopenblas.so", "liblapack.so.3"]
    private struct State {
        /// From the first use to the end of a session: opening takes some milliseconds.
        var kept: LAPACK?
        /// While anybody has it.
        weak var last: LAPACK?
    }
    private static let state = Mutex(State())

    static func opened() throws(PEFTError) -> LAPACK {
        let lapack = state.withLock { state in
            if state.kept == nil { state.kept = state.last ?? LAPACK() }
            state.last = state.kept
            return state.kept
        }
        guard let lapack else {
            throw PEFTError(
                .unsupported,
                "this needs LAPACK, and none of \(names.joined(separator: ", ")) can be opened; install OpenBLAS (libopenblas0)"
            )
        }
        return lapack
    }

    /// Somebody who is at it goes on, and closes it when he is done.
    static func close() {
        let last = state.withLock { state in
            defer { state.kept = nil }
            return state.kept
        }
        _ = last  // Closed here, outside the lock.
    }

    func beginAlone() {
        alone.withLock { count in
            if count == 0 { setThreads?(1) }
            count += 1
        }
    }

    func endAlone() {
        alone.withLock { count in
            count -= 1
            if count == 0 { setThreads?(threads) }
        }
    }

    private init?() {
        for name in LAPACK.names {
            guard let library = unsafe dlopen(name, RTLD_NOW | RTLD_LOCAL) else { continue }
            if let sgesdd = unsafe dlsym(library, "sgesdd_"), let sgeqrf = unsafe dlsym(library, "sgeqrf_"),
                let sorgqr = unsafe dlsym(library, "sorgqr_"), let dgesv = unsafe dlsym(library, "dgesv_"), let dsyevd = unsafe dlsym(library, "dsyevd_")
            {
                unsafe self.sgesdd = unsafeBitCast(sgesdd, to: peft_sgesdd.self)
                unsafe self.sgeqrf = unsafeBitCast(sgeqrf, to: peft_sgeqrf.self)
                unsafe self.sorgqr = unsafeBitCast(sorgqr, to: peft_sorgqr.self)
                unsafe self.dgesv = unsafeBitCast(dgesv, to: peft_dgesv.self)
                unsafe self.dsyevd = unsafeBitCast(dsyevd, to: peft_dsyevd.self)
                let set = unsafe dlsym(library, "openblas_set_num_threads"), get = unsafe dlsym(library, "openblas_get_num_threads")
                if let set = unsafe set, let get = unsafe get {
                    unsafe setThreads = unsafeBitCast(set, to: peft_openblas_set_threads.self)
                    unsafe threads = unsafeBitCast(get, to: peft_openblas_get_threads.self)()
                } else {
                    setThreads = nil
                    threads = 1
                }
                self.library = UInt(bitPattern: library)
                return
            }
            unsafe dlclose(library)
        }
        return nil
    }

    deinit {
        if let library = unsafe UnsafeMutableRawPointer(bitPattern: library) { unsafe dlclose(library) }
    }
}
