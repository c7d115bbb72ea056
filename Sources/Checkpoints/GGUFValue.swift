internal import Platform

/// A metadata value of a GGUF file. Numbers keep their signedness, not their width; arrays stay in the file.
package enum GGUFValue: Sendable {
    case unsigned(UInt64)
    case signed(Int64)
    case float(Double)
    case bool(Bool)
    case string(String)
    case strings(GGUFStrings)
    case numbers(GGUFNumbers)
    case arrays([GGUFValue])

    /// An integer of either sign that fits.
    package var intValue: Int? {
        switch self {
        case .unsigned(let value): Int(exactly: value)
        case .signed(let value): Int(exactly: value)
        default: nil
        }
    }

    package var doubleValue: Double? {
        switch self {
        case .float(let value): value
        case .unsigned(let value): Double(value)
        case .signed(let value): Double(value)
        default: nil
        }
    }

    package var boolValue: Bool? {
        if case .bool(let value) = self { value } else { nil }
    }

    package var stringValue: String? {
        if case .string(let value) = self { value } else { nil }
    }

    package var stringsValue: GGUFStrings? {
        if case .strings(let value) = self { value } else { nil }
    }

    package var numbersValue: GGUFNumbers? {
        if case .numbers(let value) = self { value } else { nil }
    }

    /// For messages.
    package var kindName: String {
        switch self {
        case .unsigned, .signed: "an integer"
        case .float: "a number"
        case .bool: "a boolean"
        case .string: "a string"
        case .strings(let list): "an array of \(list.count) strings"
        case .numbers(let list): "an array of \(list.count) numbers"
        case .arrays(let list): "an array of \(list.count) arrays"
        }
    }
}

/// A string array of a GGUF file (a vocabulary): the bytes stay in the mapping, only where each string begins is kept.
/// A token need not be valid UTF-8.
@safe package struct GGUFStrings: Sendable, RandomAccessCollection {
    let file: MappedFile
    /// Offset of each string's first byte in the file, then one sentinel: where a next string would begin. A string ends
    /// 8 bytes (the next one's length) before the next begins.
    let starts: [Int]

    package var startIndex: Int { 0 }
    package var endIndex: Int { starts.count - 1 }

    /// The string, repaired where it is not UTF-8; "" for an index outside the array.
    package subscript(index: Int) -> String {
        guard index >= 0, index < starts.count - 1 else { return "" }
        // Safe: the reader checked that all strings lie within the file.
        return unsafe String(decoding: file.bytes[starts[index]..<starts[index + 1] - 8], as: UTF8.self)
    }

    /// The bytes of all strings, in one copy of their part of the file.
    package func slices() -> [ArraySlice<UInt8>] {
        guard let first = starts.first, starts.count > 1 else { return [] }
        // Safe: as above; the last string ends 8 bytes before the sentinel.
        let text = unsafe Array(file.bytes[first..<starts[starts.count - 1] - 8])
        return indices.map { text[starts[$0] - first..<starts[$0 + 1] - 8 - first] }
    }
}

/// A number array of a GGUF file (token types, scores): decoded when asked for.
@safe package struct GGUFNumbers: Sendable {
    let file: MappedFile
    let type: GGUF.ValueType
    let offset: Int
    package let count: Int

    /// As integers; nil for an array of floats or a value that does not fit.
    package func integers() -> [Int]? {
        switch type {
        case .u8, .bool: map(UInt8.self) { Int($0) }
        case .i8: map(Int8.self) { Int($0) }
        case .u16: map(UInt16.self) { Int($0) }
        case .i16: map(Int16.self) { Int($0) }
        case .u32: map(UInt32.self) { Int($0) }
        case .i32: map(Int32.self) { Int($0) }
        case .u64: map(UInt64.self) { Int(exactly: $0) ?? -1 }.contains(-1) ? nil : map(UInt64.self) { Int(truncatingIfNeeded: $0) }
        case .i64: map(Int64.self) { Int($0) }
        default: nil
        }
    }

    /// As floats, whatever the element type.
    package func floats() -> [Float] {
        switch type {
        case .f32: map(UInt32.self) { Float(bitPattern: $0) }
        case .f64: map(UInt64.self) { Float(Double(bitPattern: $0)) }
        default: (integers() ?? []).map { Float($0) }
        }
    }

    private func map<T: FixedWidthInteger & BitwiseCopyable, R>(_ type: T.Type, _ body: (T) -> R) -> [R] {
        var result: [R] = []
        result.reserveCapacity(count)
        let bytes = unsafe file.bytes
        for index in 0..<count {
            // Safe: the reader checked that the array lies within the file.
            result.append(unsafe body(T(littleEndian: bytes.loadUnaligned(fromByteOffset: offset + index * MemoryLayout<T>.size, as: T.self))))
        }
        return result
    }
}
