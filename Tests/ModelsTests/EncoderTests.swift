import Autograd
import Checkpoints
import Platform
import Tensors
import Testing

@testable import Models

/// Encoders and their heads against transformers 5.23.0; the numbers are in encoders.json, made by make_encoders.py.
@Suite struct EncoderTests {
    @Test func tasks() throws {
        let tasks: [(String, ModelTask)] = [
            ("bert", .features), ("bert_cls", .classification), ("bert_tok", .tokenClassification), ("bert_qa", .questionAnswering), ("roberta_cls", .classification),
        ]
        for (base, task) in tasks {
            let model = try OpenedModel.open(path: Golden.base(base), Engine(), compute: .f32).model
            #expect(model.task == task && model.unusedTensors.isEmpty, "\(base): \(model.unusedTensors)")
        }
    }
}
