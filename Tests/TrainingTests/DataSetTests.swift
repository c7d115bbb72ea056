import Glibc
import Platform
import Testing

@testable import Training

struct DataSetTests {
    private func dataSet(_ text: String, _ format: DataFormat, _ change: (inout DataSetOptions) -> Void = { _ in }) throws -> DataSet {
        try dataSet(Array(text.utf8), format, change)
    }

    private func dataSet(_ bytes: [UInt8], _ format: DataFormat, _ change: (inout DataSetOptions) -> Void = { _ in }) throws -> DataSet {
        var options = DataSetOptions()
        options.format = format
        options.shuffle = false
        change(&options)
        return try DataSet(MemoryBytes(bytes, name: "memory"), ByteEncoder(), options)
    }

    private func samples(_ set: DataSet) throws -> [Sample] { try (0..<set.recordCount).flatMap { try set.samples($0) } }

    // MARK: JSON lines

    @Test func conversationsLearnTheAssistantsWords() throws {
        let set = try dataSet(#"{"messages": [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "x"}]}"#, .jsonLines)
        let sample = try #require(try samples(set).first)
        #expect(sample.ids == [2, 97, 115, 107, 3, 2, 121, 101, 115, 3, 2, 120, 3])
        #expect(sample.labels == [-100, -100, -100, -100, -100, -100, 121, 101, 115, 3, -100, -100, -100])
        let all = try dataSet(#"{"messages": [{"role": "assistant", "content": "yes"}]}"#, .jsonLines) { $0.learned = .all }
        #expect(try samples(all).first?.labels == [2, 121, 101, 115, 3])
    }

    @Test func completionsLearnTheCompletion() throws {
        let sample = try #require(try samples(try dataSet(#"{"prompt": "ab", "completion": "cd", "id": 7}"#, .jsonLines)).first)
        #expect(sample.ids == [1, 97, 98, 99, 100, 0])
        #expect(sample.labels == [-100, -100, -100, 99, 100, 0])
        let chat = #"{"prompt": [{"role": "assistant", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}"#
        #expect(try samples(try dataSet(chat, .jsonLines)).first?.labels == [-100, -100, -100, -100, 98, 3])
    }

    @Test func textsLearnAllAndEnd() throws {
        #expect(try samples(try dataSet(#"{"text": "ab"}"#, .jsonLines)) == [Sample([1, 97, 98, 0])])
    }

    @Test func blankLinesAndWindowsLineEndsAndMarksAreNoRecords() throws {
        let set = try dataSet("\u{feff}{\"text\": \"one\"}\r\n\r\n  \n{\"text\": \"two\"}\n\n", .jsonLines)
        #expect(set.recordCount == 2)
        #expect(try samples(set).map { text($0.ids) } == ["one", "two"])
    }

    @Test(arguments: [
        ("{\"text\": \"a\"}\n\n{\"text\": }\n", 3), ("{\"text\": 5}", 1), ("[1]", 1), ("{\"prompt\": \"a\"}", 1), ("{\"messages\": []}", 1),
        ("{\"messages\": [{\"role\": \"user\"}]}", 1), ("{\"text\": \"a\"}\n{\"other\": 1}", 2), ("{\"text\": \"a\"} {\"text\": \"b\"}", 1),
        ("{\"prompt\": \"a\", \"completion\": []}", 1), ("{\"text\": \"a\", \"text\": \"b\"}", 1),
    ]) func badLinesAreNamed(_ text: String, _ line: Int) throws {
        let error = try #require(failure { _ = try dataSet(text, .jsonLines) })
        #expect(error.kind == .format && error.detail == Int64(line) && error.message.hasPrefix("memory line \(line): "), "\(error)")
    }

    @Test func badLinesCanBeSkippedAndAreCounted() throws {
        let set = try dataSet("{\"text\": \"a\"}\nnonsense\n{\"messages\": [{\"role\": \"unknown\", \"content\": \"\"}]}\n{\"text\": \"b\"}", .jsonLines) { $0.badRecords = .skip }
        #expect(set.recordCount == 3 && set.skippedCount == 1)
        #expect(try samples(set).map { text($0.ids) } == ["a", "b"])
        #expect(set.skippedCount == 2)  // the role was found when tokenising
        let error = failure { _ = try dataSet("x\ny\n", .jsonLines) { $0.badRecords = .skip } }
        #expect(error?.kind == .format)
    }

    @Test func warningsAreBounded() throws {
        final class Log: @unchecked Sendable { var lines: [String] = [] }
        let log = Log()
        var options = DataSetOptions()
        (options.format, options.badRecords) = (.jsonLines, .skip)
        let text = String(repeating: "bad\n", count: 500) + "{\"text\": \"a\"}"
        let set = try DataSet(MemoryBytes(Array(text.utf8), name: "m"), ByteEncoder(), options) { log.lines.append($0) }
        #expect(set.skippedCount == 500 && log.lines.count == 11)
    }

    @Test func invalidUTF8IsNamed() throws {
        let bytes = Array("{\"text\": \"a\"}\n{\"text\": \"".utf8) + [0xc3, 0x28] + Array("\"}".utf8)
        let error = try #require(failure { _ = try dataSet(bytes, .jsonLines) })
        #expect(error.detail == 2 && error.message.firstRange(ofText: "invalid UTF-8 at byte 24") != nil, "\(error)")
        #expect(failure { _ = try dataSet([0x61, 0x0a, 0xff], .text) }?.detail == 2)
    }

    @Test(arguments: [DataFormat.jsonLines, .csv, .text]) func emptyDataSetsAreErrors(_ format: DataFormat) throws {
        for text in ["", "\n\n", "\u{feff}", " \n"] where !(format == .csv && text == " \n") {
            let error = failure { _ = try dataSet(text, format) }
            #expect(error?.kind == .format, "\(format) \(text.debugDescription)")
        }
    }

    @Test func aLineOfTenMegabytesWorksOrIsAnError() throws {
        let folder = TemporaryFolder()
        let long = String(repeating: "x", count: 10 << 20)
        let path = try folder.write("long.jsonl", "{\"text\": \"a\"}\n{\"text\": \"\(long)\"}\n")
        var options = DataSetOptions()
        options.shuffle = false
        let set = try DataSet(path: path, ByteEncoder(), options)
        #expect(try set.samples(1).first?.ids.count == 512)
        options.maximumRecordBytes = 1 << 20
        let error = try #require(failure { _ = try DataSet(path: path, ByteEncoder(), options) })
        #expect(error.detail == 2 && error.message.firstRange(ofText: "1048576") != nil, "\(error)")
    }

    @Test func aChangedFileIsAnErrorAndNotACrash() throws {
        let folder = TemporaryFolder()
        let path = try folder.write("a.jsonl", "{\"text\": \"first\"}\n{\"text\": \"second\"}\n")
        let set = try DataSet(path: path, ByteEncoder())
        let file = try #require(fopen(path, "w"))
        fclose(file)  // cut to nothing in place
        #expect(failure { _ = try set.samples(1) }?.kind == .io)
        #expect(failure { _ = try DataSet(path: folder.path + "/none.jsonl", ByteEncoder()) }?.kind == .notFound)
        #expect(failure { _ = try DataSet(path: folder.path, ByteEncoder()) }?.kind == .argument)
    }

    // MARK: CSV

    @Test func csvFollowsRFC4180() throws {
        let table = "id,prompt,completion\r\n1,\"a, \"\"b\"\"\nc\",d\r\n\r\n2,,\"\"\"e\"\"\"\r\n"
        let set = try dataSet(table, .csv)
        #expect(set.recordCount == 2)
        let found = try samples(set)
        #expect(found[0] == Sample([1] + Array("a, \"b\"\nc".utf8).map { Int32($0) } + [100, 0], learnedFrom: 9))
        #expect(found[1] == Sample([1, 34, 101, 34, 0], learnedFrom: 1))
        #expect(try samples(try dataSet("text\nfirst\n\"second\"\n", .csv)).map { text($0.ids) } == ["first", "second"])
    }

    @Test(arguments: [
        ("a,b\n1,2\n", 1), ("text\n\"open\n", 2), ("text\na\"b\n", 2), ("text\n\"a\"b\n", 2), ("prompt,completion\na\n", 2), ("prompt,completion\na,b\nc,d,e\n", 3),
    ]) func badCSVIsNamed(_ text: String, _ line: Int) throws {
        let error = try #require(failure { _ = try dataSet(text, .csv) })
        #expect(error.kind == .format && error.message.firstRange(ofText: "line \(line)") != nil, "\(error)")
    }

    // MARK: Plain text

    @Test func plainTextIsCutInBlocksWithoutLoss() throws {
        let lines = (0..<300).map { "Line \($0) with some wörds.\n" }.joined()
        let set = try dataSet(lines, .text) { $0.maxLength = 16 }
        #expect(set.recordCount > 10)
        let found = try samples(set)
        #expect(found.allSatisfy { $0.ids.count <= 16 && $0.labels == $0.ids })
        #expect(String(decoding: found.flatMap { $0.ids.map { UInt8($0) } }, as: UTF8.self) == lines)
    }

    @Test func textWithoutLineEndsIsNotCutInsideACharacter() throws {
        let text = String(repeating: "日本", count: 2000)
        let set = try dataSet(text, .text) { $0.maxLength = 10 }
        #expect(set.recordCount > 1)
        #expect(String(decoding: try samples(set).flatMap { $0.ids.map { UInt8($0) } }, as: UTF8.self).count >= 3990)
    }

    // MARK: Length, order, division

    @Test func longSamplesFollowTheTruncation() throws {
        let line = #"{"prompt": "abc", "completion": "defgh"}"#
        func lengths(_ truncation: Truncation) throws -> [String] {
            try samples(try dataSet(line, .jsonLines) { ($0.truncation, $0.maxLength) = (truncation, 5) }).map { text($0.ids) }
        }
        #expect(try lengths(.keepStart) == ["abcd"])
        #expect(try lengths(.keepEnd) == ["efgh"])
        #expect(try lengths(.split) == ["abcd", "efgh"])
        #expect(try lengths(.drop) == [])
        let error = failure { _ = try samples(try dataSet(line, .jsonLines) { ($0.truncation, $0.maxLength) = (.error, 5) }) }
        #expect(error?.message.firstRange(ofText: "10 tokens, max_length is 5") != nil)
    }

    @Test func aPromptThatFillsTheRowLeavesNothingToLearn() throws {
        let set = try dataSet(#"{"prompt": "abcdef", "completion": "g"}"#, .jsonLines) { $0.maxLength = 4 }
        #expect(failure { _ = try BatchLoader(set).next() }?.message.firstRange(ofText: "nothing to learn") != nil)
    }

    @Test func shufflingDependsOnTheSeedOnly() throws {
        let lines = (0..<50).map { "{\"text\": \"\($0)\"}\n" }.joined()
        func order(_ seed: UInt64, epoch: Int) throws -> [Int] { try dataSet(lines, .jsonLines) { ($0.shuffle, $0.seed) = (true, seed) }.order(epoch: epoch) }
        #expect(try order(1, epoch: 0) == order(1, epoch: 0))
        #expect(try order(1, epoch: 0) != order(1, epoch: 1))
        #expect(try order(1, epoch: 0) != order(2, epoch: 0))
        #expect(try order(1, epoch: 3).sorted() == Array(0..<50))
    }

    @Test func heldOutRecordsAreNotTrainedOn() throws {
        let lines = (0..<20).map { "{\"text\": \"\($0)\"}\n" }.joined()
        let whole = try dataSet(lines, .jsonLines)
        for heldOut in [HeldOut.share(0.25), .every(4)] {
            let (training, held) = try whole.divided(heldOut)
            #expect(training.recordCount == 15 && held.recordCount == 5)
            #expect(Set(try samples(training).map { text($0.ids) }).isDisjoint(with: try samples(held).map { text($0.ids) }))
        }
        #expect(try samples(try whole.divided(.every(4)).heldOut).map { text($0.ids) } == ["3", "7", "11", "15", "19"])
        #expect(failure { _ = try whole.divided(.share(1)) }?.kind == .argument)
        #expect(failure { _ = try dataSet(#"{"text": "a"}"#, .jsonLines).divided(.share(0.5)) }?.kind == .argument)
        let part = try DataSetPart(try JSONValue(parsing: #"{"holdout": 0.25, "split": "holdout"}"#))
        #expect(try part.of(whole).recordCount == 5)
        #expect(failure { _ = try DataSetPart(try JSONValue(parsing: #"{"split": "holdout"}"#)) }?.kind == .argument)
    }

    @Test func aFingerprintTellsContentsAndOptionsApart() throws {
        let set = try dataSet("{\"text\": \"one\"}\n", .jsonLines)
        #expect(try dataSet("{\"text\": \"one\"}\n", .jsonLines).fingerprint == set.fingerprint)
        #expect(try dataSet("{\"text\": \"two\"}\n", .jsonLines).fingerprint != set.fingerprint)
        #expect(try dataSet("{\"text\": \"one\"}\n", .jsonLines) { $0.seed = 1 }.fingerprint != set.fingerprint)
    }

    // MARK: Batches

    @Test func batchesAreFilledUpAndMasked() throws {
        let set = try dataSet("{\"text\": \"a\"}\n{\"text\": \"bcd\"}\n{\"text\": \"e\"}\n", .jsonLines) { $0.batchSize = 2 }
        let loader = try BatchLoader(set)
        let first = try #require(try loader.next())
        #expect(first.rows == 2 && first.length == 5)
        #expect(first.ids == [1, 97, 0, 9, 9, 1, 98, 99, 100, 0])
        #expect(first.labels == [1, 97, 0, -100, -100, 1, 98, 99, 100, 0])
        #expect(first.keyMask == [1, 1, 1, 0, 0, 1, 1, 1, 1, 1])
        #expect(first.tokenCount == 8)
        #expect(first.shiftedLabels == [97, 0, -100, -100, -100, 98, 99, 100, 0, -100])
        #expect(try loader.next()?.rows == 1)
        #expect(try loader.next() == nil)
        #expect(loader.position == DataPosition(epoch: 1))
        #expect(try loader.next() == first)
        #expect(try set.countBatches() == 2)
    }

    @Test func recordsSayTheirTask() throws {
        let lines = "{\"text\": \"a\", \"task_id\": 2}\n{\"text\": \"b\", \"task_id\": 0}\n{\"text\": \"c\", \"task_id\": 0}\n"
        #expect(try BatchLoader(try dataSet(lines, .jsonLines) { $0.batchSize = 3 }).next()?.tasks == [2, 0, 0])
        // A packed row is of one task.
        let packed = try #require(try BatchLoader(try dataSet(lines, .jsonLines) { ($0.packing, $0.maxLength, $0.batchSize) = (true, 16, 3) }).next())
        #expect(packed.rows == 2 && packed.tasks == [2, 0])
        #expect(try BatchLoader(try dataSet("task_id,text\n1,a\n,b\n", .csv) { $0.batchSize = 1 }).next()?.tasks == [1])
        #expect(try BatchLoader(try dataSet("{\"text\": \"a\"}\n", .jsonLines)).next()?.tasks == nil)
        let mixed = try dataSet("{\"text\": \"a\", \"task_id\": 2}\n{\"text\": \"b\"}\n", .jsonLines) { $0.batchSize = 2 }
        #expect(failure { _ = try BatchLoader(mixed).next() }?.message.contains("task_id") == true)
        for value in ["-1", "1.5", "\"x\"", "true", "4294967296"] {
            #expect(failure { _ = try dataSet("{\"text\": \"a\", \"task_id\": \(value)}\n", .jsonLines) }?.message.contains("task_id") == true, "\(value)")
        }
    }

    @Test func packedSamplesKeepToThemselves() throws {
        let set = try dataSet("{\"text\": \"a\"}\n{\"text\": \"bc\"}\n{\"text\": \"def\"}\n{\"text\": \"g\"}\n", .jsonLines) { ($0.packing, $0.maxLength, $0.batchSize) = (true, 8, 2) }
        let batch = try #require(try BatchLoader(set).next())
        #expect(batch.rows == 2 && batch.length == 8)
        #expect(batch.ids == [1, 97, 0, 1, 98, 99, 0, 9, 1, 100, 101, 102, 0, 1, 103, 0])
        #expect(batch.positions == [0, 1, 2, 0, 1, 2, 3, 0, 0, 1, 2, 3, 4, 0, 1, 2])
        #expect(batch.firstKey == [0, 0, 0, 3, 3, 3, 3, 7, 0, 0, 0, 0, 0, 5, 5, 5])
        // The token before a sample does not predict its first one.
        #expect(batch.shiftedLabels == [97, 0, -100, 98, 99, 0, -100, -100, 100, 101, 102, 0, -100, 103, 0, -100])
        #expect(batch.keyMask == [1, 1, 1, 1, 1, 1, 1, 0] + Array(repeating: 1, count: 8))
    }

    @Test(arguments: [false, true]) func aPositionContinuesWithTheNextBatch(_ packing: Bool) throws {
        let lines = (0..<40).map { "{\"text\": \"\(String(repeating: "ab", count: $0 % 13 + 1))\"}\n" }.joined()
        let set = try dataSet(lines, .jsonLines) { ($0.shuffle, $0.truncation, $0.maxLength, $0.batchSize, $0.packing) = (true, .split, 12, 3, packing) }
        let loader = try BatchLoader(set)
        var (positions, batches): ([DataPosition], [Batch?]) = ([], [])
        for _ in 0..<60 {
            positions.append(loader.position)
            batches.append(try loader.next())
        }
        #expect(loader.position.epoch >= 2)
        for (position, batch) in zip(positions, batches) { #expect(try BatchLoader(set, at: position).next() == batch) }
        #expect(failure { _ = try BatchLoader(set, at: DataPosition(record: 41)) }?.kind == .mismatch)
    }
}
