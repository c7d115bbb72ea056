internal import CUTF8Proc
internal import Glibc

/// The normalization forms of Unicode Standard Annex 15.
package enum UnicodeForm: Sendable {
    case nfc, nfd, nfkc, nfkd

    fileprivate var options: utf8proc_option_t {
        let (stable, compose, decompose, compatible) = (
            UTF8PROC_STABLE, UTF8PROC_COMPOSE, UTF8PROC_DECOMPOSE, UTF8PROC_COMPAT
        )
        return switch self {
        case .nfc: utf8proc_option_t(stable.rawValue | compose.rawValue)
        case .nfd: utf8proc_option_t(stable.rawValue | decompose.rawValue)
        case .nfkc: utf8proc_option_t(stable.rawValue | compose.rawValue | compatible.rawValue)
        case .nfkd: utf8proc_option_t(stable.rawValue | decompose.rawValue | compatible.rawValue)
        }
    }
}

/// `utf8` in the given normalization form.
///
/// Errors: `.format` for bytes that are not UTF-8, `.memory`.
package func normalized(_ utf8: [UInt8], _ form: UnicodeForm) throws(PEFTError) -> [UInt8] {
    if utf8.allSatisfy({ $0 < 0x80 }) { return utf8 }
    var text: UnsafeMutablePointer<UInt8>?
    let count = unsafe utf8.withUnsafeBufferPointer { bytes in
        unsafe utf8proc_map(bytes.baseAddress, bytes.count, &text, form.options)
    }
    defer { unsafe free(text) }
    guard count >= 0, let text = unsafe text else {
        if count == UTF8PROC_ERROR_NOMEM {
            throw PEFTError(.memory, "no memory to normalize a text of \(utf8.count) bytes")
        }
        throw PEFTError(.format, "Unicode normalization: \(unsafe String(cString: utf8proc_errmsg(count)))")
    }
    return unsafe Array(UnsafeBufferPointer(start: text, count: count))
}

/// Whether the bytes are well-formed UTF-8 (no surrogates, no overlong forms).
package func isValidUTF8(_ bytes: [UInt8]) -> Bool {
    (try? UTF8Span(validating: bytes.span)) != nil
}

/// The bytes with each ill-formed part replaced by U+FFFD, as Python's `errors="replace"` and Rust's `from_utf8_lossy` do.
package func repairedUTF8(_ bytes: [UInt8]) -> [UInt8] {
    isValidUTF8(bytes) ? bytes : Array(String(decoding: bytes, as: UTF8.self).utf8)
}
