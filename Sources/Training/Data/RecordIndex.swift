internal import Glibc
internal import Platform

/// How a data set's file is divided into records.
package enum DataFormat: String, Sendable, CaseIterable {
    /// One JSON object a line.
    case jsonLines = "jsonl"
    /// RFC 4180, with a header line.
    case csv
    /// Plain text, trained on in blocks.
    case text

    /// By the ending of a file's name; nil when it says nothing.
    package init?(path: String) {
        let ending = path.split(separator: "/", omittingEmptySubsequences: false).last.flatMap { $0.split(separator: ".").count > 1 ? $0.split(separator: ".").last : nil }
        switch ending?.lowercased() {
        case "jsonl", "ndjson", "json": self = .jsonLines
        case "csv": self = .csv
        case "txt", "text", "md": self = .text
        default: return nil
        }
    }
}

/// Where each record of a source begins: 8 bytes a record, found in one pass with a megabyte of memory.
///
/// A record reaches to the start of the next one; the line end and blank lines behind it are cut off when it is read.
struct RecordIndex: Sendable {
    private(set) var starts: [Int] = []
    /// FNV-1a of all bytes: tells a resumed run that the file is another one.
    private(set) var contentHash: UInt64 = 0xcbf2_9ce4_8422_2325
    /// Where the last record ends.
    private let end: Int

    private static let chunk = 1 << 20
    private static let newline = UInt8(ascii: "\n")
    private static let quote = UInt8(ascii: "\"")
    private static let carriageReturn = UInt8(ascii: "\r")

    /// - Parameters:
    ///   - maximumRecordBytes: a longer record is an error (or a wrong file: a binary one has no lines).
    ///   - textBlockBytes: for plain text, about how many bytes make a record.
    init(_ source: any ByteSource, _ format: DataFormat, maximumRecordBytes: Int, textBlockBytes: Int) throws(PEFTError) {
        end = source.byteCount
        let bomBytes = try source.read(0..<min(3, end)) == [0xef, 0xbb, 0xbf] ? 3 : 0
        switch format {
        case .jsonLines: try scanLines(source, from: bomBytes, maximumRecordBytes, quoted: false)
        case .csv: try scanLines(source, from: bomBytes, maximumRecordBytes, quoted: true)
        case .text: try cutText(source, from: bomBytes, textBlockBytes)
        }
    }

    var count: Int { starts.count }

    /// The bytes a record lies in, line ends and blanks behind it included.
    func range(_ record: Int) -> Range<Int> {
        starts[record]..<(record + 1 < starts.count ? starts[record + 1] : end)
    }

    /// Records end at line ends; with `quoted` only at those outside of double quotes (an escaped quote is two quotes, so
    /// counting them by twos is enough). Blank lines are no records.
    private mutating func scanLines(_ source: any ByteSource, from first: Int, _ maximum: Int, quoted: Bool) throws(PEFTError) {
        var offset = first
        var start = first
        var isBlank = true
        var inQuotes = false
        while offset < end {
            let bytes = try source.read(offset..<min(end, offset + RecordIndex.chunk))
            for (index, byte) in bytes.enumerated() {
                if byte == RecordIndex.quote, quoted { inQuotes.toggle() }
                if byte == RecordIndex.newline, !inQuotes {
                    start = offset + index + 1
                    isBlank = true
                } else if isBlank, quoted ? byte != RecordIndex.carriageReturn : byte > UInt8(ascii: " ") {
                    isBlank = false
                    starts.append(start)
                } else if !isBlank, offset + index - start >= maximum {
                    throw try tooLong(source, start, maximum, unclosedQuote: inQuotes)
                }
            }
            hash(bytes[...])
            offset += bytes.count
        }
        if inQuotes, let last = starts.last {
            let line = try RecordIndex.line(of: last, in: source)
            throw PEFTError(.format, "\(source.name) line \(line): a double quote is opened and never closed", detail: Int64(line))
        }
    }

    private func tooLong(_ source: any ByteSource, _ start: Int, _ maximum: Int, unclosedQuote: Bool) throws(PEFTError) -> PEFTError {
        let line = try RecordIndex.line(of: start, in: source)
        let reason = unclosedQuote ? "; is a double quote missing?" : ""
        return PEFTError(.format, "\(source.name) line \(line): longer than the limit of \(maximum) bytes\(reason)", detail: Int64(line))
    }

    /// Text has no records of its own: it is cut behind the last line end (else blank, else character) within `size`
    /// bytes, so that a token is seldom cut apart.
    private mutating func cutText(_ source: any ByteSource, from first: Int, _ size: Int) throws(PEFTError) {
        var offset = first
        while offset < end {
            let bytes = try source.read(offset..<min(end, offset + size))
            if bytes.contains(where: { $0 > UInt8(ascii: " ") }) || starts.isEmpty { starts.append(offset) }
            let used = offset + bytes.count == end ? bytes.count : RecordIndex.cut(bytes)
            hash(bytes[..<used])
            offset += used
        }
        // Nothing but blanks in the whole file.
        if starts.count == 1, !(try source.read(range(0))).contains(where: { $0 > UInt8(ascii: " ") }) { starts = [] }
    }

    private mutating func hash(_ bytes: ArraySlice<UInt8>) {
        for byte in bytes { contentHash = (contentHash ^ UInt64(byte)) &* 0x100_0000_01b3 }  // Safe: a hash wraps by definition.
    }

    private static func cut(_ bytes: [UInt8]) -> Int {
        let half = bytes.count / 2
        if let line = bytes[half...].lastIndex(of: newline) { return line + 1 }
        if let blank = bytes[half...].lastIndex(of: UInt8(ascii: " ")) { return max(blank, 1) }
        // Not inside a UTF-8 character: back to a byte that starts one.
        var index = bytes.count
        while index > half + 1, bytes[index - 1] & 0xc0 == 0x80 { index -= 1 }
        return index > half + 1 && bytes[index - 1] >= 0xc0 ? index - 1 : bytes.count
    }

    /// The number of the line that holds byte `offset`, counted from 1. Only errors ask, so it is counted then.
    static func line(of offset: Int, in source: any ByteSource) throws(PEFTError) -> Int {
        var line = 1
        var position = 0
        while position < offset {
            let bytes = try source.read(position..<min(offset, position + chunk))
            for byte in bytes where byte == newline { line += 1 }
            position += bytes.count
        }
        return line
    }
}
