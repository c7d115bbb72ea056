internal import Glibc

/// The bytes of a file (mapped, or read into memory) or of a buffer of the host, read only, for as long as the object lives.
///
/// **A mapped file that shrinks.** Pages of a mapping are read from the file when they are touched. Should another
/// process cut the file short while it is mapped, touching the lost part raises SIGBUS, which would end the host and
/// which a library must not catch for it. Replacing a file by `rename`, as this library and all careful writers do,
/// leaves the old bytes mapped and is harmless. Two things reduce what is left: small files are read, not mapped
/// (`.read`), and `checkUnchanged()` — one `fstat` — refuses a file whose size or time changed since it was opened;
/// loaders call it after they have read a file's header and before a long pass over its data.
@safe package final class MappedFile: @unchecked Sendable {
    // Sendable: all members are constant and the bytes are never written.

    package enum Access: Sendable {
        /// Pages come from the file when touched: no memory of our own, instant, the choice for weights.
        case map
        /// A private copy: the choice for small files, and for weights on file systems that vanish.
        case read
    }

    package enum Advice: Sendable {
        /// Start reading now.
        case willNeed
        /// Pages may be dropped; they come back from the file.
        case dontNeed
        case sequential
        case random
    }

    private enum Origin {
        case mapping(descriptor: Int32, SystemCall.Status)
        case copy
        case borrowed(keepingAlive: AnyObject?)
    }

    /// The path, or what the caller calls the buffer; for messages.
    package let name: String
    private let base: UnsafeRawPointer?
    package let byteCount: Int
    private let origin: Origin

    /// Opens a regular file. `maximumBytes` refuses files that cannot be what the caller expects.
    package init(path: String, _ access: Access = .map, maximumBytes: Int = .max) throws(PEFTError) {
        // O_NONBLOCK: opening a pipe must not wait for a writer; it has no effect on regular files.
        let descriptor = try SystemCall.open(path, O_RDONLY | O_NONBLOCK)
        do throws(PEFTError) {
            let status = try SystemCall.status(of: descriptor, path)
            guard !status.isFolder else { throw PEFTError(.argument, "'\(path)' is a folder, a file is needed") }
            guard status.isRegularFile else { throw PEFTError(.argument, "'\(path)' is not a regular file") }
            guard status.byteCount <= maximumBytes else {
                throw PEFTError(.format, "'\(path)' has \(status.byteCount) bytes, at most \(maximumBytes) are possible here")
            }
            name = path
            byteCount = status.byteCount
            if byteCount == 0 {
                unsafe base = nil
                origin = .copy
            } else if access == .map {
                unsafe base = try SystemCall.map(descriptor, byteCount: byteCount, path)
                origin = .mapping(descriptor: descriptor, status)
                return
            } else {
                unsafe base = try MappedFile.copy(of: descriptor, byteCount: byteCount, path)
                origin = .copy
            }
            _ = Glibc.close(descriptor)
        } catch {
            _ = Glibc.close(descriptor)
            throw error
        }
    }

    /// The host's own memory, valid while `owner` lives (nil: as long as the host promised).
    package init(borrowing bytes: UnsafeRawBufferPointer, name: String, keepingAlive owner: AnyObject? = nil) {
        self.name = name
        unsafe self.base = bytes.baseAddress
        self.byteCount = bytes.count
        self.origin = .borrowed(keepingAlive: owner)
    }

    deinit {
        switch origin {
        case .mapping(let descriptor, _):
            if let base = unsafe base { unsafe SystemCall.unmap(base, byteCount: byteCount) }
            _ = Glibc.close(descriptor)
        case .copy:
            unsafe free(UnsafeMutableRawPointer(mutating: base))
        case .borrowed:
            break
        }
    }

    /// Valid while the object lives: keep the object, not the pointer.
    package var bytes: UnsafeRawBufferPointer { unsafe UnsafeRawBufferPointer(start: base, count: byteCount) }

    /// - Throws: `.io` when the mapped file is no longer the file that was opened.
    package func checkUnchanged() throws(PEFTError) {
        guard case .mapping(let descriptor, let before) = origin else { return }
        let now = try SystemCall.status(of: descriptor, name)
        guard now.byteCount == before.byteCount, now.modified == before.modified else {
            throw PEFTError(.io, "'\(name)' was changed by another program while it was open (\(before.byteCount) bytes then, \(now.byteCount) now)")
        }
    }

    /// A hint to the system about a part of the file; whole file when `range` is nil. Never fails.
    package func advise(_ advice: Advice, _ range: Range<Int>? = nil) {
        guard case .mapping = origin, let base = unsafe base else { return }
        let range = (range ?? 0..<byteCount).clamped(to: 0..<byteCount)
        let page = 4096  // A start that is no page border is refused by the system; larger pages only lose the hint.
        let start = range.lowerBound / page * page
        let code =
            switch advice {
            case .willNeed: MADV_WILLNEED
            case .dontNeed: MADV_DONTNEED
            case .sequential: MADV_SEQUENTIAL
            case .random: MADV_RANDOM
            }
        unsafe SystemCall.advise(base + start, byteCount: range.upperBound - start, code)
    }

    /// Reads the whole file into memory of the C allocator, which may say no.
    private static func copy(of descriptor: Int32, byteCount: Int, _ path: String) throws(PEFTError) -> UnsafeRawPointer {
        guard let memory = unsafe malloc(byteCount) else {
            throw PEFTError(.memory, "no memory to read the \(byteCount) bytes of '\(path)'", detail: Int64(byteCount))
        }
        var done = 0
        do throws(PEFTError) {
            while done < byteCount {
                let rest = unsafe UnsafeMutableRawBufferPointer(start: memory + done, count: byteCount - done)
                let count = unsafe try SystemCall.read(descriptor, into: rest, at: done, path)
                guard count > 0 else { throw PEFTError(.io, "'\(path)' became shorter while it was read (\(done) of \(byteCount) bytes)") }
                done += count
            }
        } catch {
            unsafe free(memory)
            throw error
        }
        return UnsafeRawPointer(memory)
    }
}
