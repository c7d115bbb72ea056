internal import Platform

/// An element type of a dataset.
enum HDF5Datatype: Equatable {
    case number(HDF5.Encoding)
    /// Fixed length, in bytes.
    case string(Int)

    var byteCount: Int {
        switch self {
        case .number(.integer(let bytes, _)), .number(.float(let bytes, _, _, _)), .string(let bytes): bytes
        }
    }
}

/// Object headers (format version 1): a list of messages that say what the object is.
extension HDF5Reader {
    private enum Message {
        static let null: UInt16 = 0x00, dataspace: UInt16 = 0x01, linkInfo: UInt16 = 0x02, datatype: UInt16 = 0x03
        static let oldFill: UInt16 = 0x04, fill: UInt16 = 0x05, link: UInt16 = 0x06, external: UInt16 = 0x07, layout: UInt16 = 0x08
        static let filters: UInt16 = 0x0b, attribute: UInt16 = 0x0c, comment: UInt16 = 0x0d, oldTime: UInt16 = 0x0e
        static let continuation: UInt16 = 0x10, symbolTable: UInt16 = 0x11, time: UInt16 = 0x12, references: UInt16 = 0x16
    }

    mutating func object(at address: UInt64, _ what: String) throws(PEFTError) -> Object {
        var reader = try reader(at: address, what)
        let version = try reader.integer(UInt8.self, what)
        guard version == 1 else { throw PEFTError(.unsupported, "\(what): an HDF5 object header of version \(version); version 1 is read") }
        try reader.skip(1, what)
        var messagesLeft = try reader.integer(UInt16.self, what)
        try reader.skip(4, what)
        let size = try reader.integer(UInt32.self, what)
        try reader.skip(4, what)

        var group: HDF5Group?
        var integers: [String: Int64] = [:]
        var shape: [Int]?
        var type: HDF5Datatype?
        var data: (offset: UInt64, byteCount: UInt64)?
        var blocks: [(address: UInt64, size: UInt64)] = [(UInt64(reader.position), UInt64(size))]
        while let block = blocks.popLast() {
            try visit(what)
            var rest = try self.reader(at: block.address, what)
            guard block.size <= UInt64(rest.remaining) else { throw PEFTError(.format, "\(what): its HDF5 header runs over the end of the file") }
            let end = rest.position + Int(block.size)
            while messagesLeft > 0, end - rest.position >= 8 {
                try visit(what)
                messagesLeft -= 1
                let kind = try rest.integer(UInt16.self, what)
                let count = Int(try rest.integer(UInt16.self, what))
                let flags = try rest.integer(UInt8.self, what)
                try rest.skip(3, what)
                guard count <= end - rest.position else { throw PEFTError(.format, "\(what): a damaged HDF5 header message") }
                var body = unsafe ByteReader(try rest.take(count, what))
                if kind == Message.null { continue }
                guard flags & 2 == 0 else { throw PEFTError(.unsupported, "\(what): shared HDF5 messages are not read") }
                switch kind {
                case Message.symbolTable:
                    group = HDF5Group(tree: try body.integer(UInt64.self, what), heap: try body.integer(UInt64.self, what))
                case Message.dataspace: shape = try dataspace(&body, what)
                case Message.datatype: type = try datatype(&body, what)
                case Message.layout: data = try layout(&body, at: rest.position - count, what)
                case Message.attribute:
                    if let (name, value) = try integerAttribute(&body, what) { integers[name] = value }
                case Message.continuation: blocks.append((try body.integer(UInt64.self, what), try body.integer(UInt64.self, what)))
                case Message.oldFill, Message.fill, Message.comment, Message.oldTime, Message.time, Message.references: break
                case Message.filters: throw PEFTError(.unsupported, "\(what) is stored with a filter (compressed); only plain contiguous data is read")
                case Message.external: throw PEFTError(.unsupported, "\(what) keeps its data in another file; that is never followed")
                case Message.linkInfo, Message.link: throw PEFTError(.unsupported, "\(what) is a new-style HDF5 group; write the file with libver='earliest'")
                default: throw PEFTError(.unsupported, "\(what): an HDF5 header message of type \(kind), which plain files do not have")
                }
            }
        }
        if var group {
            group.integers = integers
            return .group(group)
        }
        guard let shape, let type, let data else { throw PEFTError(.format, "\(what) is neither a group nor a dataset") }
        return .dataset(try place(type, shape, data, what))
    }

    /// Checks a dataset's size against its storage and the file.
    private func place(_ type: HDF5Datatype, _ shape: [Int], _ data: (offset: UInt64, byteCount: UInt64), _ what: String) throws(PEFTError) -> Dataset {
        var byteCount = type.byteCount
        for size in shape { byteCount = try checkedProduct(byteCount, size, of: "\(what) \(shape)") }
        if byteCount == 0 { return Dataset(type: type, shape: shape, offset: 0, byteCount: 0) }
        guard data.offset != HDF5Reader.undefined else { throw PEFTError(.format, "\(what) was never written") }
        guard data.byteCount == UInt64(byteCount) else { throw PEFTError(.format, "\(what): \(shape) takes \(byteCount) bytes, \(data.byteCount) are stored") }
        guard let offset = Int(exactly: data.offset), unsafe offset <= bytes.count, unsafe byteCount <= bytes.count - offset else {
            throw PEFTError(.format, "\(what): its \(byteCount) bytes at \(data.offset) do not lie within the file")
        }
        return Dataset(type: type, shape: shape, offset: offset, byteCount: byteCount)
    }

