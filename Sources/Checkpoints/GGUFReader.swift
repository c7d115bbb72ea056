package import Platform
package import Tensors

extension GGUF {
    /// Opens a file; tensors and vocabularies stay in the mapping.
    package init(path: String, budget: MemoryBudget) throws(PEFTError) {
        try self.init(MappedFile(path: path), budget: budget)
    }

    /// Opens mapped bytes or a buffer of the host.
    /// - Throws: `.format` when a count, length or offset points outside the file, a name appears twice, or tensors
    ///   overlap; `.unsupported` for other versions, big-endian files and tensor types this version does not read.
    package init(_ file: MappedFile, budget: MemoryBudget) throws(PEFTError) {
        do throws(PEFTError) {
            var reader = unsafe GGUFReader(file: file, bytes: ByteReader(file.bytes))
            self = try reader.read(budget: budget)
        } catch {
            throw error.within(file.name)
        }
    }
}

/// One pass over the header of a GGUF file.
private struct GGUFReader {
    let file: MappedFile
    var bytes: ByteReader

    // Limits far above any real file, so that a small hostile file cannot ask for much memory.
    static let maximumKeys = 1 << 16
    static let maximumTensors = 1 << 20
    static let maximumNestedArrays = 1 << 16
    static let maximumNameBytes = 1 << 16
    static let maximumDimensions = 4
    private var nestedArraysLeft = GGUFReader.maximumNestedArrays

    init(file: MappedFile, bytes: ByteReader) {
        self.file = file
        self.bytes = bytes
    }

    private struct Info {
        let name: String
        let dtype: DType
        let shape: [Int]
        let range: Range<Int>
    }

    mutating func read(budget: MemoryBudget) throws(PEFTError) -> GGUF {
        let magic = unsafe try Array(bytes.take(4, "the GGUF magic"))
        guard magic == GGUF.magic else { throw PEFTError(.format, "the file does not begin with \"GGUF\"") }
        let version = try bytes.integer(UInt32.self, "the GGUF version")
        guard version == 2 || version == 3 else {
            let reason = version.byteSwapped <= 3 ? "a big-endian file" : "GGUF version \(version)"
            throw PEFTError(.unsupported, "\(reason); versions 2 and 3 in little-endian order are read")
        }
        // A description takes at least: name length, a character, number of dimensions, type, offset.
        let tensorCount = try bytes.count(itemBytes: 8 + 1 + 4 + 4 + 8, "the number of tensors")
        // A pair takes at least: key length, a character, type, one byte.
        let keyCount = try bytes.count(itemBytes: 8 + 1 + 4 + 1, "the number of metadata pairs")
        guard tensorCount <= GGUFReader.maximumTensors, keyCount <= GGUFReader.maximumKeys else {
            throw PEFTError(.unsupported, "\(tensorCount) tensors and \(keyCount) metadata pairs; at most \(GGUFReader.maximumTensors) and \(GGUFReader.maximumKeys) are read")
        }

        var keys: [String] = []
        var values: [String: GGUFValue] = [:]
        var ranges: [String: Range<Int>] = [:]
        keys.reserveCapacity(keyCount)
        values.reserveCapacity(keyCount)
        for index in 0..<keyCount {
            let key = try name("the key of metadata pair \(index)")
            let start = bytes.position
            let type = try valueType("metadata '\(key)'")
            let value = try value(type, "metadata '\(key)'", depth: 0)
            guard values.updateValue(value, forKey: key) == nil else { throw PEFTError(.format, "metadata '\(key)' is there twice") }
            keys.append(key)
            ranges[key] = start..<bytes.position
        }

        if let parts = values["split.count"]?.intValue, parts > 1 {
            let part = (values["split.no"]?.intValue).map { "\($0 &+ 1)" } ?? "?"  // Safe: only for the message.
            throw PEFTError(.unsupported, "part \(part) of a model split into \(parts) files; join them first (llama-gguf-split --merge)")
        }
        var infos: [Info] = []
        infos.reserveCapacity(tensorCount)
        for index in 0..<tensorCount { infos.append(try tensorInfo(index)) }

        let alignment = try alignment(values["general.alignment"])
        let tensors = try place(infos, alignment: alignment, budget: budget)
        return GGUF(version: Int(version), keys: keys, values: values, ranges: ranges, tensors: try TensorSource(origin: file.name, tensors), file: file)
    }

    // MARK: Metadata

    private mutating func valueType(_ what: String) throws(PEFTError) -> GGUF.ValueType {
        let raw = try bytes.integer(UInt32.self, "the type of \(what)")
        guard let type = GGUF.ValueType(rawValue: raw) else { throw PEFTError(.format, "\(what) has the value type \(raw); 0 to 12 exist") }
        return type
    }

