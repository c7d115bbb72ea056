package import Platform
package import Tensors

extension GGUF {
    /// A metadata value to be written. The width of a number is part of the format: readers ask for exactly the type they
    /// know a key to have.
    package enum Field: Sendable {
        case u32(UInt32)
        case i32(Int32)
        case u64(UInt64)
        case f32(Float)
        case bool(Bool)
        case string(String)
        case strings([String])
        case i32s([Int32])
        case f32s([Float])
        /// A pair of an open file, byte for byte: how a model keeps its vocabulary when it is exported.
        case copy(of: GGUF, key: String)
    }

    /// Writes version 3 atomically; tensors are made one at a time, in the order of the descriptions.
    /// - Parameters:
    ///   - metadata: in order; `general.architecture` first, by convention. `general.alignment` is not possible: 32 is used.
    ///   - tensor: makes the tensor of the description with this index.
    package static func write(
        _ metadata: [(key: String, field: Field)], _ descriptions: [TensorDescription], to path: String,
        tensor: (Int) throws(PEFTError) -> Tensor
    ) throws(PEFTError) {
        var header = GGUFHeader()
        try header.begin(tensors: descriptions.count, pairs: metadata.count)
        var keys: Set<String> = ["general.alignment"]
        for (key, field) in metadata {
            guard !key.isEmpty, keys.insert(key).inserted else { throw PEFTError(.argument, "metadata '\(key)' cannot be written, or not twice") }
            try header.pair(key, field)
        }
        var names: Set<String> = []
        var offset = 0
        for item in descriptions {
            guard !item.name.isEmpty, names.insert(item.name).inserted else { throw PEFTError(.argument, "two tensors are to be written as '\(item.name)'") }
            try header.tensor(item, offset: offset)
            offset = try checkedSum(offset, padded(item.dtype.byteCount(shape: item.shape)), of: "the file")
        }

        var file = try AtomicFile(path)
        try file.write(header.bytes)
        try pad(&file)
        for (index, promised) in descriptions.enumerated() {
            let made = try tensor(index)
            guard made.dtype == promised.dtype, made.shape == promised.shape, made.storage.isReal else {
                throw PEFTError(.internal, "tensor '\(promised.name)' was announced as \(promised.dtype.name) \(promised.shape) and is \(made.dtype.name) \(made.shape)")
            }
            unsafe try file.write(UnsafeRawBufferPointer(start: made.pointer, count: made.byteCount))
            try pad(&file)
        }
        try file.commit()
    }

    private static func padded(_ count: Int) throws(PEFTError) -> Int { try checkedSum(count, 31, of: "the file") / 32 * 32 }

    private static func pad(_ file: inout AtomicFile) throws(PEFTError) {
        try file.write([UInt8](repeating: 0, count: try padded(file.byteCount) - file.byteCount))
    }
}

/// The bytes before the tensor data.
private struct GGUFHeader {
    private(set) var bytes: [UInt8] = GGUF.magic

    mutating func begin(tensors: Int, pairs: Int) throws(PEFTError) {
        put(UInt32(3))
        put(UInt64(tensors))
        put(UInt64(pairs))
    }

    mutating func pair(_ key: String, _ field: GGUF.Field) throws(PEFTError) {
        put(key)
        switch field {
        case .u32(let value): put(.u32, value)
        case .i32(let value): put(.i32, value)
        case .u64(let value): put(.u64, value)
        case .f32(let value): put(.f32, value.bitPattern)
        case .bool(let value): put(.bool, UInt8(value ? 1 : 0))
        case .string(let text):
            put(GGUF.ValueType.string.rawValue)
            put(text)
        case .strings(let list):
            array(.string, list.count)
            for text in list { put(text) }
        case .i32s(let list):
            array(.i32, list.count)
            for value in list { put(value) }
        case .f32s(let list):
            array(.f32, list.count)
            for value in list { put(value.bitPattern) }
        case .copy(let file, let name):
            guard let raw = file.rawValue(name) else { throw PEFTError(.notFound, "\(file.origin): no metadata '\(name)' to copy") }
            bytes += raw
        }
    }

    mutating func tensor(_ item: TensorDescription, offset: Int) throws(PEFTError) {
        guard item.dtype.rawValue < 1000 else { throw PEFTError(.unsupported, "tensor '\(item.name)' is \(item.dtype.name), which GGUF does not have") }
        guard item.shape.count <= 4 else { throw PEFTError(.unsupported, "tensor '\(item.name)' has \(item.shape.count) dimensions; GGUF has at most 4") }
        put(item.name)
        put(UInt32(item.shape.count))
        for size in item.shape.reversed() { put(UInt64(size)) }
        put(UInt32(item.dtype.rawValue))
        put(UInt64(offset))
    }

    private mutating func put<T: FixedWidthInteger>(_ value: T) {
        var rest = value
        for _ in 0..<MemoryLayout<T>.size {
            bytes.append(UInt8(truncatingIfNeeded: rest))
            rest = T.bitWidth > 8 ? rest >> 8 : 0
        }
    }

    private mutating func put(_ text: String) {
        put(UInt64(text.utf8.count))
        bytes += Array(text.utf8)
    }

    private mutating func put<T: FixedWidthInteger>(_ type: GGUF.ValueType, _ value: T) {
        put(type.rawValue)
        put(value)
    }

    private mutating func array(_ type: GGUF.ValueType, _ count: Int) {
        put(GGUF.ValueType.array, type.rawValue)
        put(UInt64(count))
    }
}
