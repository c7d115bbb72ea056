package import Platform
package import Tensors

/// The safetensors format: `u64` header length, JSON header `{"name": {"dtype", "shape", "data_offsets"}, …}`, tensor bytes.
/// Specification: huggingface/safetensors, README "Format".
package enum Safetensors {
    /// The reference implementation's limit is 100 MB; a header of this size already describes 300,000 tensors, and a
    /// parsed header takes many times its bytes.
    static let maximumHeaderBytes = 32 << 20

    /// Opens a file. Tensors are views of the mapping.
    /// - Parameter budget: pays for the rare tensors that the file places on unaligned addresses.
    package static func open(path: String, budget: MemoryBudget) throws(PEFTError) -> TensorSource {
        try open(MappedFile(path: path), budget: budget)
    }

    /// Opens mapped bytes or a buffer of the host.
    /// - Throws: `.format` for anything the specification forbids: lengths and offsets outside the file, sizes that do not
    ///   fit the shape, overlaps and holes, duplicate names; `.unsupported` for element types this version does not read.
    package static func open(_ file: MappedFile, budget: MemoryBudget) throws(PEFTError) -> TensorSource {
        do throws(PEFTError) {
            return try read(file, budget: budget)
        } catch {
            throw error.within(file.name)
        }
    }

    private struct Entry {
        let name: String
        let dtype: DType
        let shape: [Int]
        let range: Range<Int>
    }

    private static func read(_ file: MappedFile, budget: MemoryBudget) throws(PEFTError) -> TensorSource {
        var reader = unsafe ByteReader(file.bytes)
        let length = try reader.integer(UInt64.self, "the safetensors header length")
        guard let headerBytes = Int(exactly: length), headerBytes <= reader.remaining else {
            throw PEFTError(.format, "the safetensors header length \(length) is more than the \(reader.remaining) bytes that follow: not a safetensors file, or cut short")
        }
        guard headerBytes <= maximumHeaderBytes else {
            throw PEFTError(.unsupported, "a safetensors header of \(headerBytes) bytes; at most \(maximumHeaderBytes) are read")
        }
        let text = unsafe try reader.take(headerBytes, "the safetensors header")
        guard unsafe text.first == UInt8(ascii: "{") else { throw PEFTError(.format, "the safetensors header does not begin with '{'") }
        guard let header = unsafe try JSONValue(parsing: text).objectValue else {
            throw PEFTError(.format, "the safetensors header is not a JSON object")
        }

        let dataStart = reader.position
        let dataBytes = reader.remaining
        var metadata: [String: String] = [:]
        var entries: [Entry] = []
        entries.reserveCapacity(header.count)
        for (name, value) in header.pairs {
            if name == "__metadata__" {
                metadata = try parseMetadata(value)
            } else {
                entries.append(try parseEntry(name, value, dataBytes: dataBytes))
            }
        }
        try requireGapless(entries, dataBytes: dataBytes)

        let storage = unsafe Storage(borrowing: file.bytes, keepingAlive: file)
        var tensors: [NamedTensor] = []
        tensors.reserveCapacity(entries.count)
        for entry in entries {
            let offset = dataStart + entry.range.lowerBound  // Safe: inside the file.
            tensors.append(NamedTensor(entry.name, try .view(storage, offset: offset, dtype: entry.dtype, shape: entry.shape, budget: budget)))
        }
        return try TensorSource(origin: file.name, metadata: metadata, tensors)
    }

    private static func parseMetadata(_ value: JSONValue) throws(PEFTError) -> [String: String] {
        guard let object = value.objectValue else { throw PEFTError(.format, "'__metadata__' is \(value.kindName), not an object") }
        var metadata: [String: String] = [:]
        for (key, value) in object.pairs {
            guard let text = value.stringValue else { throw PEFTError(.format, "'__metadata__' has \(value.kindName) under '\(key)', only strings are allowed") }
            metadata[key] = text
        }
        return metadata
    }

    private static func parseEntry(_ name: String, _ value: JSONValue, dataBytes: Int) throws(PEFTError) -> Entry {
        guard let object = value.objectValue else { throw PEFTError(.format, "tensor '\(name)': \(value.kindName) where an object must be") }
        guard let typeName = object["dtype"]?.stringValue else { throw PEFTError(.format, "tensor '\(name)': no \"dtype\"") }
        guard let dtype = dtypes.first(where: { $0.name == typeName })?.dtype else {
            throw PEFTError(.unsupported, "tensor '\(name)' has the element type '\(typeName)'; known are \(dtypes.map(\.name).joined(separator: ", "))")
        }
        guard let shapeValues = object["shape"]?.arrayValue else { throw PEFTError(.format, "tensor '\(name)': no \"shape\"") }
        let shape = try sizes(shapeValues, "tensor '\(name)': shape")
        guard let offsetValues = object["data_offsets"]?.arrayValue, offsetValues.count == 2 else {
            throw PEFTError(.format, "tensor '\(name)': \"data_offsets\" must be two numbers")
        }
        let offsets = try sizes(offsetValues, "tensor '\(name)': data_offsets")
        guard offsets.count == 2, offsets[0] <= offsets[1], offsets[1] <= dataBytes else {
            throw PEFTError(.format, "tensor '\(name)': data_offsets \(offsets) do not lie within the \(dataBytes) bytes of data")
        }
        let bytes = try dtype.byteCount(shape: shape)
        guard bytes == offsets[1] - offsets[0] else {
            throw PEFTError(.format, "tensor '\(name)': \(typeName) \(shape) takes \(bytes) bytes, its data_offsets \(offsets) hold \(offsets[1] - offsets[0])")
        }
        return Entry(name: name, dtype: dtype, shape: shape, range: offsets[0]..<offsets[1])
    }

    /// JSON integers, none negative. At most 8: no tensor of this field has more dimensions.
    private static func sizes(_ values: [JSONValue], _ what: String) throws(PEFTError) -> [Int] {
        guard values.count <= 8 else { throw PEFTError(.unsupported, "\(what) has \(values.count) entries; at most 8 are read") }
        var sizes: [Int] = []
        for value in values {
            guard case .integer(let number) = value, let size = Int(exactly: number), size >= 0 else {
                throw PEFTError(.format, "\(what) has \(value.text()) where a whole number of at least 0 must be")
            }
            sizes.append(size)
        }
        return sizes
    }

    /// The specification: the data is entirely indexed, without holes or overlaps.
    private static func requireGapless(_ entries: [Entry], dataBytes: Int) throws(PEFTError) {
        var end = 0
        for entry in entries.sorted(by: { ($0.range.lowerBound, $0.range.upperBound) < ($1.range.lowerBound, $1.range.upperBound) }) {
            guard entry.range.lowerBound == end else {
                let what = entry.range.lowerBound < end ? "overlaps the tensor before it" : "leaves a hole before it"
                throw PEFTError(.format, "tensor '\(entry.name)' at data offset \(entry.range.lowerBound) \(what), which ends at \(end)")
            }
            end = entry.range.upperBound
        }
        guard end == dataBytes else { throw PEFTError(.format, "\(dataBytes - end) bytes at the end of the file belong to no tensor") }
    }

    /// The element types of the format that this version has, in the rank by which the reference implementation sorts a file
    /// (largest alignment first when written in reverse).
    static let dtypes: [(name: String, dtype: DType)] = [
        ("BOOL", .bool), ("U8", .u8), ("I8", .i8), ("F8_E5M2", .f8_e5m2), ("F8_E4M3", .f8_e4m3), ("I16", .i16), ("F16", .f16), ("BF16", .bf16), ("I32", .i32), ("F32", .f32), ("F64", .f64),
        ("I64", .i64),
    ]
}
