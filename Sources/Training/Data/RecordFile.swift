internal import Platform

/// The records of a file, read when they are asked for.
struct RecordFile: Sendable {
    let source: any ByteSource
    let format: DataFormat
    private let index: RecordIndex
    private let columns: CSVColumns?
    /// 1 when the first record is a header.
    private let headerCount: Int

    /// - Throws: `.format` when a record is too long, a CSV header names no usable columns, or there is no record.
    init(_ source: any ByteSource, _ format: DataFormat, maximumRecordBytes: Int, textBlockBytes: Int) throws(PEFTError) {
        self.source = source
        self.format = format
        index = try RecordIndex(source, format, maximumRecordBytes: maximumRecordBytes, textBlockBytes: textBlockBytes)
        headerCount = format == .csv ? 1 : 0
        guard index.count > headerCount else {
            throw PEFTError(.format, "\(source.name): no \(format == .text ? "text" : "records") in it (\(source.byteCount) bytes)")
        }
        guard format == .csv else {
            columns = nil
            return
        }
        let header = try RecordFile.text(of: 0, index, source)
        do throws(PEFTError) {
            columns = try CSVColumns(header: try CSVRecord.fields(header))
        } catch {
            throw error.within("\(source.name) line 1")
        }
    }

    /// Of all bytes of the source.
    var contentHash: UInt64 { index.contentHash }

    /// Without the header.
    var count: Int { index.count - headerCount }

    /// A record as its author wrote it, and the task it is of.
    /// - Throws: `.format` with the file, the line (also in `detail`) and what is wrong there.
    func example(_ record: Int) throws(PEFTError) -> (example: Example, task: Int32?) {
        let text = try RecordFile.text(of: record + headerCount, index, source, keepsLineEnd: format == .text)
        do throws(PEFTError) {
            switch format {
            case .text: return (.text(text), nil)
            case .jsonLines:
                let json = try JSONValue(parsing: text)
                return (try Example(json), try Example.task(json["task_id"]))
            case .csv: return try columns?.example(try CSVRecord.fields(text)) ?? (.text(""), nil)
            }
        } catch {
            throw try located(error, at: record)
        }
    }

    /// An error with the file and line of its record in front.
    func located(_ error: PEFTError, at record: Int) throws(PEFTError) -> PEFTError {
        let line = try RecordIndex.line(of: index.range(record + headerCount).lowerBound, in: source)
        return PEFTError(error.kind, "\(source.name) line \(line): \(error.message)", detail: Int64(line))
    }

    /// The record's bytes as text; of a line, without its end and the blank lines behind it.
    private static func text(of entry: Int, _ index: RecordIndex, _ source: any ByteSource, keepsLineEnd: Bool = false) throws(PEFTError) -> String {
        let range = index.range(entry)
        var bytes = try source.read(range)[...]
        while !keepsLineEnd, let last = bytes.last, last == UInt8(ascii: "\n") || last == UInt8(ascii: "\r") { bytes.removeLast() }
        if let text = String(validating: bytes, as: UTF8.self) { return text }
        let place = range.lowerBound + invalidByte(bytes)
        let line = try RecordIndex.line(of: place, in: source)
        throw PEFTError(.format, "\(source.name) line \(line): invalid UTF-8 at byte \(place) of the file", detail: Int64(line))
    }

    /// How many bytes in front of the first ill-formed sequence.
    private static func invalidByte(_ bytes: ArraySlice<UInt8>) -> Int {
        var parser = Unicode.UTF8.ForwardParser()
        var iterator = bytes.makeIterator()
        var count = 0
        while case .valid(let scalar) = parser.parseScalar(from: &iterator) { count += scalar.count }
        return count
    }
}
