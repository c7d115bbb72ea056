package import Platform
internal import Tensors

/// Training examples in a file (or in memory): knows where each record lies, reads and tokenises records when they are
/// asked for. Memory: 8 to 16 bytes a record, however large the file is.
///
/// A *record* is a line, a CSV row or a stretch of plain text; it yields one *sample*, several (plain text, `split`) or
/// none (`drop`, nothing to learn).
package final class DataSet: Sendable {
    package let options: DataSetOptions
    /// A token to fill rows up with.
    let paddingID: Int32
    private let file: RecordFile
    private let maker: SampleMaker
    /// Records of the file that are in this set; nil: all.
    private let selection: [Int]?
    private let problems: RecordProblems

    /// Opens a file by its ending: `.jsonl`, `.csv`, anything else is plain text (`options.format` overrides).
    package convenience init(
        path: String, _ encoder: any TextEncoder, _ options: DataSetOptions = DataSetOptions(), warn: @escaping @Sendable (String) -> Void = { _ in }
    ) throws(PEFTError) {
        var options = options
        options.format = options.format ?? DataFormat(path: path) ?? .text
        try self.init(try PositionedFile(path: path), encoder, options, warn: warn)
    }

    /// Reads `source` once: every record must parse (tokenising comes later).
    ///
    /// - Parameters:
    ///   - warn: receives a line for each of the first bad records that are skipped.
    /// - Throws: `.format` naming the line of a bad record (unless bad ones are skipped) or of one that is too long, or
    ///   when there is no record at all.
    package init(
        _ source: any ByteSource, _ encoder: any TextEncoder, _ options: DataSetOptions = DataSetOptions(),
        warn: @escaping @Sendable (String) -> Void = { _ in }
    ) throws(PEFTError) {
        try options.validate()
        self.options = options
        paddingID = encoder.paddingID
        let format = options.format ?? .text
        // Stretches of a few samples: small enough to shuffle and to hold some out, long enough to lose little at their ends.
        let stretch = max(4 * options.maxLength, min(65536, source.byteCount / 128))
        file = try RecordFile(source, format, maximumRecordBytes: options.maximumRecordBytes, textBlockBytes: stretch)
        maker = SampleMaker(encoder, options, isPlainText: format == .text)
        problems = RecordProblems(isFatal: options.badRecords == .error, warn: warn)
        var good: [Int] = []
        for record in 0..<file.count {
            do throws(PEFTError) {
                _ = try file.example(record)
                good.append(record)
            } catch {
                try problems.note(error, record)
            }
        }
        guard !good.isEmpty else { throw PEFTError(.format, "\(source.name): none of its \(file.count) records is usable; \(problems.first)") }
        selection = good.count == file.count ? nil : good
    }

    private init(_ other: DataSet, _ selection: [Int]) {
        (options, paddingID, file, maker, problems) = (other.options, other.paddingID, other.file, other.maker, other.problems)
        self.selection = selection
    }

    /// The file's path, or what the host calls the text.
    package var name: String { file.source.name }
    package var format: DataFormat { file.format }
    package var recordCount: Int { selection?.count ?? file.count }
    /// Records left out because they are malformed or cannot be tokenised.
    package var skippedCount: Int { problems.count }

    /// The samples of a record; empty when it is skipped.
    package func samples(_ record: Int) throws(PEFTError) -> [Sample] {
        guard record >= 0, record < recordCount else { throw PEFTError(.argument, "record \(record) of \(recordCount)") }
        let number = selection?[record] ?? record
        do throws(PEFTError) {
            let (example, task) = try file.example(number)
            do throws(PEFTError) {
                return try maker.samples(example).map { sample in
                    var sample = sample
                    sample.task = task
                    return sample
                }
            } catch {
                throw try file.located(error, at: number)
            }
        } catch {
            try problems.note(error, number)
            return []
        }
    }

    /// Divides the set in what is trained on and what is held out; both keep the order of the file.
    /// - Throws: `.argument` when one of them would be empty.
    package func divided(_ heldOut: HeldOut) throws(PEFTError) -> (training: DataSet, heldOut: DataSet) {
        let all = selection ?? Array(0..<file.count)
        var isHeldOut = [Bool](repeating: false, count: all.count)
        switch heldOut {
        case .share(let share):
            guard share > 0, share < 1 else { throw PEFTError(.argument, "holdout is \(share); it must be above 0 and below 1") }
            var stream = RandomStream(seed: options.seed, purpose: "held out")
            let count = max(1, Int((share * Double(all.count)).rounded()))
            for record in stream.permutation(all.count).prefix(count) { isHeldOut[record] = true }
        case .every(let n):
            guard n >= 2 else { throw PEFTError(.argument, "every \(n)th record held out; it must be at least every 2nd") }
            for record in stride(from: n - 1, to: all.count, by: n) { isHeldOut[record] = true }
        }
        let held = all.indices.filter { isHeldOut[$0] }.map { all[$0] }
        let rest = all.indices.filter { !isHeldOut[$0] }.map { all[$0] }
        guard !held.isEmpty, !rest.isEmpty else {
            throw PEFTError(.argument, "\(name): \(all.count) records cannot be divided in \(rest.count) to train on and \(held.count) held out")
        }
        return (DataSet(self, rest), DataSet(self, held))
    }

    /// The order of the records in an epoch: the same for the same seed, whatever happened before.
    func order(epoch: Int) -> [Int] {
        guard options.shuffle else { return Array(0..<recordCount) }
        var stream = RandomStream(seed: options.seed, purpose: "shuffle \(epoch)")
        return stream.permutation(recordCount)
    }

    /// What a resumed run must find again: the source's bytes, the records in the set, and how they become samples.
    package var fingerprint: String {
        "\(file.source.byteCount) bytes, content \(String(file.contentHash, radix: 16)), \(recordCount) records, \(options.identity)"
    }
}
