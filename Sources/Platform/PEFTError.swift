/// The one error type of the library: a kind the host can act on, and a sentence a person can act on.
///
/// The sentence says what was wrong, which value, and what would be right. The C interface copies both into the
/// caller's `peft_error`.
package struct PEFTError: Error, Sendable, CustomStringConvertible {
    /// Raw values are the `PEFT_ERROR_*` codes of `peftswift.h`.
    package enum Kind: Int32, Sendable {
        /// A caller's argument or option is out of range.
        case argument = -1
        /// A handle is NULL, released, or of another kind.
        case handle = -2
        /// The memory budget or the machine has no room.
        case memory = -3
        /// The operating system refused (open, read, write, rename).
        case io = -4
        /// A file or text is malformed.
        case format = -5
        /// Well-formed, but not something this version does.
        case unsupported = -6
        /// A name, key, or file that does not exist.
        case notFound = -7
        /// Not allowed in the present state (already merged, re-entered, no adapter).
        case state = -8
        /// The host's callback or cancel flag stopped the call.
        case cancelled = -9
        /// A value became NaN or infinite.
        case numeric = -10
        /// The session's context is full.
        case contextFull = -11
        /// Two things that must fit do not (adapter and base, shapes, resume and checkpoint).
        case mismatch = -12
        /// A defect of the library; please report.
        case `internal` = -99
    }

    package var kind: Kind { content.kind }
    package var message: String { content.message }
    /// A number that belongs to the error (a line, a byte offset, the bytes that were missing); 0 if there is none.
    package var detail: Int64 { content.detail }

    /// One reference, because every function of the library has this type in its signature: it travels in a register.
    private let content: Content

    private final class Content: Sendable {
        let kind: Kind
        let message: String
        let detail: Int64

        init(_ kind: Kind, _ message: String, _ detail: Int64) {
            self.kind = kind
            self.message = message
            self.detail = detail
        }
    }

    package init(_ kind: Kind, _ message: String, detail: Int64 = 0) {
        content = Content(kind, message, detail)
    }

    package var description: String { message }

    /// The same error with the place it happened in front: "model.gguf: tensor 3 …".
    package func within(_ place: String) -> PEFTError {
        PEFTError(kind, "\(place): \(message)", detail: detail)
    }
}

/// `a·b` for sizes that come from a file or a host.
package func checkedProduct(_ factors: Int..., of what: @autoclosure () -> String) throws(PEFTError) -> Int {
    var product = 1
    for factor in factors {
        guard factor >= 0 else { throw PEFTError(.format, "\(what()): negative size \(factor)") }
        let (value, overflow) = product.multipliedReportingOverflow(by: factor)
        guard !overflow else { throw PEFTError(.format, "\(what()): size \(factors) does not fit in 63 bits") }
        product = value
    }
    return product
}

/// `a+b` for sizes that come from a file or a host.
package func checkedSum(_ a: Int, _ b: Int, of what: @autoclosure () -> String) throws(PEFTError) -> Int {
    let (value, overflow) = a.addingReportingOverflow(b)
    guard !overflow else { throw PEFTError(.format, "\(what()): size \(a) + \(b) does not fit in 63 bits") }
    return value
}
