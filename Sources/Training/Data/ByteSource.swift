package import Platform

/// Bytes of a data set: a file read piece by piece, or memory.
package protocol ByteSource: Sendable {
    /// The path, or what the host calls the buffer; for messages.
    var name: String { get }
    var byteCount: Int { get }
    /// The bytes `range`, which lies inside.
    func read(_ range: Range<Int>) throws(PEFTError) -> [UInt8]
}

/// A data set that the host handed over as text.
package struct MemoryBytes: ByteSource {
    package let name: String
    private let bytes: [UInt8]

    package init(_ bytes: [UInt8], name: String) {
        self.bytes = bytes
        self.name = name
    }

    package var byteCount: Int { bytes.count }

    package func read(_ range: Range<Int>) throws(PEFTError) -> [UInt8] {
        guard range.lowerBound >= 0, range.upperBound <= bytes.count else {
            throw PEFTError(.internal, "\(name): bytes \(range) of \(bytes.count)")
        }
        return Array(bytes[range])
    }
}

// Reads with `pread`, so a file that another program cuts short is an error and not a signal.
extension PositionedFile: ByteSource {}
