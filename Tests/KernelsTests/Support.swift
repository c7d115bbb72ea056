import Glibc
import Kernels
import Testing

/// The levels this machine has; the kernels of the others are not run.
let levels = Array(PK_LEVEL_PORTABLE...pk_take_level(.max))
let activationTypes = [PK_F32, PK_BF16]

/// Reproducible numbers (xorshift64).
struct Random {
    private var state: UInt64
    init(_ seed: UInt64) { state = seed &* 0x9E37_79B9_7F4A_7C15 | 1 }

    mutating func word() -> UInt32 {
        state ^= state << 13
        state ^= state >> 7
        state ^= state << 17
        return UInt32(truncatingIfNeeded: state >> 32)
    }
    /// In −1 ..< 1.
    mutating func value() -> Float { Float(word()) * 0x1p-31 - 1 }
    mutating func values(_ count: Int, scale: Float = 1) -> [Float] { (0..<count).map { _ in value() * scale } }
    mutating func below(_ bound: Int) -> Int { Int(word()) % bound }
}

/// Values as a kernel sees them, in f32, bf16 or any weight format. The array is handed to kernels directly: Swift keeps
/// it alive for the call, and the address sanitizer sees the first byte beyond.
struct Buffer {
    let type: Int32
    let count: Int
    var bytes: [UInt8]

    init(_ type: Int32, _ values: [Float]) {
        let format = format(type)
        (self.type, count) = (type, values.count)
        bytes = Array(repeating: 0xA5, count: values.count / Int(format.block_values) * Int(format.block_bytes))
        format.encode(values, &bytes, values.count)
    }

    /// What the bytes now stand for.
    var values: [Float] {
        [Float](unsafeUninitializedCapacity: count) { buffer, initialized in
            format(type).decode(bytes, buffer.baseAddress, count)
            initialized = count
        }
    }
    var doubles: [Double] { values.map(Double.init) }
}

/// Scratch of a kernel: `shared` bytes, and `each` for every part, all aligned to 64 and each an allocation of its own.
func withScratch(shared: Int, each: Int, parts: Int32, _ body: (_ shared: UnsafeMutableRawPointer, _ own: [UnsafeMutableRawPointer]) -> Void) {
    func allocate(_ byteCount: Int) -> UnsafeMutableRawPointer {
        let memory = UnsafeMutableRawPointer.allocate(byteCount: byteCount, alignment: 64)
        memset(memory, 0xA5, byteCount)
        return memory
    }
    let all = [allocate(shared)] + (0..<parts).map { _ in allocate(each) }
    body(all[0], Array(all[1...]))
    for memory in all { memory.deallocate() }
}

extension UnsafeMutableRawPointer {
    var floats: UnsafeMutablePointer<Float> { assumingMemoryBound(to: Float.self) }
}

func format(_ type: Int32) -> pk_format { pk_format_of(type)!.pointee }
func name(_ type: Int32) -> String { String(cString: format(type).name) }
func roundToBF16(_ x: Float) -> Float { Buffer(PK_BF16, [x]).values[0] }

/// Calls a kernel for each of its parts.
func inParts(_ parts: Int32, _ body: (_ part: Int32, _ parts: Int32) -> Void) {
    for part in 0..<parts { body(part, parts) }
}

/// Runs a kernel as 1, 2, 3 and 7 parts on fresh copies of `output`; the bits must not depend on it.
func sameBits(
    _ type: Int32, _ output: [Float], sourceLocation: SourceLocation = #_sourceLocation,
    _ kernel: (_ y: UnsafeMutableRawPointer, _ part: Int32, _ parts: Int32) -> Void
) -> [Float] {
    var whole = Buffer(type, output)
    kernel(&whole.bytes, 0, 1)
    for parts: Int32 in [2, 3, 7] {
        var divided = Buffer(type, output)
        inParts(parts) { kernel(&divided.bytes, $0, $1) }
        #expect(divided.bytes == whole.bytes, "\(parts) parts", sourceLocation: sourceLocation)
    }
    return whole.values
}

/// Every value within `relative` of its own size plus `absolute`, and half a unit in the last place of bf16 where the result is stored so.
func expectClose(
    _ actual: [Float], _ expected: [Double], _ type: Int32 = PK_F32, relative: Double = 2e-6, absolute: Double = 2e-6, _ what: @autoclosure () -> String = "",
    sourceLocation: SourceLocation = #_sourceLocation
) {
    #expect(actual.count == expected.count, sourceLocation: sourceLocation)
    let rounding = type == PK_BF16 ? 0x1p-8 : 0
    for (index, (a, e)) in zip(actual, expected).enumerated() {
        if Float(e) == a || (e.isNaN && a.isNaN) { continue }
        let bound = absolute + (relative + rounding) * abs(e)
        if !(abs(Double(a) - e) <= bound) {
            Issue.record("\(what()) value \(index): \(a) instead of \(e), allowed ±\(bound)", sourceLocation: sourceLocation)
            return
        }
    }
}
