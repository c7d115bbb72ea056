internal import Platform

/// Reads the HDF5 files of our layout, in Swift with every access checked, not with the HDF5 library: that library has a
/// long list of crashes on damaged and hostile files, and a checkpoint may come from a stranger.
///
/// Accepted is what the library writes by default for plain data (format version 0, which h5py also writes by default):
/// old-style groups of hard links, contiguous datasets of numbers or one string. Refused by name: soft and external
/// links, external storage, virtual, chunked and filtered datasets, variable-length data, shared messages, user blocks,
/// driver information, dense groups. Format: "HDF5 File Format Specification Version 1.1" to 3.0, sections II to IV.
@safe struct HDF5Reader {
    /// A dataset where it lies in the file.
    struct Dataset {
        let type: HDF5Datatype
        let shape: [Int]
        let offset: Int
        let byteCount: Int
    }

    enum Object {
        case group(HDF5Group)
        case dataset(Dataset)
    }

    let bytes: UnsafeRawBufferPointer
    private let root: UInt64
    /// B-tree nodes, symbols, header blocks and messages left to visit: hostile files can make them refer to each other.
    private var visitsLeft = 4_000_000

    static let undefined = UInt64.max

    /// Checks the superblock.
    init(_ bytes: UnsafeRawBufferPointer) throws(PEFTError) {
        var reader = unsafe ByteReader(bytes)
        guard bytes.count >= 96, unsafe Array(try reader.take(8, "the HDF5 signature")) == HDF5.signature else {
            throw PEFTError(.format, "not an HDF5 file: it does not begin with the HDF5 signature")
        }
        let version = try reader.integer(UInt8.self, "the superblock version")
        guard version == 0 else {
            throw PEFTError(.unsupported, "an HDF5 file of superblock version \(version); version 0 is read (h5py's default, libver='earliest')")
        }
        try reader.skip(4, "the superblock")
        let sizes = unsafe Array(try reader.take(2, "the superblock"))
        guard sizes == [8, 8] else { throw PEFTError(.unsupported, "HDF5 offsets and lengths of \(sizes) bytes; 8 and 8 are read") }
        try reader.skip(9, "the superblock")
        let base = try reader.integer(UInt64.self, "the base address")
        guard base == 0 else { throw PEFTError(.unsupported, "an HDF5 file inside another file (base address \(base))") }
        try reader.skip(8, "the superblock")
        let end = try reader.integer(UInt64.self, "the end of the file")
        guard end <= UInt64(bytes.count) else {
            throw PEFTError(.format, "the HDF5 file should have \(end) bytes and has \(bytes.count): cut short")
        }
        let driver = try reader.integer(UInt64.self, "the driver information")
        guard driver == HDF5Reader.undefined else { throw PEFTError(.unsupported, "an HDF5 file with driver information") }
        try reader.skip(8, "the root group")
        root = try reader.integer(UInt64.self, "the root group")
        unsafe self.bytes = bytes
    }

    mutating func rootGroup() throws(PEFTError) -> HDF5Group {
        guard case .group(let group) = try object(at: root, "the root group") else { throw PEFTError(.format, "the HDF5 root is not a group") }
        return group
    }

    /// Names and header addresses of a group's members, in the order of the file (sorted by name).
    mutating func members(of group: HDF5Group, _ what: String) throws(PEFTError) -> [(name: String, address: UInt64)] {
        let heap = unsafe try nameHeap(at: group.heap, what)
        var members: [(name: String, address: UInt64)] = []
        unsafe try collect(treeNode: group.tree, level: nil, heap: heap, what, into: &members)
        return members
    }

    mutating func visit(_ what: String) throws(PEFTError) {
        visitsLeft -= 1
        guard visitsLeft > 0 else { throw PEFTError(.format, "\(what): the HDF5 file has too many objects, or they refer to each other in a circle") }
    }

    /// A cursor at an address of the file.
    func reader(at address: UInt64, _ what: String) throws(PEFTError) -> ByteReader {
        guard let position = Int(exactly: address), unsafe position < bytes.count else {
            throw PEFTError(.format, "\(what): the HDF5 address \(address) lies outside the file")
        }
        return unsafe ByteReader(bytes, position: position)
    }

