package import Platform

/// A contiguous row-major array: a view of a `Storage`.
///
/// Quantised types divide the last dimension into blocks. A `[rows, n]` tensor is what most kernels see; leading
/// dimensions fold into rows.
package struct Tensor: Sendable {
    package private(set) var storage: Storage
    /// Bytes from the start of the storage.
    package let offset: Int
    package let dtype: DType
    package let shape: [Int]
    /// Of coded formats.
    package let scaling: BlockScaling

    /// A view of `storage`; checks that it fits.
    package init(_ storage: Storage, offset: Int = 0, dtype: DType, shape: [Int], scaling: BlockScaling = .standard) throws(PEFTError) {
        let bytes = try dtype.byteCount(shape: shape, scaling)
        guard offset >= 0, offset <= storage.byteCount, bytes <= storage.byteCount - offset else {
            throw PEFTError(.format, "a \(dtype.name) tensor \(shape) needs \(bytes) bytes at \(offset), the storage has \(storage.byteCount)")
        }
        self.init(unchecked: storage, offset: offset, dtype: dtype, shape: shape, scaling: scaling)
    }

    private init(unchecked storage: Storage, offset: Int, dtype: DType, shape: [Int], scaling: BlockScaling) {
        self.storage = storage
        self.offset = offset
        self.dtype = dtype
        self.shape = shape
        self.scaling = scaling
    }

    /// Uninitialised memory of the engine's budget.
    package init(
        _ engine: Engine, _ shape: [Int], _ dtype: DType = .f32, _ category: MemoryCategory = .activations, scaling: BlockScaling = .standard
    ) throws(PEFTError) {
        let bytes = try dtype.byteCount(shape: shape, scaling)
        try self.init(Storage(byteCount: bytes, budget: engine.budget, category: category), dtype: dtype, shape: shape, scaling: scaling)
    }

    /// Number of values.
    package var count: Int { shape.reduce(1, *) }  // Safe: the product was checked when the tensor was made.
    /// Size of the last dimension (1 for a scalar).
    package var columns: Int { shape.last ?? 1 }
    /// Product of all dimensions but the last.
    package var rows: Int { shape.indices.dropLast().reduce(1) { $0 * shape[$1] } }  // Asked at every step: no slice of the array.
    package var byteCount: Int { rows * rowBytes }
    package var rowBytes: Int { dtype.rowBytes(columns, scaling) }

    /// First byte. Not to be read when planning; to be written only by the computation that made the tensor.
    package var pointer: UnsafeMutableRawPointer { unsafe storage.base + offset }

    /// True when no other tensor shares the memory: it may be changed in place.
    package mutating func hasStorageAlone() -> Bool {
        // In this order: looking at the storage first may leave a reference to it behind that counts as another's.
        isKnownUniquelyReferenced(&storage) && storage.isWritable
    }

    /// The same values under another shape of the same count.
    package func reshaped(_ shape: [Int]) throws(PEFTError) -> Tensor {
        guard shape.allSatisfy({ $0 >= 0 }), shape.reduce(1, *) == count, (shape.last ?? 1) % dtype.blockValues == 0,
            !dtype.isWholeRow || shape.last == columns
        else {
            throw PEFTError(.argument, "a tensor \(self.shape) cannot be read as \(shape)")
        }
        return Tensor(unchecked: storage, offset: offset, dtype: dtype, shape: shape, scaling: scaling)
    }

    /// The same int8 rows, multiplied in another way.
    package func multiplied(_ scaling: BlockScaling) -> Tensor {
        dtype == .int8 ? Tensor(unchecked: storage, offset: offset, dtype: dtype, shape: shape, scaling: scaling) : self
    }

    /// Rows `range` of the matrix `[rows, columns]` that the tensor folds into, without copying.
    package func rows(_ range: Range<Int>) throws(PEFTError) -> Tensor {
        guard range.lowerBound >= 0, range.upperBound <= rows else {
            throw PEFTError(.argument, "rows \(range) of a tensor with \(rows) rows")
        }
        return Tensor(unchecked: storage, offset: offset + range.lowerBound * rowBytes, dtype: dtype, shape: [range.count, columns], scaling: scaling)
    }

    /// f32 values for reading. The tensor must be f32 and real.
    package func withFloats<R, E: Error>(_ body: (UnsafeBufferPointer<Float>) throws(E) -> R) throws(E) -> R {
        let usable = dtype == .f32 && storage.isReal
        let buffer = unsafe UnsafeBufferPointer(start: pointer.assumingMemoryBound(to: Float.self), count: usable ? count : 0)
        return unsafe try body(buffer)
    }

    /// f32 values for writing. The tensor must be f32, real and the caller's own.
    package func withMutableFloats<R, E: Error>(_ body: (UnsafeMutableBufferPointer<Float>) throws(E) -> R) throws(E) -> R {
        let usable = dtype == .f32 && storage.isReal && storage.isWritable
        let buffer = unsafe UnsafeMutableBufferPointer(start: pointer.assumingMemoryBound(to: Float.self), count: usable ? count : 0)
        return unsafe try body(buffer)
    }

    /// i32 values for reading. The tensor must be i32 and real.
    package func withInt32s<R, E: Error>(_ body: (UnsafeBufferPointer<Int32>) throws(E) -> R) throws(E) -> R {
        let usable = dtype == .i32 && storage.isReal
        let buffer = unsafe UnsafeBufferPointer(start: pointer.assumingMemoryBound(to: Int32.self), count: usable ? count : 0)
        return unsafe try body(buffer)
    }
}
