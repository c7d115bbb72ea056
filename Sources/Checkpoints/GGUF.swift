package import Platform

/// A GGUF file (versions 2 and 3, little endian): metadata, then tensor descriptions, then aligned tensor data.
/// Specification: ggml-org/ggml, docs/gguf.md.
///
/// Opening reads the header once; string arrays (vocabularies) and tensors stay in the mapping.
package struct GGUF: Sendable {
    package let version: Int
    /// In the order of the file.
    package let keys: [String]
    private let values: [String: GGUFValue]
    /// Shapes are row-major: the reverse of the file's dimensions, so a weight is `[outputs, inputs]`.
    package let tensors: TensorSource
    /// The path or the name of the buffer.
    package let origin: String
    private let file: MappedFile
    /// Where each pair's type and value lie in the file.
    private let ranges: [String: Range<Int>]

    package static let magic: [UInt8] = [0x47, 0x47, 0x55, 0x46]  // "GGUF"

    init(version: Int, keys: [String], values: [String: GGUFValue], ranges: [String: Range<Int>], tensors: TensorSource, file: MappedFile) {
        self.version = version
        self.keys = keys
        self.values = values
        self.tensors = tensors
        self.origin = file.name
        self.file = file
        self.ranges = ranges
    }

    /// Value types of the format; raw values are its numbers.
    package enum ValueType: UInt32, Sendable {
        case u8 = 0
        case i8, u16, i16, u32, i32, f32, bool, string, array, u64, i64, f64

        /// Bytes of a value in the file; nil for strings and arrays.
        var byteCount: Int? {
            switch self {
            case .u8, .i8, .bool: 1
            case .u16, .i16: 2
            case .u32, .i32, .f32: 4
            case .u64, .i64, .f64: 8
            case .string, .array: nil
            }
        }
    }

    package subscript(key: String) -> GGUFValue? { values[key] }

    /// Lets go of the pages touched so far: what was copied (rows put in another order, the vocabulary) is not read again, and
    /// the rest comes back when it is.
    package func dropPages() { file.advise(.dontNeed) }

    /// Type and value of a pair as they are in the file, to be copied into another.
    func rawValue(_ key: String) -> [UInt8]? {
        ranges[key].map { unsafe Array(file.bytes[$0]) }  // Safe: the reader walked over these bytes.
    }

    /// A required value; the messages of the four functions name the key and what was found instead.
    package func integer(_ key: String) throws(PEFTError) -> Int {
        let value = try required(key)
        guard let integer = value.intValue else { throw wrongKind(key, value, "an integer") }
        return integer
    }

    package func number(_ key: String) throws(PEFTError) -> Double {
        let value = try required(key)
        guard let number = value.doubleValue else { throw wrongKind(key, value, "a number") }
        return number
    }

    package func string(_ key: String) throws(PEFTError) -> String {
        let value = try required(key)
        guard let string = value.stringValue else { throw wrongKind(key, value, "a string") }
        return string
    }

    package func strings(_ key: String) throws(PEFTError) -> GGUFStrings {
        let value = try required(key)
        guard let strings = value.stringsValue else { throw wrongKind(key, value, "an array of strings") }
        return strings
    }

    private func required(_ key: String) throws(PEFTError) -> GGUFValue {
        guard let value = values[key] else { throw PEFTError(.notFound, "\(origin): no metadata '\(key)'") }
        return value
    }

    private func wrongKind(_ key: String, _ value: GGUFValue, _ needed: String) -> PEFTError {
        PEFTError(.format, "\(origin): metadata '\(key)' is \(value.kindName), \(needed) is needed")
    }
}
