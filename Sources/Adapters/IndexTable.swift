internal import Platform
internal import Synchronization
internal import Tensors

/// Integers that an adapter saves: places of sparse values, indices into a shared vector. They do not train.
final class IndexTable: @unchecked Sendable {
    // Sendable: `values` are replaced only when a file is loaded, under the model's write lock or before anybody knows them.

    let key: String
    let shape: [Int]
    /// In files.
    let dtype: DType
    /// Each is below it.
    let bound: Int
    private(set) var values: [Int32]
    /// What a branch made of them.
    private let known = Mutex<SparseChange?>(nil)

    init(key: String, shape: [Int], as dtype: DType, below bound: Int, _ values: [Int32]) {
        (self.key, self.shape, self.dtype, self.bound, self.values) = (key, shape, dtype, bound, values)
    }

    /// What a file has, as it will be set.
    func checked(_ tensor: Tensor) throws(PEFTError) -> [Int32] {
        guard let values = tensor.integers(), values.count == self.values.count else {
            throw PEFTError(.mismatch, "'\(key)' is \(tensor.dtype.name); whole numbers are needed")
        }
        if let wrong = values.first(where: { $0 < 0 || $0 >= bound }) {
            throw PEFTError(.mismatch, "'\(key)' has \(wrong) in it; numbers from 0 to \(bound - 1) are possible")
        }
        return values
    }

    func set(_ values: [Int32]) {
        self.values = values
        known.withLock { $0 = nil }
    }

    /// What `make` makes of the values, until others are set.
    func change(_ make: ([Int32]) throws(PEFTError) -> SparseChange) throws(PEFTError) -> SparseChange {
        try known.withLock { (known) throws(PEFTError) in
            if let known { return known }
            let fresh = try make(values)
            known = fresh
            return fresh
        }
    }

    func tensor(_ engine: Engine) throws(PEFTError) -> Tensor {
        let result = try Tensor(engine, shape, dtype, .adapters)
        let size = dtype.blockBytes
        guard !engine.isPlanning else { return result }
        for (index, value) in values.enumerated() {
            var bytes = Int64(value).littleEndian
            unsafe withUnsafeBytes(of: &bytes) { bytes in
                unsafe (result.pointer + index * size).copyMemory(from: bytes.baseAddress ?? UnsafeRawPointer(result.pointer), byteCount: size)
            }
        }
        return result
    }
}

extension Tensor {
    /// The values of an integer tensor, or of an f32 one that has whole numbers (written on Windows); nil for others.
    func integers() -> [Int32]? {
        func read<T: BinaryInteger>(_ type: T.Type) -> [Int32]? {
            (0..<count).map { unsafe Int32(clamping: pointer.loadUnaligned(fromByteOffset: $0 * MemoryLayout<T>.size, as: type)) }
        }
        switch dtype {
        case .u8: return read(UInt8.self)
        case .i8: return read(Int8.self)
        case .i16: return read(Int16.self)
        case .i32: return read(Int32.self)
        case .i64: return read(Int64.self)
        case .f32:
            let values = unsafe withFloats { unsafe $0.map { Int32(exactly: $0) } }
            return values.contains(nil) ? nil : values.compactMap { $0 }
        default: return nil
        }
    }
}