    private mutating func value(_ type: GGUF.ValueType, _ what: String, depth: Int) throws(PEFTError) -> GGUFValue {
        switch type {
        case .u8: return .unsigned(UInt64(try bytes.integer(UInt8.self, what)))
        case .i8: return .signed(Int64(try bytes.integer(Int8.self, what)))
        case .u16: return .unsigned(UInt64(try bytes.integer(UInt16.self, what)))
        case .i16: return .signed(Int64(try bytes.integer(Int16.self, what)))
        case .u32: return .unsigned(UInt64(try bytes.integer(UInt32.self, what)))
        case .i32: return .signed(Int64(try bytes.integer(Int32.self, what)))
        case .u64: return .unsigned(try bytes.integer(UInt64.self, what))
        case .i64: return .signed(try bytes.integer(Int64.self, what))
        case .f32: return .float(Double(Float(bitPattern: try bytes.integer(UInt32.self, what))))
        case .f64: return .float(Double(bitPattern: try bytes.integer(UInt64.self, what)))
        case .bool:
            let byte = try bytes.integer(UInt8.self, what)
            guard byte <= 1 else { throw PEFTError(.format, "\(what) is the boolean \(byte); 0 and 1 exist") }
            return .bool(byte == 1)
        case .string:
            let count = try bytes.count(itemBytes: 1, "the length of \(what)")
            return .string(unsafe String(decoding: try bytes.take(count, what), as: UTF8.self))
        case .array: return try array(what, depth: depth)
        }
    }

    private mutating func array(_ what: String, depth: Int) throws(PEFTError) -> GGUFValue {
        let type = try valueType("the elements of \(what)")
        if let size = type.byteCount {
            let count = try bytes.count(itemBytes: size, "the length of \(what)")
            let offset = bytes.position
            try bytes.skip(count * size, what)  // Safe: count <= remaining / size.
            return .numbers(GGUFNumbers(file: file, type: type, offset: offset, count: count))
        }
        if type == .string {
            let count = try bytes.count(itemBytes: 8, "the length of \(what)")
            return .strings(GGUFStrings(file: file, starts: try stringStarts(count, what)))
        }
        guard depth < 4 else { throw PEFTError(.unsupported, "\(what): arrays nested deeper than 4") }
        let count = try bytes.count(itemBytes: 4 + 8, "the length of \(what)")
        guard count <= nestedArraysLeft else {
            throw PEFTError(.unsupported, "\(what): \(count) nested arrays; at most \(GGUFReader.maximumNestedArrays) are read in a file")
        }
        nestedArraysLeft -= count
        var arrays: [GGUFValue] = []
        for _ in 0..<count { arrays.append(try array(what, depth: depth + 1)) }
        return .arrays(arrays)
    }

    /// Walks a string array. This is the hot loop of opening a model (50,000 to 260,000 tokens).
    private mutating func stringStarts(_ count: Int, _ what: String) throws(PEFTError) -> [Int] {
        var starts: [Int] = []
        starts.reserveCapacity(count + 1)  // Safe: count <= remaining / 8.
        let all = unsafe file.bytes
        let end = all.count
        var position = bytes.position
        for _ in 0..<count {
            guard end - position >= 8 else { throw PEFTError(.format, "\(what): the file ends inside it", detail: Int64(position)) }
            let length = unsafe UInt64(littleEndian: all.loadUnaligned(fromByteOffset: position, as: UInt64.self))
            position += 8
            guard length <= UInt64(end - position) else {
                throw PEFTError(.format, "\(what): a string of \(length) bytes at offset \(position), the file ends after \(end - position)", detail: Int64(position))
            }
            starts.append(position)
            position += Int(length)
        }
        starts.append(position + 8)
        try bytes.skip(position - bytes.position, what)
        return starts
    }

    /// A key or a tensor's name: valid UTF-8, not empty, so that two different names stay different as `String`s.
    private mutating func name(_ what: String) throws(PEFTError) -> String {
        let count = try bytes.count(itemBytes: 1, "the length of \(what)")
        guard count > 0, count <= GGUFReader.maximumNameBytes else { throw PEFTError(.format, "\(what) has \(count) bytes; 1 to \(GGUFReader.maximumNameBytes) are possible") }
        guard let name = unsafe String(validating: try bytes.take(count, what), as: UTF8.self) else { throw PEFTError(.format, "\(what) is not valid UTF-8") }
        return name
    }

    // MARK: Tensors

