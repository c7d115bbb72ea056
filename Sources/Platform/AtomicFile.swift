internal import Glibc

/// A file that appears under its name only when it is complete: written to a temporary file in the same folder, flushed
/// to the disk, renamed over the old one. Whatever fails before the rename leaves the old file as it was and no
/// temporary behind; a reader sees the old file or the new one, never a part.
///
/// ```swift
/// var file = try AtomicFile(path)
/// try file.write(bytes)
/// try file.commit()
/// ```
package struct AtomicFile: ~Copyable {
    package let path: String
    private let temporary: String
    /// -1 once closed.
    private var descriptor: Int32
    private var isCommitted = false
    private var buffer: [UInt8] = []
    /// Bytes handed to `write` so far.
    package private(set) var byteCount = 0

    private static let bufferBytes = 1 << 16

    /// Creates the temporary file. A symbolic link at `path` is followed: the file it names is replaced, the link stays.
    package init(_ path: String) throws(PEFTError) {
        let old = try SystemCall.status(at: path)
        if let old, !old.isRegularFile {
            throw PEFTError(.io, "cannot write '\(path)': \(old.isFolder ? "it is a folder" : "it is not a regular file")")
        }
        let target = old == nil ? path : (SystemCall.resolved(path) ?? path)
        let name = Files.name(of: target)
        guard !name.isEmpty, !path.hasSuffix("/") else { throw PEFTError(.argument, "'\(path)' is not the name of a file") }
        // Leading dot: hidden from listings and from globs such as *.safetensors.
        let temporary = Files.join(Files.parent(of: target), ".\(name.prefix(64)).\(String(UInt64.random(in: .min ... .max), radix: 36)).tmp")
        let opened: Int32
        do throws(PEFTError) {
            opened = try SystemCall.open(temporary, O_WRONLY | O_CREAT | O_EXCL, permissions: 0o666)
        } catch {
            throw error.within("writing '\(path)'")
        }
        self.path = target
        self.temporary = temporary
        self.descriptor = opened
        if let old { SystemCall.setPermissions(descriptor, old.permissions) }
        buffer.reserveCapacity(AtomicFile.bufferBytes)
    }

    deinit {
        if descriptor >= 0 { _ = Glibc.close(descriptor) }
        if !isCommitted { SystemCall.removeFile(temporary) }
    }

    /// Appends bytes; small pieces are collected.
    package mutating func write(_ bytes: UnsafeRawBufferPointer) throws(PEFTError) {
        byteCount += bytes.count  // Safe: a file of 2^63 bytes cannot be written.
        if bytes.count >= AtomicFile.bufferBytes {
            try flush()
            unsafe try SystemCall.write(descriptor, bytes, path)
        } else {
            if buffer.count + bytes.count > AtomicFile.bufferBytes { try flush() }
            unsafe buffer.append(contentsOf: bytes)
        }
    }

    package mutating func write(_ text: String) throws(PEFTError) {
        try write(Array(text.utf8))
    }

    package mutating func write(_ bytes: [UInt8]) throws(PEFTError) {
        let result: Result<Void, PEFTError> = unsafe bytes.withUnsafeBytes { raw in
            do throws(PEFTError) {
                unsafe try write(raw)
                return .success(())
            } catch {
                return .failure(error)
            }
        }
        try result.get()
    }

    /// Makes the file appear under its name, durably.
    package consuming func commit() throws(PEFTError) {
        try finish()
        try publish()
        try AtomicFile.synchronizeFolder(of: path)
    }

    /// Everything of a commit that can fail for lack of space: flush and close.
    package mutating func finish() throws(PEFTError) {
        guard descriptor >= 0 else { return }
        try flush()
        try SystemCall.synchronize(descriptor, path)
        let closing = descriptor
        descriptor = -1
        try SystemCall.close(closing, path)
    }

    /// Only the rename; after `finish`.
    package mutating func publish() throws(PEFTError) {
        try SystemCall.rename(temporary, to: path)
        isCommitted = true
    }

    /// Makes renames in a file's folder durable.
    package static func synchronizeFolder(of path: String) throws(PEFTError) {
        let folder = Files.parent(of: path)
        let descriptor = try SystemCall.open(folder, O_RDONLY | O_DIRECTORY)
        defer { _ = Glibc.close(descriptor) }
        try SystemCall.synchronize(descriptor, folder)
    }

    private mutating func flush() throws(PEFTError) {
        guard !buffer.isEmpty else { return }
        let full = buffer
        buffer.removeAll(keepingCapacity: true)
        let result: Result<Void, PEFTError> = unsafe full.withUnsafeBytes { raw in
            do throws(PEFTError) {
                unsafe try SystemCall.write(descriptor, raw, path)
                return .success(())
            } catch {
                return .failure(error)
            }
        }
        try result.get()
    }

    /// Writes a whole small file.
    package static func write(_ text: String, to path: String) throws(PEFTError) {
        var file = try AtomicFile(path)
        try file.write(text)
        try file.commit()
    }
}
