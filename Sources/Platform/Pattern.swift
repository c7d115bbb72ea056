internal import CPCRE2

/// A compiled regular expression over UTF-8 text (PCRE2, Unicode classes and case folding).
///
/// Immutable, so any number of threads may match with it at the same time. A match is bounded in steps and memory: a
/// pattern from a file cannot hang the host, it ends in an error instead.
@safe package final class Pattern: Sendable {
    /// The text the pattern was compiled from.
    package let source: String

    // Both are written in `init` and only read afterwards; PCRE2 documents compiled code and match contexts as shareable.
    private nonisolated(unsafe) let code: OpaquePointer
    private nonisolated(unsafe) let limits: OpaquePointer

    /// Steps of backtracking in one match, levels of backtracking, and KiB of memory for them.
    private static let matchLimit: UInt32 = 20_000_000
    private static let depthLimit: UInt32 = 2_000_000
    private static let heapLimit: UInt32 = 256 * 1024

    /// Errors: `.format` with the place, for text that is no regular expression.
    package init(_ regex: String) throws(PEFTError) {
        var status: Int32 = 0
        var position = 0
        let utf8 = Array(regex.utf8)
        let compiled = unsafe utf8.withUnsafeBufferPointer { text in
            unsafe pcre2_compile_8(
                text.baseAddress, text.count, PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &status, &position, nil)
        }
        guard let compiled = unsafe compiled else {
            throw PEFTError(
                .format, "regular expression \"\(regex)\", byte \(position): \(Pattern.reason(status))",
                detail: Int64(position))
        }
        guard let context = unsafe pcre2_match_context_create_8(nil) else {
            unsafe pcre2_code_free_8(compiled)
            throw PEFTError(.memory, "no memory for the regular expression \"\(regex)\"")
        }
        unsafe pcre2_set_match_limit_8(context, Pattern.matchLimit)
        unsafe pcre2_set_depth_limit_8(context, Pattern.depthLimit)
        unsafe pcre2_set_heap_limit_8(context, Pattern.heapLimit)
        // Where no machine code may be made (hardened systems) the interpreter does the same work, only slower.
        _ = unsafe pcre2_jit_compile_8(compiled, PCRE2_JIT_COMPLETE)
        source = regex
        unsafe code = compiled
        unsafe limits = context
    }

    deinit {
        unsafe pcre2_match_context_free_8(limits)
        unsafe pcre2_code_free_8(code)
    }

    /// Whether the pattern matches all of `text`, as Python's `re.fullmatch`.
    package func matchesWhole(_ text: String) throws(PEFTError) -> Bool {
        try !matches(in: Array(text.utf8), options: PCRE2_ANCHORED | PCRE2_ENDANCHORED, atMost: 1).isEmpty
    }

    /// Whether the pattern matches at the start of `text`, as Python's `re.match`.
    package func matchesPrefix(_ text: String) throws(PEFTError) -> Bool {
        try !matches(in: Array(text.utf8), options: PCRE2_ANCHORED, atMost: 1).isEmpty
    }

    /// Whether the pattern matches somewhere in `text`, as Python's `re.search`.
    package func matchesSomewhere(_ text: String) throws(PEFTError) -> Bool {
        try !matches(in: Array(text.utf8), options: 0, atMost: 1).isEmpty
    }

    /// Byte ranges of all matches that do not overlap, from left to right, as Python's `re.finditer`.
    ///
    /// Errors: `.format` if the bytes are not UTF-8 or a match needs more steps or memory than allowed.
    package func ranges(in utf8: [UInt8]) throws(PEFTError) -> [Range<Int>] {
        try matches(in: utf8, options: 0, atMost: Int.max)
    }

    /// The same within `part`, which is treated as a text of its own: lookaround does not see beyond it.
    /// Ranges count from the start of `utf8`; `part` is clamped to it.
    package func ranges(in utf8: [UInt8], part: Range<Int>) throws(PEFTError) -> [Range<Int>] {
        let part = part.clamped(to: 0..<utf8.count)
        if part.count == utf8.count { return try matches(in: utf8, options: 0, atMost: Int.max) }
        let found = try matches(in: Array(utf8[part]), options: 0, atMost: Int.max)
        return found.map { $0.lowerBound + part.lowerBound..<$0.upperBound + part.lowerBound }
    }

    private func matches(in utf8: [UInt8], options: UInt32, atMost limit: Int) throws(PEFTError) -> [Range<Int>] {
        // Checked once here, so that PCRE2 need not check the rest of the text again for each match.
        guard isValidUTF8(utf8) else {
            throw PEFTError(.format, "regular expression \"\(source)\": the text is not UTF-8")
        }
        // The size of the output vector: we only want the match itself, not its groups.
        guard let data = unsafe pcre2_match_data_create_8(1, nil), let vector = unsafe pcre2_get_ovector_pointer_8(data)
        else {
            throw PEFTError(.memory, "no memory to match a regular expression")
        }
        defer { unsafe pcre2_match_data_free_8(data) }
        let (found, status) = unsafe utf8.withUnsafeBufferPointer { text in
            unsafe collect(text, data, vector, options: options | PCRE2_NO_UTF_CHECK, atMost: limit)
        }
        guard status == PCRE2_ERROR_NOMATCH else {
            throw PEFTError(
                .format, "regular expression \"\(source)\" on a text of \(utf8.count) bytes: \(Pattern.reason(status))")
        }
        return found
    }

    /// The loop over matches; the status is `PCRE2_ERROR_NOMATCH` when it ended well.
    private func collect(
        _ text: UnsafeBufferPointer<UInt8>, _ data: OpaquePointer, _ vector: UnsafeMutablePointer<Int>, options: UInt32,
        atMost limit: Int
    ) -> ([Range<Int>], Int32) {
        var found: [Range<Int>] = []
        var start = 0
        // PCRE2 wants an address even for an empty text.
        var nothing: UInt8 = 0
        return unsafe withUnsafePointer(to: &nothing) { empty in
            let base = unsafe text.baseAddress ?? empty
            while found.count < limit, start <= text.count {
                var status = unsafe pcre2_match_8(code, base, text.count, start, options, data, limits)
                if status == PCRE2_ERROR_JIT_STACKLIMIT {
                    // The machine code has a small fixed stack; the interpreter keeps its stack on the heap.
                    status = unsafe pcre2_match_8(code, base, text.count, start, options | PCRE2_NO_JIT, data, limits)
                }
                guard status >= 0 else { return (found, status) }
                let (low, high) = unsafe (vector[0], vector[1])
                // `\K` in a lookahead can report an end before the start.
                guard low <= high, high <= text.count else { return (found, PCRE2_ERROR_INTERNAL) }
                found.append(low..<high)
                start = high
                if low == high {  // go on with the next character, or the same empty match comes again
                    start += 1
                    while start < text.count, unsafe text[start] & 0xC0 == 0x80 { start += 1 }
                }
            }
            return (found, PCRE2_ERROR_NOMATCH)
        }
    }

    private static func reason(_ status: Int32) -> String {
        unsafe withUnsafeTemporaryAllocation(of: UInt8.self, capacity: 160) { buffer in
            let count = unsafe pcre2_get_error_message_8(status, buffer.baseAddress, buffer.count)
            return count > 0
                ? unsafe String(decoding: UnsafeBufferPointer(rebasing: buffer[..<Int(count)]), as: UTF8.self)
                : "error \(status)"
        }
    }
}
