import Autograd
import Checkpoints
import Platform
import Tensors
import Testing

@testable import Models

/// Networks against transformers' numbers.
@Suite struct NetworkTests {
    /// The base with PEFT's merged weights gives PEFT's merged logits: a pure test of the network.
    @Test(arguments: [
        ("lora_basic", "llama"), ("lora_rank_alpha_pattern", "llama3l"), ("lora_rslora", "mistral"), ("lora_all_linear", "qwen3"), ("lora_sharded_base", "llama_sharded"),
        ("lora_tokens_tied", "llama_tied"), ("lora_gpt2_conv1d", "gpt2"), ("lora_target_parameters", "mixtral"),
    ])
    func mergedLogits(_ test: String, _ base: String) throws {
        let model = try OpenedModel.open(path: Golden.base(base), Engine(threads: 2), compute: .f32).model
        #expect(model.unusedTensors.isEmpty)
        let expected = try Golden.tensors(test, "expected")
        for item in expected.all where item.name.hasPrefix("merged.") {
            let name = item.name.dropFirst("merged.".count)
            let path = name.split(separator: ".").dropLast().joined(separator: ".")
            try #require(model.layer(named: path)).setTensor(String(name.split(separator: ".").last!), item.tensor)
        }
        let inputs = try Golden.tensors(test, "inputs")
        let ids = try inputs.tensor(named: "input_ids")
        let mask = Golden.integers(try inputs.tensor(named: "attention_mask")).map { UInt8($0) }
        let batch = ids.shape[0]
        let want = try expected.tensor(named: "logits_merged")
        let width = want.columns
        let isSeen = mask.flatMap { Array(repeating: $0 != 0, count: width) }
        func seen(_ values: [Float]) -> [Float] { zip(values, isSeen).filter(\.1).map(\.0) }
        let found = try model.run(Golden.integers(ids), batch: batch, mask: mask)
        #expect(relativeError(seen(found), seen(try want.floats(model.engine))) < 2e-4)
    }

    /// Networks without tokens: a perceptron, convolutions in two dimensions and in one.
    @Test(arguments: [("lora_mlp", "mlp"), ("lora_conv2d", "cnn"), ("lora_conv1d_torch", "cnn1d")]) func vectors(_ test: String, _ base: String) throws {
        let model = try OpenedModel.open(path: Golden.base(base), Engine(), compute: .f32).model
        let expected = try Golden.tensors(test, "expected")
        for item in expected.all where item.name.hasPrefix("merged.") {
            let parts = item.name.dropFirst("merged.".count).split(separator: ".")
            try #require(model.layer(named: parts.dropLast().joined(separator: "."))).setTensor(String(parts.last!), item.tensor)
        }
        let x = try Golden.tensors(test, "inputs").tensor(named: "x")
        let context = ForwardContext(
            tape: Tape(model.engine, .f32), routing: .all(model.unadapted), batch: x.shape[0], length: 1, positions: try Tensor(model.engine, [Int32](repeating: 0, count: x.shape[0]), shape: [x.shape[0]]))
        let input = ModelInput.features(Variable(x))
        let logits = try model.logits(try model.hidden(input, context), of: input, context).value
        #expect(relativeError(try logits.floats(model.engine), try expected.tensor(named: "logits_merged").floats(model.engine)) < 2e-4)
    }

    /// Tokens read in pieces through a cache are the tokens read at once, sliding windows included.
    @Test(arguments: ["llama", "mistral", "qwen2", "qwen3", "gpt2", "llama_tied", "mixtral"]) func cached(_ base: String) throws {
        let model = try OpenedModel.open(path: Golden.base(base), Engine(), compute: .f32).model
        let ids: [Int32] = [5, 9, 33, 2, 71, 8, 8, 40, 3, 17, 60]
        let whole = try model.run(ids, batch: 1)
        let cache = try model.makeCache(capacity: 16)
        var pieces: [Float] = []
        for range in [0..<4, 4..<5, 5..<6, 6..<11] {
            pieces += try model.run(Array(ids[range]), batch: 1, caches: [cache], from: Int32(range.lowerBound))
            cache.advance(by: range.count)
        }
        #expect(relativeError(pieces, whole) < 1e-5)
        #expect(throws: PEFTError.self) { try model.run([1, 2, 3, 4, 5, 6], batch: 1, caches: [cache], from: 11) }
    }

    @Test(arguments: ["qwen3", "mixtral"]) func sameBitsForAnyThreads(_ base: String) throws {
        let ids = (0..<60).map { Int32($0 * 7 % 96) }
        let runs = try [1, 2, 5].map { try OpenedModel.open(path: Golden.base(base), Engine(threads: $0), compute: .f32).model.run(ids, batch: 2) }
        #expect(runs[0] == runs[1] && runs[0] == runs[2])
    }

    /// A classifier reads the last token that is no padding, on whichever side the padding is.
    @Test func classifierEnds() throws {
        let model = try OpenedModel.open(path: Golden.base("llama_cls"), Engine(), compute: .f32).model
        #expect(model.task == .classification)
        let short = try model.run([7, 9, 4], batch: 1)
        let padded = try model.run([7, 9, 4, 0, 0], batch: 1, mask: [1, 1, 1, 0, 0])
        #expect(short.count == 3 && relativeError(padded, short) < 1e-5)
    }

    @Test(arguments: ["llama_tied", "mixtral"]) func exportedModelIsTheSame(_ base: String) throws {
        let opened = try OpenedModel.open(path: Golden.base(base), Engine(), compute: .f32)
        let folder = "/tmp/peftswift-export-\(UInt64.random(in: 0 ... .max))"
        try opened.export(to: folder)
        let again = try OpenedModel.open(path: folder, Engine(), compute: .f32)
        #expect(try again.model.run([4, 5, 6], batch: 1) == opened.model.run([4, 5, 6], batch: 1))
        try opened.export(to: folder, dtype: .bf16)
        #expect(try OpenedModel.open(path: folder, Engine()).model.parameters.first?.tensor.dtype == .bf16)
        #expect(throws: PEFTError.self) { try opened.export(to: folder, dtype: .q4_0) }
    }
}
