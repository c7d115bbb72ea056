internal import CHDF5
internal import Platform
internal import Synchronization
internal import Tensors

/// The HDF5 C library, loaded when the first file is written.
///
/// The one process-wide object of this module: the library itself is a process-wide object that must not be entered by
/// two threads. (A host that calls the same library from its own threads must not do so while a checkpoint is written.)
private enum HDF5Library {
    @safe struct State: ~Copyable {
        var library: OpaquePointer?
    }

    static let shared = unsafe Mutex(State(library: nil))
}

/// Makes one HDF5 file in memory.
@safe struct HDF5Writer: ~Copyable {
    private let handle: OpaquePointer

    /// Runs `body` with a new file in `memory` while nobody else is inside the library.
    static func withFile(in memory: Storage, _ body: (borrowing HDF5Writer) throws(PEFTError) -> Void) throws(PEFTError) {
        try HDF5Library.shared.withLock { (state) throws(PEFTError) -> Void in
            if unsafe state.library == nil { unsafe state.library = try load() }
            guard let library = unsafe state.library, let handle = unsafe hdf5w_create(library, memory.base, memory.byteCount) else {
                throw PEFTError(.memory, "the HDF5 library could not start a file in memory")
            }
            defer { unsafe hdf5w_close(handle) }
            try body(unsafe HDF5Writer(handle: handle))
        }
    }

    /// More bytes than a file with these datasets takes: their data, aligned, and what HDF5 keeps for each (header 256 bytes
    /// and more, symbol 40, its share of tree nodes, its name in a heap that grows by doubling; 470 bytes were measured).
    static func capacity(_ descriptions: [TensorDescription], groups: Int, textBytes: Int) throws(PEFTError) -> Int {
        let steps = 4 * HDF5W_INCREMENT
        var capacity = try checkedSum(try checkedSum(textBytes, try checkedProduct(groups, 8192, of: "the checkpoint"), of: "the checkpoint"), steps, of: "the checkpoint")
        for item in descriptions {
            capacity = try checkedSum(capacity, try item.dtype.byteCount(shape: item.shape), of: "the checkpoint")
            capacity = try checkedSum(capacity, 1024 + 4 * item.name.utf8.count, of: "the checkpoint")
        }
        return capacity
    }

    private static func load() throws(PEFTError) -> OpaquePointer {
        var reason = [CChar](repeating: 0, count: 200)
        let library = unsafe reason.withUnsafeMutableBufferPointer { unsafe hdf5w_load($0.baseAddress, $0.count) }
        guard let library = unsafe library else {
            let text = String(decoding: reason.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
            throw PEFTError(.unsupported, "HDF5 files cannot be written: \(text)")
        }
        return unsafe library
    }

    func rootAttribute(_ name: String, _ value: Int) throws(PEFTError) {
        unsafe try check(hdf5w_root_attribute(handle, name, Int64(value)), name)
    }

    func group(_ path: String) throws(PEFTError) {
        unsafe try check(hdf5w_group(handle, path), path)
    }

    /// A scalar UTF-8 string. HDF5 has no string of length 0.
    func string(_ path: String, _ text: String) throws(PEFTError) {
        let bytes = Array(text.utf8)
        guard !bytes.isEmpty else { throw PEFTError(.internal, "an empty string for '\(path)'") }
        let result = unsafe bytes.withUnsafeBytes { unsafe hdf5w_string(handle, path, $0.baseAddress, bytes.count) }
        try check(result, path)
    }

    func dataset(_ path: String, _ tensor: Tensor) throws(PEFTError) {
        guard let type = HDF5.types.first(where: { $0.dtype == tensor.dtype })?.code else {
            throw PEFTError(.unsupported, "'\(path)' is \(tensor.dtype.name); HDF5 files hold \(HDF5.typeNames)")
        }
        let sizes = tensor.shape.map { UInt64($0) }
        let data = unsafe tensor.count == 0 ? nil : UnsafeRawPointer(tensor.pointer)
        let result = unsafe sizes.withUnsafeBufferPointer { unsafe hdf5w_dataset(handle, path, type, Int32(clamping: sizes.count), $0.baseAddress, data) }
        try check(result, path)
    }

    /// Completes the file.
    /// - Returns: its size; it begins where the memory does.
    func finish() throws(PEFTError) -> Int {
        let size = unsafe hdf5w_finish(handle)
        guard size > 0 else { throw failure("the file") }
        return Int(size)
    }

    private func check(_ result: Int32, _ what: String) throws(PEFTError) {
        if result != 0 { throw failure(what) }
    }

    private func failure(_ what: String) -> PEFTError {
        PEFTError(.internal, "HDF5 refused to write '\(what)': \(unsafe String(cString: hdf5w_message(handle)))")
    }
}
