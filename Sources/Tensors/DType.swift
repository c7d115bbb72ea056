package import Platform

/// The element type or block format of a tensor. Raw values are GGML's type ids, so a GGUF tensor type is a `DType`
/// without translation; what GGML does not have is numbered from 1000.
package enum DType: Int32, Sendable, CaseIterable {
    case f32 = 0
    case f16 = 1
    case q4_0 = 2
    case q4_1 = 3
    case q5_0 = 6
    case q5_1 = 7
    case q8_0 = 8
    case q4_K = 12
    case q5_K = 13
    case q6_K = 14
    case i8 = 24
    case i16 = 25
    case i32 = 26
    case i64 = 27
    case f64 = 28
    case bf16 = 30
    case u8 = 1000
    case bool = 1001

    /// "f32", "q4_1", "i64" …
    package var name: String { String(describing: self) }

    /// Values in one block along the last dimension; 1 for plain types.
    package var blockValues: Int {
        switch self {
        case .q4_0, .q4_1, .q5_0, .q5_1, .q8_0: 32
        case .q4_K, .q5_K, .q6_K: 256
        default: 1
        }
    }

    /// Bytes of one block.
    package var blockBytes: Int {
        switch self {
        case .f32, .i32: 4
        case .f16, .bf16, .i16: 2
        case .f64, .i64: 8
        case .i8, .u8, .bool: 1
        case .q4_0: 18
        case .q4_1: 20
        case .q5_0: 22
        case .q5_1: 24
        case .q8_0: 34
        case .q4_K: 144
        case .q5_K: 176
        case .q6_K: 210
        }
    }

    package var isQuantized: Bool { blockValues > 1 }

    /// f32, f16 or bf16: what arithmetic can be done on without blocks.
    package var isFloat: Bool { self == .f32 || self == .f16 || self == .bf16 }

    /// True when the kernels have a row for it in their table of weight formats.
    package var isWeightFormat: Bool { isFloat || isQuantized }

    /// Bytes of a row of `values` values.
    /// - Throws: `.format` when a row is not a whole number of blocks or the size overflows.
    package func byteCount(of values: Int) throws(PEFTError) -> Int {
        guard values >= 0, values % blockValues == 0 else {
            throw PEFTError(.format, "\(name): a row of \(values) values is not a whole number of blocks of \(blockValues)")
        }
        return try checkedProduct(values / blockValues, blockBytes, of: "\(name) row")
    }

    /// Bytes of a contiguous tensor; the last dimension is divided into blocks.
    package func byteCount(shape: [Int]) throws(PEFTError) -> Int {
        var bytes = try byteCount(of: shape.last ?? 1)
        for size in shape.dropLast() { bytes = try checkedProduct(bytes, size, of: "\(name) \(shape)") }
        return bytes
    }
}
