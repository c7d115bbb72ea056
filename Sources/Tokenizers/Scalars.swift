/// Decodes the scalars of well-formed UTF-8; ranges count in the same indices as `bytes`.
func forEachScalar(in bytes: ArraySlice<UInt8>, _ body: (Unicode.Scalar, Range<Int>) -> Void) {
    var start = bytes.startIndex
    while start < bytes.endIndex {
        let (scalar, count) = scalar(at: start, in: bytes)
        body(scalar, start..<start + count)
        start += count
    }
}

/// The scalar that starts at `index` and its length; U+FFFD of length 1 where the bytes are not UTF-8.
func scalar(at index: Int, in bytes: ArraySlice<UInt8>) -> (Unicode.Scalar, Int) {
    let lead = bytes[index]
    if lead < 0x80 { return (Unicode.Scalar(lead), 1) }
    let count = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2
    guard lead >= 0xC2, index + count <= bytes.endIndex else { return ("\u{FFFD}", 1) }
    var value = UInt32(lead) & (0x7F >> UInt32(count))
    for next in bytes[index + 1..<index + count] {
        guard next & 0xC0 == 0x80 else { return ("\u{FFFD}", 1) }
        value = value << 6 | UInt32(next & 0x3F)
    }
    guard let scalar = Unicode.Scalar(value) else { return ("\u{FFFD}", 1) }
    return (scalar, count)
}

/// The scalar that ends before `index`, which must not be the start, and its length.
func scalar(before index: Int, in bytes: ArraySlice<UInt8>) -> (Unicode.Scalar, Int) {
    var start = index - 1
    while start > bytes.startIndex, start > index - 4, bytes[start] & 0xC0 == 0x80 { start -= 1 }
    return (scalar(at: start, in: bytes).0, index - start)
}

/// Bytes of white space (`\s` of Rust's and Oniguruma's regular expressions) at the start.
func leadingWhitespace(_ bytes: ArraySlice<UInt8>) -> Int {
    var index = bytes.startIndex
    while index < bytes.endIndex {
        let (scalar, count) = scalar(at: index, in: bytes)
        guard scalar.properties.isWhitespace else { break }
        index += count
    }
    return index - bytes.startIndex
}

/// Bytes of white space at the end.
func trailingWhitespace(_ bytes: ArraySlice<UInt8>) -> Int {
    var index = bytes.endIndex
    while index > bytes.startIndex {
        let (scalar, count) = scalar(before: index, in: bytes)
        guard scalar.properties.isWhitespace else { break }
        index -= count
    }
    return bytes.endIndex - index
}

extension Unicode.Scalar {
    /// A mark that combines with the character before it.
    var isMark: Bool {
        switch properties.generalCategory {
        case .nonspacingMark, .spacingMark, .enclosingMark: true
        default: false
        }
    }

    /// `\w` of a Unicode regular expression (Unicode Technical Standard 18, annex C).
    var isWord: Bool {
        if properties.isAlphabetic || properties.isJoinControl || isMark { return true }
        return switch properties.generalCategory {
        case .decimalNumber, .connectorPunctuation: true
        default: false
        }
    }

    /// Rust's `char::is_numeric`.
    var isNumber: Bool {
        switch properties.generalCategory {
        case .decimalNumber, .letterNumber, .otherNumber: true
        default: false
        }
    }

    /// ASCII symbols count as punctuation, as in BERT's reference.
    var isPunctuation: Bool {
        if value < 0x80 {
            return (0x21...0x2F).contains(value) || (0x3A...0x40).contains(value) || (0x5B...0x60).contains(value)
                || (0x7B...0x7E).contains(value)
        }
        return switch properties.generalCategory {
        case .connectorPunctuation, .dashPunctuation, .openPunctuation, .closePunctuation, .initialPunctuation,
            .finalPunctuation, .otherPunctuation:
            true
        default: false
        }
    }
}
