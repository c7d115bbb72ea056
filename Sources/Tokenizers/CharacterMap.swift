internal import Platform

/// SentencePiece's compiled normalisation rules ("Precompiled" in tokenizer.json): texts to replace and what by, in a double
/// array (darts-clone). After HF's crate `spm_precompiled`, whose way of choosing what to replace models were trained with.
struct CharacterMap: Sendable {
    /// The double array.
    private let units: [UInt32]
    /// The replacements, each ended by a NUL.
    private let texts: [UInt8]

    /// - Parameter base64: u32 size of the array in bytes, the array, the replacements.
    init(base64: String) throws(PEFTError) {
        guard let bytes = CharacterMap.decode(base64), bytes.count >= 4 else { throw PEFTError(.format, "precompiled_charsmap is no base64") }
        func word(_ at: Int) -> UInt32 { (0..<4).reduce(0) { $0 | UInt32(bytes[at + $1]) << UInt32(8 * $1) } }
        let size = Int(word(0))
        guard size % 4 == 0, size <= bytes.count - 4 else { throw PEFTError(.format, "precompiled_charsmap: a table of \(size) bytes in \(bytes.count)") }
        units = stride(from: 4, to: 4 + size, by: 4).map { word($0) }
        texts = Array(bytes[(4 + size)...])
    }

    /// Characters as readers see them are replaced whole if they are short, else scalar by scalar.
    func apply(to text: AlignedText) -> AlignedText {
        guard !units.isEmpty else { return text }
        var new = AlignedText.Rewriter(text)
        var start = 0
        for character in String(decoding: text.bytes, as: UTF8.self) {
            let count = character.utf8.count
            if count < 6, let replacement = replacement(of: text.bytes[start..<start + count]) {
                new.replace(start..<start + count, with: replacement)
            } else {
                var at = start
                for scalar in character.unicodeScalars {
                    let range = at..<at + UTF8.width(scalar)
                    if let replacement = replacement(of: text.bytes[range]) { new.replace(range, with: replacement) } else { new.copy(range) }
                    at = range.upperBound
                }
            }
            start += count
        }
        return new.finish()
    }

    /// Of the shortest entry that `text` begins with.
    private func replacement(of text: ArraySlice<UInt8>) -> ArraySlice<UInt8>? {
        guard var place = offset(units[0], from: 0) else { return nil }
        for byte in text where byte != 0 {
            place ^= Int(byte)
            guard place < units.count, units[place] & 0x8000_00FF == UInt32(byte), let next = offset(units[place], from: place) else { return nil }
            let hasValue = units[place] >> 8 & 1 == 1
            place = next
            guard hasValue else { continue }
            let start = Int(units[place] & 0x7FFF_FFFF)
            guard start < texts.count else { return nil }
            return texts[start...].prefix { $0 != 0 }
        }
        return nil
    }

    private func offset(_ unit: UInt32, from place: Int) -> Int? {
        let next = place ^ Int((unit >> 10) << ((unit >> 6) & 8))
        return next < units.count ? next : nil
    }

    private static func decode(_ base64: String) -> [UInt8]? {
        var (bytes, bits, count): ([UInt8], UInt32, UInt32) = ([], 0, 0)
        bytes.reserveCapacity(base64.utf8.count * 3 / 4)
        for character in base64.utf8 where character != UInt8(ascii: "=") {
            let value: UInt8
            switch character {
            case UInt8(ascii: "A")...UInt8(ascii: "Z"): value = character - UInt8(ascii: "A")
            case UInt8(ascii: "a")...UInt8(ascii: "z"): value = character - UInt8(ascii: "a") + 26
            case UInt8(ascii: "0")...UInt8(ascii: "9"): value = character - UInt8(ascii: "0") + 52
            case UInt8(ascii: "+"): value = 62
            case UInt8(ascii: "/"): value = 63
            default: return nil
            }
            bits = bits << 6 | UInt32(value)
            count += 6
            guard count >= 8 else { continue }
            count -= 8
            bytes.append(UInt8(truncatingIfNeeded: bits >> count))
            bits &= 1 << count - 1
        }
        return bytes
    }
}
