internal import Glibc

/// A regular file read piece by piece with `pread`: for files larger than memory that live for hours, where a mapping
/// would end the host should another program cut the file short.
package final class PositionedFile: Sendable {
    /// The path.
    package let name: String
    package let byteCount: Int
    private let descriptor: Int32
    private let modified: (seconds: Int, nanoseconds: Int)

    package init(path: String) throws(PEFTError) {
        // O_NONBLOCK: opening a pipe must not wait for a writer; it has no effect on regular files.
        let descriptor = try SystemCall.open(path, O_RDONLY | O_NONBLOCK)
        do throws(PEFTError) {
            let status = try SystemCall.status(of: descriptor, path)
            guard status.isRegularFile else { throw PEFTError(.argument, "'\(path)' is \(status.isFolder ? "a folder" : "not a regular file"), a file is needed") }
            name = path
            byteCount = status.byteCount
            modified = status.modified
            self.descriptor = descriptor
        } catch {
            _ = Glibc.close(descriptor)
            throw error
        }
    }

    deinit { _ = Glibc.close(descriptor) }

    /// The bytes `range`.
    /// - Throws: `.io` when the file is no longer the one that was opened, `.argument` for a range outside of it.
    package func read(_ range: Range<Int>) throws(PEFTError) -> [UInt8] {
        guard range.lowerBound >= 0, range.upperBound <= byteCount else { throw PEFTError(.argument, "'\(name)': bytes \(range) of \(byteCount)") }
        let now = try SystemCall.status(of: descriptor, name)
        guard now.byteCount == byteCount, now.modified == modified else {
            throw PEFTError(.io, "'\(name)' was changed by another program while it was in use (\(byteCount) bytes then, \(now.byteCount) now)")
        }
        var bytes = [UInt8](repeating: 0, count: range.count)
        var done = 0
        while done < range.count {
            let result: Result<Int, PEFTError> = unsafe bytes.withUnsafeMutableBytes { buffer in
                do throws(PEFTError) {
                    return unsafe .success(try SystemCall.read(descriptor, into: UnsafeMutableRawBufferPointer(rebasing: buffer[done...]), at: range.lowerBound + done, name))
                } catch {
                    return .failure(error)
                }
            }
            let count = try result.get()
            guard count > 0 else { throw PEFTError(.io, "'\(name)' ended while it was read (\(range.lowerBound + done) of \(byteCount) bytes)") }
            done += count
        }
        return bytes
    }
}