    // MARK: Messages

    private func dataspace(_ body: inout ByteReader, _ what: String) throws(PEFTError) -> [Int] {
        let version = try body.integer(UInt8.self, what)
        let rank = try body.integer(UInt8.self, what)
        guard version == 1 || version == 2, rank <= 8 else { throw PEFTError(.unsupported, "\(what): an HDF5 dataspace of version \(version) with \(rank) dimensions; versions 1 and 2 with at most 8 are read") }
        try body.skip(1, what)
        if version == 1 {
            try body.skip(5, what)
        } else {
            guard try body.integer(UInt8.self, what) < 2 else { throw PEFTError(.unsupported, "\(what) is an HDF5 null dataspace") }
        }
        var shape: [Int] = []
        for _ in 0..<rank {
            let size = try body.integer(UInt64.self, what)
            guard let size = Int(exactly: size) else { throw PEFTError(.format, "\(what): a dimension of \(size)") }
            shape.append(size)
        }
        return shape
    }

    private func datatype(_ body: inout ByteReader, _ what: String) throws(PEFTError) -> HDF5Datatype {
        let classAndVersion = try body.integer(UInt8.self, what)
        let flags = unsafe Array(try body.take(3, what))
        let size = Int(try body.integer(UInt32.self, what))
        switch classAndVersion & 0x0f {
        case 0:
            let offset = try body.integer(UInt16.self, what)
            let precision = Int(try body.integer(UInt16.self, what))
            guard flags[0] & 1 == 0, offset == 0, precision == size * 8, [1, 2, 4, 8].contains(size) else { break }
            return .number(.integer(bytes: size, signed: flags[0] & 8 != 0))
        case 1:
            let offset = try body.integer(UInt16.self, what)
            let precision = Int(try body.integer(UInt16.self, what))
            let fields = unsafe Array(try body.take(4, what)).map { Int($0) }  // exponent at, bits; mantissa at, bits
            let bias = Int(try body.integer(UInt32.self, what))
            let isPlain = flags[0] & 0x41 == 0 && flags[0] >> 4 & 3 == 2 && Int(flags[1]) == size * 8 - 1 && offset == 0 && precision == size * 8
            guard isPlain, fields[2] == 0, fields[0] == fields[3] else { break }
            return .number(.float(bytes: size, exponentBits: fields[1], mantissaBits: fields[3], bias: bias))
        case 3: return .string(size)
        case 8: throw PEFTError(.unsupported, "\(what) has an enumeration (h5py's bool) as element type; store it as uint8")
        case 9: throw PEFTError(.unsupported, "\(what) has a variable-length element type; store text with numpy.bytes_")
        default: break
        }
        throw PEFTError(.unsupported, "\(what) has an HDF5 element type (class \(classAndVersion & 0x0f), \(size) bytes) that is no plain little-endian number")
    }

    /// - Parameter position: of the message in the file; compact data lies inside it.
    private func layout(_ body: inout ByteReader, at position: Int, _ what: String) throws(PEFTError) -> (offset: UInt64, byteCount: UInt64) {
        let version = try body.integer(UInt8.self, what)
        guard version == 3 || version == 4 else { throw PEFTError(.unsupported, "\(what): an HDF5 data layout of version \(version); 3 and 4 are read") }
        switch try body.integer(UInt8.self, what) {
        case 0:
            let byteCount = try body.integer(UInt16.self, what)
            guard Int(byteCount) <= body.remaining else { throw PEFTError(.format, "\(what): its compact data is cut short") }
            return (UInt64(position + body.position), UInt64(byteCount))
        case 1: return (try body.integer(UInt64.self, what), try body.integer(UInt64.self, what))
        case 2: throw PEFTError(.unsupported, "\(what) is stored in chunks; only plain contiguous data is read")
        default: throw PEFTError(.unsupported, "\(what) is a virtual dataset; only plain contiguous data is read")
        }
    }

    /// An attribute that is one 8-byte integer; nil for any other.
    private func integerAttribute(_ body: inout ByteReader, _ what: String) throws(PEFTError) -> (String, Int64)? {
        let version = try body.integer(UInt8.self, what)
        guard (1...3).contains(version) else { return nil }
        let flags = try body.integer(UInt8.self, what)
        guard version == 1 || flags == 0 else { return nil }
        let sizes = [Int(try body.integer(UInt16.self, what)), Int(try body.integer(UInt16.self, what)), Int(try body.integer(UInt16.self, what))]
        if version == 3 { try body.skip(1, what) }
        // Version 1 pads each part to a multiple of 8.
        let padded = version == 1 ? sizes.map { ($0 + 7) & ~7 } : sizes
        let name = unsafe String(decoding: try body.take(padded[0], what).prefix { $0 != 0 }, as: UTF8.self)
        var typeBytes = unsafe ByteReader(try body.take(padded[1], what))
        var spaceBytes = unsafe ByteReader(try body.take(padded[2], what))
        guard let type = try? datatype(&typeBytes, what), type == .number(.integer(bytes: 8, signed: true)),
            let shape = try? dataspace(&spaceBytes, what), shape.isEmpty
        else { return nil }
        return (name, try body.integer(Int64.self, what))
    }
}
