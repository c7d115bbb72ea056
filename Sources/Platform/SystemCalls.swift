internal import Glibc

#if DEBUG
internal import Synchronization

/// Debug builds only: makes one system call of the code under test fail, so that every error path can be walked.
///
/// `try FailureInjection.$current.withValue(FailureInjection(.write, errno: 28, after: 2)) { … }` lets two writes
/// through and refuses the third and all later ones. Task-local: nothing outside the closure is touched.
package final class FailureInjection: Sendable {
    package enum Call: Sendable { case open, read, write, fsync, rename, mmap, mkdir, close }

    @TaskLocal package static var current: FailureInjection?

    private let call: Call
    private let code: Int32
    private let left: Mutex<Int>

    package init(_ call: Call, errno code: Int32, after: Int = 0) {
        self.call = call
        self.code = code
        self.left = Mutex(after)
    }

    fileprivate func code(for call: Call) -> Int32? {
        guard call == self.call else { return nil }
        return left.withLock { left in
            left -= 1
            return left < 0 ? code : nil
        }
    }
}
#endif

/// Every system call of the file code, one function each and nowhere else. Interrupted calls are repeated; a failure
/// is a `PEFTError` that says what was tried on which path and why the system refused, with `errno` in `detail`.
enum SystemCall {
    #if DEBUG
    private static func injected(_ call: FailureInjection.Call, _ verb: String, _ path: String) throws(PEFTError) {
        if let code = FailureInjection.current?.code(for: call) { throw failure(verb, path, code) }
    }
    #else
    private enum Call { case open, read, write, fsync, rename, mmap, mkdir, close }
    @inline(__always) private static func injected(_ call: Call, _ verb: String, _ path: String) throws(PEFTError) {}
    #endif

    struct Status {
        let byteCount: Int
        let isFolder: Bool
        let isRegularFile: Bool
        let permissions: mode_t
        let modified: (seconds: Int, nanoseconds: Int)
    }

    /// The corresponding C function is `open` (with `O_CLOEXEC`).
    static func open(_ path: String, _ flags: Int32, permissions: mode_t = 0) throws(PEFTError) -> Int32 {
        try checkPath(path)
        try injected(.open, "open", path)
        while true {
            let descriptor = unsafe Glibc.open(path, flags | O_CLOEXEC, permissions)
            if descriptor >= 0 { return descriptor }
            if errno != EINTR { throw failure(flags & O_CREAT != 0 ? "create" : "open", path, errno) }
        }
    }

    /// The corresponding C function is `close`. An error is reported: some file systems report a full disk here.
    static func close(_ descriptor: Int32, _ path: String) throws(PEFTError) {
        let result = Glibc.close(descriptor)
        let code = errno
        try injected(.close, "close", path)
        // After EINTR the descriptor is closed on Linux.
        if result != 0 && code != EINTR { throw failure("close", path, code) }
    }

    /// The corresponding C function is `fstat`.
    static func status(of descriptor: Int32, _ path: String) throws(PEFTError) -> Status {
        var buffer = stat()
        guard unsafe fstat(descriptor, &buffer) == 0 else { throw failure("examine", path, errno) }
        return Status(buffer)
    }

    /// The corresponding C function is `stat`; nil when there is nothing at `path`.
    static func status(at path: String) throws(PEFTError) -> Status? {
        try checkPath(path)
        var buffer = stat()
        if unsafe stat(path, &buffer) == 0 { return Status(buffer) }
        if errno == ENOENT || errno == ENOTDIR { return nil }
        throw failure("examine", path, errno)
    }

    /// The corresponding C function is `pread`. Returns 0 at the end of the file.
    static func read(_ descriptor: Int32, into buffer: UnsafeMutableRawBufferPointer, at offset: Int, _ path: String) throws(PEFTError) -> Int {
        try injected(.read, "read", path)
        while true {
            let count = unsafe pread(descriptor, buffer.baseAddress, buffer.count, off_t(offset))
            if count >= 0 { return count }
            if errno != EINTR { throw failure("read", path, errno) }
        }
    }

    /// The corresponding C function is `write`, repeated until all bytes are written.
    static func write(_ descriptor: Int32, _ bytes: UnsafeRawBufferPointer, _ path: String) throws(PEFTError) {
        var rest = unsafe bytes
        while unsafe !rest.isEmpty {
            try injected(.write, "write", path)
            let count = unsafe Glibc.write(descriptor, rest.baseAddress, min(rest.count, 1 << 30))
            if count < 0 && errno == EINTR { continue }
            guard count > 0 else { throw failure("write", path, count == 0 ? EIO : errno) }
            unsafe rest = UnsafeRawBufferPointer(rebasing: rest[count...])
        }
    }

    /// The corresponding C function is `fsync`.
    static func synchronize(_ descriptor: Int32, _ path: String) throws(PEFTError) {
        try injected(.fsync, "flush", path)
        // Some file systems cannot flush a folder (EINVAL); there is nothing to lose then.
        if fsync(descriptor) != 0 && errno != EINVAL { throw failure("flush", path, errno) }
    }

