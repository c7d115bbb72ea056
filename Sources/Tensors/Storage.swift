package import Platform

/// The bytes behind tensors: owned memory of a budget, a mapped file, or the host's own memory. Freed with the last
/// tensor that uses it.
@safe package final class Storage: @unchecked Sendable {
    // Sendable: the pointer is constant; who may write through it is decided by the owner of the tensors
    // (weights are never written after loading, everything else belongs to one computation at a time).

    private enum Owner {
        case budget(MemoryBudget, MemoryCategory)
        /// Keeps a mapping or the host's object alive; read only.
        case borrowed(keepingAlive: AnyObject?)
    }

    /// Never nil: a planning storage and an empty one have an address that must not be read.
    package let base: UnsafeMutableRawPointer
    package let byteCount: Int
    /// False for planning: there is a size but no memory.
    package let isReal: Bool
    /// False for mapped files and memory borrowed for reading.
    package let isWritable: Bool
    private let owner: Owner

    /// Uninitialised memory from `budget`.
    package init(byteCount: Int, budget: MemoryBudget, category: MemoryCategory) throws(PEFTError) {
        let pointer = unsafe try budget.allocate(byteCount, category)
        unsafe self.base = unsafe pointer ?? Storage.placeholder
        self.byteCount = byteCount
        self.isReal = unsafe pointer != nil
        self.isWritable = true
        self.owner = .budget(budget, category)
    }

    /// Somebody else's memory, valid as long as `owner` lives. Mapped files pass their mapping.
    package init(borrowing bytes: UnsafeRawBufferPointer, keepingAlive owner: AnyObject?, isWritable: Bool = false) {
        unsafe self.base = unsafe bytes.baseAddress.map { unsafe UnsafeMutableRawPointer(mutating: $0) } ?? Storage.placeholder
        self.byteCount = bytes.count
        self.isReal = true
        self.isWritable = isWritable
        self.owner = .borrowed(keepingAlive: owner)
    }

    deinit {
        if case .budget(let budget, let category) = owner { unsafe budget.free(isReal ? base : nil, byteCount, category) }
    }

    /// A non-nil address for storages that must not be touched.
    private static var placeholder: UnsafeMutableRawPointer {
        // Safe: a constant non-zero bit pattern is never nil; it is only compared, never read.
        unsafe UnsafeMutableRawPointer(bitPattern: MemoryBudget.alignment).unsafelyUnwrapped
    }
}
