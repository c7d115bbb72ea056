internal import Platform

/// A cursor over untrusted bytes: every read is checked against what is left, nothing is read twice.
@safe struct ByteReader {
    private let bytes: UnsafeRawBufferPointer
    private(set) var position: Int

    init(_ bytes: UnsafeRawBufferPointer, position: Int = 0) {
        unsafe self.bytes = bytes
        self.position = max(0, min(position, bytes.count))
    }

    var remaining: Int { unsafe bytes.count - position }

    /// The next `count` bytes, not copied.
    mutating func take(_ count: Int, _ what: @autoclosure () -> String) throws(PEFTError) -> UnsafeRawBufferPointer {
        try skip(count, what())
        return unsafe UnsafeRawBufferPointer(rebasing: bytes[position - count..<position])
    }

    mutating func skip(_ count: Int, _ what: @autoclosure () -> String) throws(PEFTError) {
        guard count >= 0, count <= remaining else {
            throw PEFTError(.format, "\(what()) needs \(count) bytes at offset \(position), the file ends after \(remaining)", detail: Int64(position))
        }
        position += count  // Safe: count <= remaining.
    }

    /// A little-endian integer of the file.
    mutating func integer<T: FixedWidthInteger & BitwiseCopyable>(_ type: T.Type, _ what: @autoclosure () -> String) throws(PEFTError) -> T {
        try skip(MemoryLayout<T>.size, what())
        return unsafe T(littleEndian: bytes.loadUnaligned(fromByteOffset: position - MemoryLayout<T>.size, as: T.self))
    }

    /// A `u64` count or size: must fit what is left of the file when every item takes at least `itemBytes`.
    mutating func count(itemBytes: Int, _ what: @autoclosure () -> String) throws(PEFTError) -> Int {
        let start = position
        let value = try integer(UInt64.self, what())
        guard let count = Int(exactly: value), count <= remaining / itemBytes else {
            throw PEFTError(.format, "\(what()): a count of \(value) at offset \(start) cannot be in the \(remaining) bytes that follow", detail: Int64(start))
        }
        return count
    }
}