    /// The corresponding C function is `fchmod`; best effort, because not every file system has permissions.
    static func setPermissions(_ descriptor: Int32, _ permissions: mode_t) { _ = fchmod(descriptor, permissions) }

    /// The corresponding C function is `rename`.
    static func rename(_ from: String, to path: String) throws(PEFTError) {
        try injected(.rename, "replace", path)
        if unsafe Glibc.rename(from, path) != 0 { throw failure("replace", path, errno) }
    }

    /// The corresponding C function is `unlink`; used on temporary files only, where a failure changes nothing.
    static func removeFile(_ path: String) { _ = unsafe unlink(path) }

    /// The corresponding C function is `rmdir`; used on temporary folders only.
    static func removeFolder(_ path: String) { _ = unsafe rmdir(path) }

    /// The corresponding C function is `mkdir`.
    static func makeFolder(_ path: String) throws(PEFTError) {
        try checkPath(path)
        try injected(.mkdir, "create folder", path)
        if unsafe mkdir(path, 0o777) != 0 { throw failure("create folder", path, errno) }
    }

    /// The corresponding C function is `realpath`: `path` with symbolic links followed; nil when there is no such file.
    static func resolved(_ path: String) -> String? {
        guard let text = unsafe realpath(path, nil) else { return nil }
        defer { unsafe free(text) }
        return unsafe String(cString: text)
    }

    /// The corresponding C functions are `opendir` and `readdir`. Names without "." and "..", sorted.
    static func names(in folder: String) throws(PEFTError) -> [String] {
        try checkPath(folder)
        guard let stream = unsafe opendir(folder) else { throw failure("list", folder, errno) }
        defer { unsafe closedir(stream) }
        var names: [String] = []
        while let entry = unsafe readdir(stream) {
            let name = unsafe withUnsafeBytes(of: &entry.pointee.d_name) { unsafe String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
            if name != "." && name != ".." { names.append(name) }
        }
        return names.sorted()
    }

    /// The corresponding C function is `mmap` (read only, private).
    static func map(_ descriptor: Int32, byteCount: Int, _ path: String) throws(PEFTError) -> UnsafeRawPointer {
        try injected(.mmap, "map", path)
        let address = unsafe mmap(nil, byteCount, PROT_READ, MAP_PRIVATE, descriptor, 0)
        guard let address = unsafe address, UInt(bitPattern: address) != .max else { throw failure("map", path, errno) }
        return UnsafeRawPointer(address)
    }

    /// The corresponding C function is `munmap`.
    static func unmap(_ base: UnsafeRawPointer, byteCount: Int) {
        _ = unsafe munmap(UnsafeMutableRawPointer(mutating: base), byteCount)
    }

    /// The corresponding C function is `madvise`; a hint, so a refusal is no error.
    static func advise(_ base: UnsafeRawPointer, byteCount: Int, _ advice: Int32) {
        _ = unsafe madvise(UnsafeMutableRawPointer(mutating: base), byteCount, advice)
    }

    /// A path with a NUL inside would silently name another file.
    private static func checkPath(_ path: String) throws(PEFTError) {
        guard !path.isEmpty else { throw PEFTError(.argument, "an empty path") }
        guard !path.utf8.contains(0) else { throw PEFTError(.argument, "a path with a zero byte inside") }
    }

    private static func failure(_ verb: String, _ path: String, _ code: Int32) -> PEFTError {
        let kind: PEFTError.Kind = code == ENOENT ? .notFound : (code == ENOMEM ? .memory : .io)
        return PEFTError(kind, "cannot \(verb) '\(path)': \(reason(code))", detail: Int64(code))
    }

    /// `strerror` depends on the locale and is not safe on several threads; these are the reasons that happen to files.
    private static func reason(_ code: Int32) -> String {
        switch code {
        case ENOENT: "no such file or folder"
        case EACCES, EPERM: "permission denied"
        case ENOSPC: "no space left on the device"
        case EDQUOT: "the disk quota is used up"
        case EROFS: "the file system is read-only"
        case EISDIR: "it is a folder"
        case ENOTDIR: "a part of the path is not a folder"
        case EEXIST: "it exists already"
        case ENAMETOOLONG: "the name is too long"
        case EMFILE, ENFILE: "too many open files"
        case ENOMEM: "not enough memory or address space"
        case EIO: "input/output error of the device"
        case EFBIG: "the file would be too large"
        case ELOOP: "too many symbolic links"
        case EXDEV: "another file system"
        default: "system error \(code)"
        }
    }
}

extension SystemCall.Status {
    fileprivate init(_ buffer: stat) {
        byteCount = Int(buffer.st_size)
        isFolder = buffer.st_mode & S_IFMT == S_IFDIR
        isRegularFile = buffer.st_mode & S_IFMT == S_IFREG
        permissions = buffer.st_mode & 0o777
        modified = (Int(buffer.st_mtim.tv_sec), Int(buffer.st_mtim.tv_nsec))
    }
}
