internal import CHDF5
internal import Tensors

/// What the reader and the writer of HDF5 files share. The layout of our files is in docs/checkpoint-layout.md.
enum HDF5 {
    static let signature: [UInt8] = [0x89, 0x48, 0x44, 0x46, 0x0d, 0x0a, 0x1a, 0x0a]  // "\x89HDF\r\n\x1a\n"
    /// Root attribute that makes an HDF5 file one of ours; its value is the version of the layout.
    static let magicAttribute = "peftswift_checkpoint"
    static let layoutVersion = 1
    /// Scalar string with the JSON document.
    static let stateDataset = "state"

    /// How HDF5 describes the bits of a little-endian number.
    enum Encoding: Equatable {
        case integer(bytes: Int, signed: Bool)
        /// Sign at the top bit, then exponent, then mantissa with an implied leading 1.
        case float(bytes: Int, exponentBits: Int, mantissaBits: Int, bias: Int)
    }

    struct ElementType {
        let dtype: DType
        let encoding: Encoding
        /// HDF5W_…
        let code: Int32

        init(_ dtype: DType, _ encoding: Encoding, _ code: Int) {
            self.dtype = dtype
            self.encoding = encoding
            self.code = Int32(truncatingIfNeeded: code)
        }
    }

    /// Element types of our files. h5py reads bf16 as float32 with the same values.
    static let types: [ElementType] = [
        ElementType(.f32, .float(bytes: 4, exponentBits: 8, mantissaBits: 23, bias: 127), HDF5W_F32),
        ElementType(.f64, .float(bytes: 8, exponentBits: 11, mantissaBits: 52, bias: 1023), HDF5W_F64),
        ElementType(.f16, .float(bytes: 2, exponentBits: 5, mantissaBits: 10, bias: 15), HDF5W_F16),
        ElementType(.bf16, .float(bytes: 2, exponentBits: 8, mantissaBits: 7, bias: 127), HDF5W_BF16),
        ElementType(.i8, .integer(bytes: 1, signed: true), HDF5W_I8),
        ElementType(.i16, .integer(bytes: 2, signed: true), HDF5W_I16),
        ElementType(.i32, .integer(bytes: 4, signed: true), HDF5W_I32),
        ElementType(.i64, .integer(bytes: 8, signed: true), HDF5W_I64),
        ElementType(.u8, .integer(bytes: 1, signed: false), HDF5W_U8),
    ]

    /// "f32, f64 …", for messages.
    static var typeNames: String { types.map(\.dtype.name).joined(separator: ", ") }
}