    // MARK: Old-style groups: a B-tree of symbol nodes, names in a heap

    /// The bytes of a local heap's data segment: zero-terminated names.
    private func nameHeap(at address: UInt64, _ what: String) throws(PEFTError) -> UnsafeRawBufferPointer {
        var reader = try reader(at: address, what)
        guard unsafe Array(try reader.take(4, what)) == Array("HEAP".utf8) else { throw PEFTError(.format, "\(what): no HDF5 name heap at \(address)") }
        try reader.skip(4, what)
        let size = try reader.integer(UInt64.self, what)
        try reader.skip(8, what)
        var data = try self.reader(at: try reader.integer(UInt64.self, what), what)
        guard let count = Int(exactly: size) else { throw PEFTError(.format, "\(what): an HDF5 name heap of \(size) bytes") }
        return unsafe try data.take(count, "\(what): the HDF5 name heap")
    }

    private mutating func collect(
        treeNode address: UInt64, level parent: Int?, heap: UnsafeRawBufferPointer, _ what: String, into members: inout [(name: String, address: UInt64)]
    ) throws(PEFTError) {
        try visit(what)
        var reader = try reader(at: address, what)
        guard unsafe Array(try reader.take(4, what)) == Array("TREE".utf8) else { throw PEFTError(.format, "\(what): no HDF5 tree node at \(address)") }
        let kind = try reader.integer(UInt8.self, what)
        let level = Int(try reader.integer(UInt8.self, what))
        let entries = try reader.integer(UInt16.self, what)
        guard kind == 0, parent.map({ level == $0 - 1 }) ?? (level < 16) else { throw PEFTError(.format, "\(what): a damaged HDF5 tree node at \(address)") }
        try reader.skip(16, what)  // siblings
        for _ in 0..<entries {
            try reader.skip(8, what)  // key
            let child = try reader.integer(UInt64.self, what)
            if level > 0 {
                unsafe try collect(treeNode: child, level: level, heap: heap, what, into: &members)
            } else {
                unsafe try collect(symbolNode: child, heap: heap, what, into: &members)
            }
        }
    }

    private mutating func collect(
        symbolNode address: UInt64, heap: UnsafeRawBufferPointer, _ what: String, into members: inout [(name: String, address: UInt64)]
    ) throws(PEFTError) {
        var reader = try reader(at: address, what)
        guard unsafe Array(try reader.take(4, what)) == Array("SNOD".utf8) else { throw PEFTError(.format, "\(what): no HDF5 symbol node at \(address)") }
        try reader.skip(2, what)
        let count = try reader.integer(UInt16.self, what)
        for _ in 0..<count {
            try visit(what)
            let nameOffset = try reader.integer(UInt64.self, what)
            let header = try reader.integer(UInt64.self, what)
            let cache = try reader.integer(UInt32.self, what)
            try reader.skip(20, what)
            let name = unsafe try name(in: heap, at: nameOffset, what)
            guard cache != 2, header != HDF5Reader.undefined else { throw PEFTError(.unsupported, "\(what): '\(name)' is a soft link; only hard links are read") }
            members.append((name, header))
        }
    }

    private func name(in heap: UnsafeRawBufferPointer, at offset: UInt64, _ what: String) throws(PEFTError) -> String {
        // At most so many bytes are searched for the end, so that a heap without zeros costs nothing.
        guard let start = Int(exactly: offset), start < heap.count, let end = unsafe heap[start...].prefix(4096).firstIndex(of: 0), end > start,
            let name = unsafe String(validating: heap[start..<end], as: UTF8.self)
        else { throw PEFTError(.format, "\(what): a damaged name in the HDF5 file") }
        return name
    }
}

/// Where a group keeps its members.
struct HDF5Group {
    let tree: UInt64
    let heap: UInt64
    /// Attributes that are one integer; others are passed over.
    var integers: [String: Int64] = [:]
}
