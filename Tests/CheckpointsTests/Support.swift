import Checkpoints
import Glibc
import Platform
import Tensors
import Testing

func fixture(_ name: String) -> String {
    Files.join(Files.join(Files.parent(of: #filePath), "Fixtures"), name)
}

/// A folder that is removed after the closure.
func withTemporaryFolder(_ body: (String) throws -> Void) throws {
    let path = "/tmp/peftswift-test-\(UInt64.random(in: .min ... .max))"
    try Files.makeFolder(path)
    defer { remove(path) }
    try body(path)
}

private func remove(_ path: String) {
    if Files.isFolder(path) {
        for name in (try? Files.names(in: path)) ?? [] { remove(Files.join(path, name)) }
        rmdir(path)
    } else {
        unlink(path)
    }
}

func bytes(of path: String) throws -> [UInt8] {
    let file = try MappedFile(path: path, .read)
    return Array(file.bytes)
}

/// A buffer as a file. The bytes live in their own allocation of exactly this size, so that reading past the end is seen
/// by the address sanitizer.
final class Buffer {
    let memory: UnsafeMutableRawBufferPointer
    init(_ bytes: some Collection<UInt8>) {
        memory = .allocate(byteCount: bytes.count, alignment: 16)
        memory.copyBytes(from: bytes)
    }
    deinit { memory.deallocate() }
    var file: MappedFile { MappedFile(borrowing: UnsafeRawBufferPointer(memory), name: "buffer", keepingAlive: self) }
}

func mapped(_ bytes: some Collection<UInt8>) -> MappedFile { Buffer(bytes).file }

/// The values of a plain tensor, read byte by byte without the library's kernels.
func values(_ tensor: Tensor) -> [Double] {
    (0..<tensor.count).map { index in
        let at = tensor.pointer + index * tensor.dtype.blockBytes
        return switch tensor.dtype {
        case .f32: Double(at.loadUnaligned(as: Float.self))
        case .f64: at.loadUnaligned(as: Double.self)
        case .f16: Double(at.loadUnaligned(as: Float16.self))
        case .bf16: Double(Float(bitPattern: UInt32(at.loadUnaligned(as: UInt16.self)) << 16))
        case .i8: Double(at.loadUnaligned(as: Int8.self))
        case .i16: Double(at.loadUnaligned(as: Int16.self))
        case .i32: Double(at.loadUnaligned(as: Int32.self))
        case .i64: Double(at.loadUnaligned(as: Int64.self))
        case .u8, .bool: Double(at.loadUnaligned(as: UInt8.self))
        default: .nan
        }
    }
}

/// arange(count) - 3, what the fixtures hold.
func ramp(_ count: Int) -> [Double] { (0..<count).map { Double($0) - 3 } }

func tensor(_ values: [Float], _ shape: [Int]) throws -> Tensor {
    let storage = try Storage(byteCount: values.count * 4, budget: MemoryBudget(), category: .adapters)
    values.withUnsafeBytes { if let base = $0.baseAddress { storage.base.copyMemory(from: base, byteCount: $0.count) } }
    return try Tensor(storage, dtype: .f32, shape: shape)
}

/// The error of a call that must fail with a `PEFTError`.
func failure(_ body: () throws -> Void) -> PEFTError? {
    do {
        try body()
        return nil
    } catch {
        return error as? PEFTError
    }
}

/// A call that may succeed or fail with a `PEFTError`, but must come back.
func survives(_ body: () throws -> Void) -> Bool {
    do {
        try body()
        return true
    } catch {
        return error is PEFTError
    }
}
