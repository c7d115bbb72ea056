import Models
import Platform
import Tensors
import Testing

@testable import Training

/// Encoders, their heads and their losses against transformers 5.23.0 (Fixtures/encoders.json, made by make_encoders.py).
@Suite struct EncoderTests {
    private static let tests = String(#filePath.dropLast("TrainingTests/EncoderTests.swift".count))
    private static let fixtures = tests + "TrainingTests/Fixtures"

    private func integers(_ value: JSONValue?) -> [Int32] {
        (value?.arrayValue ?? []).flatMap { $0.arrayValue ?? [$0] }.compactMap { $0.intValue.map { Int32($0) } }
    }

    @Test func sameAsTransformers() throws {
        let cases = try #require(try Files.json(at: EncoderTests.fixtures + "/encoders.json").arrayValue)
        #expect(cases.count == 6)
        for item in cases {
            let base = try #require(item["base"]?.stringValue)
            let folder = base == "distilbert_cls" ? "\(EncoderTests.fixtures)/\(base)" : "\(EncoderTests.tests)Golden/data/bases/\(base)"
            let model = try OpenedModel.open(path: folder, Engine(threads: 2), compute: .f32).model
            #expect(model.unusedTensors.isEmpty, "\(base): \(model.unusedTensors)")
            var batch = Batch(rows: 2, length: 6, ids: integers(item["input_ids"]), labels: integers(item["labels"] ?? item["start_positions"]))
            batch.keyMask = [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0]
            if let types = item["token_type_ids"] { batch.tokenTypes = integers(types) }
            if let ends = item["end_positions"] { batch.ends = integers(ends) }
            let labels = (item["labels"]?.arrayValue ?? []).flatMap { $0.arrayValue ?? [$0] }
            if case .number = labels.first { (batch.labels, batch.targets) = ([], labels.compactMap { $0.doubleValue.map { Float($0) } }) }

            let output = try model.forward(batch, .all(model.unadapted))
            let answers = try output.answerLogits(model)
            let found = ["logits": output.logits, "pooler_output": output.pooled, "start_logits": answers?.start, "end_logits": answers?.end]
            for (key, value) in try #require(item["expected"]?.objectValue).pairs {
                let expected = try #require(value.arrayValue).compactMap(\.doubleValue)
                let values = key == "loss" ? [try #require(output.loss)] : try #require(found[key] ?? nil, "\(base) \(key)").floats(model.engine).map { Double($0) }
                try #require(values.count == expected.count, "\(base) \(key)")
                // Logits of padding are nobody's.
                let perToken = expected.count % 12 == 0 && key != "pooler_output" ? expected.count / 12 : 0
                let seen = values.indices.filter { perToken == 0 || batch.keyMask?[$0 / perToken] == 1 }
                let largest = expected.map { abs($0) }.max() ?? 1
                let error = seen.map { abs(values[$0] - expected[$0]) }.max() ?? .infinity
                #expect(error <= 2e-4 * largest, "\(base) \(key): \(error)")
            }
        }
    }

    /// Labels that do not fit the head are refused by name.
    @Test func wrongLabels() throws {
        func failure(_ base: String, _ change: (inout Batch) -> Void) throws -> PEFTError? {
            let model = try OpenedModel.open(path: "\(EncoderTests.tests)Golden/data/bases/\(base)", Engine(), compute: .f32).model
            var batch = Batch(rows: 1, length: 3, ids: [5, 6, 7], labels: [])
            change(&batch)
            do { _ = try model.forward(batch, .all(model.unadapted)) } catch { return error }
            return nil
        }
        #expect(try failure("bert") { $0.labels = [0] }?.message.contains("no head") == true)
        #expect(try failure("bert_qa") { $0.labels = [0] }?.message.contains("end_positions") == true)
        #expect(try failure("bert_tok") { $0.labels = [0] }?.kind == .argument)
        #expect(try failure("bert_cls") { $0.labels = [9] }?.kind == .argument)
        #expect(try failure("bert_cls") { $0.targets = [1] }?.message.contains("3 outputs") == true)
        #expect(try failure("bert_cls") { $0.labels = [2] } == nil)
    }
}
