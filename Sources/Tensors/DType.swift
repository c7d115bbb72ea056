internal import Kernels
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
    case q2_K = 10
    case q3_K = 11
    case q4_K = 12
    case q5_K = 13
    case q6_K = 14
    case iq4_nl = 20
    case i8 = 24
    case i16 = 25
    case i32 = 26
    case i64 = 27
    case f64 = 28
    case bf16 = 30
    case tq1_0 = 34
    case tq2_0 = 35
    case u8 = 1000
    case bool = 1001
    case f8_e4m3 = 1010
    case f8_e5m2 = 1011
    case nf4 = 1020
    case fp4 = 1021
    case blockwise8 = 1022
    case int8 = 1023

    /// "f32", "q4_1", "i64" …
    package var name: String { String(describing: self) }

    /// Values in one block along the last dimension; 1 for plain types, and for those whose rows are wholes.
    package var blockValues: Int {
        switch self {
        case .q4_0, .q4_1, .q5_0, .q5_1, .q8_0, .iq4_nl: 32
        case .q2_K, .q3_K, .q4_K, .q5_K, .q6_K, .tq1_0, .tq2_0: 256
        default: 1
        }
    }

    /// Bytes of one block; 0 where rows are wholes.
    package var blockBytes: Int {
        switch self {
        case .f32, .i32: 4
        case .f16, .bf16, .i16: 2
        case .f64, .i64: 8
        case .i8, .u8, .bool, .f8_e4m3, .f8_e5m2: 1
        case .q4_0, .iq4_nl: 18
        case .q4_1: 20
        case .q5_0: 22
        case .q5_1: 24
        case .q8_0: 34
        case .q2_K: 84
        case .q3_K: 110
        case .q4_K: 144
        case .q5_K: 176
        case .q6_K: 210
        case .tq1_0: 54
        case .tq2_0: 66
        case .nf4, .fp4, .blockwise8, .int8: 0
        }
    }

    /// A code picks each value from a table; blocks run across rows (`BlockScaling`, coded.h).
    package var isCoded: Bool { self == .nf4 || self == .fp4 || self == .blockwise8 }

    /// A row is no sequence of blocks, but one thing; of any number of values.
    package var isWholeRow: Bool { isCoded || self == .int8 }

    /// Fewer than 16 bits a value.
    package var isQuantized: Bool { blockValues > 1 || isWholeRow || self == .f8_e4m3 || self == .f8_e5m2 }

    /// A float by itself: what can be converted value by value.
    package var isFloat: Bool { [.f32, .f16, .bf16, .f8_e4m3, .f8_e5m2].contains(self) }

    /// True when the kernels have a row for it in their table of weight formats.
    package var isWeightFormat: Bool { isFloat || isQuantized }

    /// Bytes of a row of `values` values.
    /// - Throws: `.format` when a row is not a whole number of blocks or the size overflows.
    package func byteCount(of values: Int, _ scaling: BlockScaling = .standard) throws(PEFTError) -> Int {
        guard values >= 0, values % blockValues == 0 else {
            throw PEFTError(.format, "\(name): a row of \(values) values is not a whole number of blocks of \(blockValues)")
        }
        if isWholeRow {
            guard values <= 1 << 48 else { throw PEFTError(.format, "\(name): a row of \(values) values") }
            return rowBytes(values, scaling)
        }
        return try checkedProduct(values / blockValues, blockBytes, of: "\(name) row")
    }

    /// The same of a row that is known to be possible.
    func rowBytes(_ values: Int, _ scaling: BlockScaling) -> Int {
        switch self {
        case .int8: 4 + (values + 3) / 4 * 4
        case .nf4, .fp4, .blockwise8: Int(pk_coded_row_bytes(rawValue, Int64(values), Int64(scaling.blockSize), scaling.isDouble ? 1 : 0))
        default: values / blockValues * blockBytes
        }
    }

    /// Bytes of a contiguous tensor; the last dimension is divided into blocks.
    package func byteCount(shape: [Int], _ scaling: BlockScaling = .standard) throws(PEFTError) -> Int {
        var bytes = try byteCount(of: shape.last ?? 1, scaling)
        for index in shape.indices.dropLast() { bytes = try checkedProduct(bytes, shape[index], of: "\(name) \(shape)") }
        return bytes
    }
}
