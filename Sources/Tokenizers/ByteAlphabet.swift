/// GPT-2's alphabet: a printable character for each byte, so that byte-level vocabularies can be written as text.
///
/// Printable Latin-1 bytes stand for themselves; the other 68 are U+0100, U+0101… in their order ("Ġ" is the space).
enum ByteAlphabet {
    /// Scalar value of each byte.
    static let scalars: [UInt16] = {
        var table = [UInt16](repeating: 0, count: 256)
        var next: UInt16 = 0x100
        for byte in 0..<256 {
            let printable = (0x21...0x7E).contains(byte) || (0xA1...0xAC).contains(byte) || (0xAE...0xFF).contains(byte)
            table[byte] = printable ? UInt16(byte) : next
            if !printable { next += 1 }
        }
        return table
    }()

    /// Byte of each scalar below U+0144, or -1.
    private static let bytes: [Int16] = {
        var table = [Int16](repeating: -1, count: 0x144)
        for (byte, scalar) in scalars.enumerated() { table[Int(scalar)] = Int16(byte) }
        return table
    }()

    /// Raw bytes as text of the alphabet, in UTF-8.
    static func encode(_ raw: some Sequence<UInt8>) -> [UInt8] {
        var text: [UInt8] = []
        for byte in raw {
            let scalar = scalars[Int(byte)]
            if scalar < 0x80 {
                text.append(UInt8(scalar))
            } else {
                text.append(UInt8(0xC0 | scalar >> 6))
                text.append(UInt8(0x80 | scalar & 0x3F))
            }
        }
        return text
    }

    /// The raw bytes that a token's text stands for; nil if a character is not of the alphabet (an added token).
    static func decode(_ text: ArraySlice<UInt8>) -> [UInt8]? {
        var raw: [UInt8] = []
        raw.reserveCapacity(text.count)
        var index = text.startIndex
        while index < text.endIndex {
            var scalar = Int(text[index])
            index += 1
            if scalar >= 0x80 {
                // Above U+07FF (three bytes and more) nothing is of the alphabet.
                guard scalar & 0xE0 == 0xC0, index < text.endIndex else { return nil }
                scalar = (scalar & 0x1F) << 6 | Int(text[index] & 0x3F)
                index += 1
            }
            guard scalar < bytes.count, bytes[scalar] >= 0 else { return nil }
            raw.append(UInt8(bytes[scalar]))
        }
        return raw
    }
}