    private mutating func tensorInfo(_ index: Int) throws(PEFTError) -> Info {
        let name = try name("the name of tensor \(index)")
        let dimensionCount = Int(try bytes.integer(UInt32.self, "the dimensions of tensor '\(name)'"))
        guard dimensionCount <= GGUFReader.maximumDimensions else {
            throw PEFTError(.format, "tensor '\(name)' has \(dimensionCount) dimensions; at most \(GGUFReader.maximumDimensions) are possible")
        }
        var shape: [Int] = []
        for _ in 0..<dimensionCount {
            let size = try bytes.integer(UInt64.self, "the dimensions of tensor '\(name)'")
            guard let size = Int(exactly: size) else { throw PEFTError(.format, "tensor '\(name)' has a dimension of \(size)") }
            shape.append(size)
        }
        shape.reverse()
        let type = try bytes.integer(UInt32.self, "the type of tensor '\(name)'")
        let dtype = try dtype(type, name)
        let offset = try bytes.integer(UInt64.self, "the offset of tensor '\(name)'")
        guard let offset = Int(exactly: offset) else { throw PEFTError(.format, "tensor '\(name)' has the offset \(offset)") }
        let byteCount: Int
        do throws(PEFTError) { byteCount = try dtype.byteCount(shape: shape) } catch { throw error.within("tensor '\(name)'") }
        return Info(name: name, dtype: dtype, shape: shape, range: offset..<(try checkedSum(offset, byteCount, of: "tensor '\(name)'")))
    }

    private func dtype(_ raw: UInt32, _ name: String) throws(PEFTError) -> DType {
        // Numbers from 1000 are our own and no GGML types.
        if raw < 1000, let dtype = DType(rawValue: Int32(raw)) { return dtype }
        let known = DType.allCases.filter { $0.rawValue < 1000 }.map(\.name).joined(separator: ", ")
        let typeName = GGUFReader.unreadTypes[raw].map { "\($0) (\(raw))" } ?? "\(raw), which GGML does not have"
        throw PEFTError(.unsupported, "tensor '\(name)' has the type \(typeName); read are \(known)")
    }

    private func alignment(_ value: GGUFValue?) throws(PEFTError) -> Int {
        guard let value else { return 32 }
        guard let alignment = value.intValue, alignment >= 8, alignment % 8 == 0, alignment <= 1 << 20 else {
            throw PEFTError(.format, "'general.alignment' is \(value.intValue.map { "\($0)" } ?? value.kindName); multiples of 8 up to 1048576 are possible")
        }
        return alignment
    }

    /// Checks where the tensors lie and makes them views of the file.
    private func place(_ infos: [Info], alignment: Int, budget: MemoryBudget) throws(PEFTError) -> [NamedTensor] {
        let headerEnd = bytes.position
        // Safe: the position is at most the size of a file that is in the address space, the alignment at most 2^20.
        let dataStart = (headerEnd + alignment - 1) / alignment * alignment
        let dataBytes = max(0, file.byteCount - dataStart)
        var end = 0
        for info in infos.sorted(by: { ($0.range.lowerBound, $0.range.upperBound) < ($1.range.lowerBound, $1.range.upperBound) }) {
            guard info.range.lowerBound % alignment == 0 else {
                throw PEFTError(.format, "tensor '\(info.name)' lies at data offset \(info.range.lowerBound), not a multiple of the alignment \(alignment)")
            }
            guard info.range.lowerBound >= end else { throw PEFTError(.format, "tensor '\(info.name)' at data offset \(info.range.lowerBound) overlaps the tensor before it, which ends at \(end)") }
            guard info.range.upperBound <= dataBytes else {
                throw PEFTError(.format, "tensor '\(info.name)' needs \(info.range.count) bytes at data offset \(info.range.lowerBound), the file holds \(dataBytes) bytes of data: cut short?")
            }
            end = info.range.upperBound
        }
        let storage = unsafe Storage(borrowing: file.bytes, keepingAlive: file)
        var tensors: [NamedTensor] = []
        tensors.reserveCapacity(infos.count)
        for info in infos {
            // An empty tensor may lie at the very end, where the padding before the data is missing.
            let offset = info.range.isEmpty ? 0 : dataStart + info.range.lowerBound
            tensors.append(NamedTensor(info.name, try .view(storage, offset: offset, dtype: info.dtype, shape: info.shape, budget: budget)))
        }
        return tensors
    }

    /// GGML's types without a row in our table of formats, to name them in an error.
    static let unreadTypes: [UInt32: String] = [
        9: "q8_1", 15: "q8_K", 16: "iq2_xxs", 17: "iq2_xs", 18: "iq3_xxs", 19: "iq1_s", 21: "iq3_s", 22: "iq2_s", 23: "iq4_xs", 29: "iq1_m",
        39: "mxfp4",
    ]
}
