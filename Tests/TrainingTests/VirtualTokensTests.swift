@testable import Adapters
import Autograd
import Checkpoints
import Models
import Platform
import Tensors
import Testing

@testable import Training

/// Virtual tokens in forward passes, losses, plans and files. Numbers against PEFT are in the golden cases.
@Suite struct VirtualTokensTests {
    private static let bases = String(#filePath.dropLast("TrainingTests/VirtualTokensTests.swift".count)) + "Golden/data/bases/"
    private static let prompt: JSONObject = ["peft_type": .string("PROMPT_TUNING"), "task_type": .string("CAUSAL_LM"), "num_virtual_tokens": .integer(3)]

    private func open(_ base: String) throws -> (model: Model, set: AdapterSet) {
        let model = try OpenedModel.open(path: VirtualTokensTests.bases + base, Engine(threads: 2), compute: .f32).model
        return (model, AdapterSet(model))
    }

    private func failure(_ body: () throws -> Void) -> PEFTError? {
        do { try body() } catch { return error as? PEFTError }
        return nil
    }

    private static let batch = Batch(rows: 2, length: 4, ids: [1, 5, 9, 2, 20, 7, 7, 3], labels: [1, 5, 9, 2, 20, 7, 7, 3])

    @Test("rows of the embedding act as their tokens do", arguments: ["llama", "gpt2", "qwen3", "mistral"]) func standForTokens(_ base: String) throws {
        let (model, set) = try open(base)
        try set.add("a", VirtualTokensTests.prompt)
        let words = try #require(model.layers.first { $0 is Embedding } as? Embedding)
        let table = try words.weight.floats(model.engine)
        let tokens: [Int32] = [11, 4, 8]
        let rows = tokens.flatMap { table[Int($0) * words.dimension..<(Int($0) + 1) * words.dimension] }
        try set.setState(of: "a", [("prompt_encoder.embedding.weight", try Tensor(model.engine, rows, shape: [3, words.dimension]))])
        let batch = VirtualTokensTests.batch
        let virtual = try model.forward(batch, .all(set.activeAdaptation()))
        let ignored = [Int32](repeating: -100, count: 3)
        let longer = Batch(
            rows: 2, length: 7, ids: tokens + batch.ids[0..<4] + tokens + batch.ids[4..<8], labels: ignored + batch.labels[0..<4] + ignored + batch.labels[4..<8])
        let real = try model.forward(longer, .all(model.unadapted))
        #expect(virtual.logits.shape == real.logits.shape)
        #expect(try virtual.logits.floats(model.engine) == real.logits.floats(model.engine))
        #expect(virtual.loss == real.loss)
    }

    @Test("starts from rows of the vocabulary", arguments: [1, 2] as [UInt64]) func vocabulary(_ seed: UInt64) throws {
        let (model, set) = try open("llama")
        var config = VirtualTokensTests.prompt
        config["prompt_tuning_init"] = .string("SAMPLE_VOCAB")
        try set.add("a", config, seed: seed)
        let words = try #require(model.layers.first { $0 is Embedding } as? Embedding)
        let (table, size) = (try words.weight.floats(model.engine), words.dimension)
        let rows = try #require(set.state(of: "a").first).tensor.floats(model.engine)
        for row in 0..<3 {
            let values = rows[row * size..<(row + 1) * size]
            #expect((0..<words.count).contains { table[$0 * size..<($0 + 1) * size].elementsEqual(values) })
        }
    }

    @Test("a plan counts them; recomputed blocks give the same step") func steps() throws {
        let (model, set) = try open("llama")
        try set.add("a", VirtualTokensTests.prompt)
        try set.add("b", ["peft_type": .string("LORA"), "r": .integer(4), "target_modules": .array([.string("q_proj")])])
        // Beside an adapter of layers.
        try set.setActive([("a", 1), ("b", 1)])
        #expect(try set.trainableParameters().contains { $0.key == "a|prompt_encoder.embedding.weight" })
        let plain = try model.gradients(VirtualTokensTests.batch, .all(set.activeAdaptation()))
        let store = GradientStore(model.engine)
        let tape = Tape(model.engine, model.precision, gradients: store)
        let (loss, seed) = try ModelLoss.loss(model, VirtualTokensTests.batch, .all(set.activeAdaptation()), tape, recomputedBlocks: 2)
        try tape.backward(from: loss.variable, gradient: try Tensor(model.engine, [seed], shape: [1]))
        for (key, parameter) in try set.trainableParameters() {
            #expect(try store.buffer(for: parameter).floats(model.engine) == plain.gradients.buffer(for: parameter).floats(model.engine), "\(key)")
        }
        let planner = model.engine.planner()
        let planned = Tape(planner, model.precision, gradients: GradientStore(planner), isTraining: true)
        _ = try ModelLoss.loss(model, VirtualTokensTests.batch, .all(set.activeAdaptation()), planned)
    }

    @Test("what cannot be is refused by name") func refusals() throws {
        let (model, set) = try open("llama")
        for (value, word) in [(JSONValue.null, "num_virtual_tokens"), (.integer(0), "num_virtual_tokens"), (.integer(1 << 19), "context"), (.integer(.max), "num_virtual_tokens")] {
            var config = VirtualTokensTests.prompt
            config["num_virtual_tokens"] = value
            #expect(failure { try set.add("x", config) }?.message.contains(word) == true, "\(value)")
        }
        for (changes, word) in [
            (["prompt_tuning_init": .string("TEXT")], "prompt_tuning_init_text"),
            (["prompt_tuning_init": .string("TEXT"), "prompt_tuning_init_text": .string("")], "empty"),
            (["prompt_tuning_init": .string("TEXT"), "prompt_tuning_init_text": .string("hello")], "tokenizer"),
            (["prompt_tuning_init": .string("OTHER")], "SAMPLE_VOCAB"), (["token_dim": .integer(5)], "token_dim"),
        ] as [(JSONObject, String)] {
            var config = VirtualTokensTests.prompt
            for (key, value) in changes.pairs { config[key] = value }
            #expect(failure { try set.add("x", config) }?.message.contains(word) == true, "\(word)")
        }
        try set.add("a", VirtualTokensTests.prompt)
        try set.add("b", VirtualTokensTests.prompt)
        #expect(failure { try set.setActive([("a", 1), ("b", 1)]) }?.kind == .unsupported)
        #expect(failure { try set.setActive([("a", 0.5)]) }?.kind == .unsupported)
        #expect(failure { _ = try set.merge(["a"], safe: true) }?.message.contains("PROMPT_TUNING") == true)
        #expect(failure { _ = try model.forward(VirtualTokensTests.batch, set.routing(samples: ["a", nil])) }?.message.contains("virtual tokens") == true)
        var packed = VirtualTokensTests.batch
        packed.firstKey = [0, 0, 2, 2, 0, 0, 0, 0]
        #expect(failure { _ = try model.forward(packed, .all(set.activeAdaptation())) }?.message.contains("pack") == true)
    }

    @Test("a file has what the encoder gives, which acts alike and does not train", arguments: ["MLP", "LSTM"]) func encoded(_ kind: String) throws {
        let (model, set) = try open("llama")
        try set.add(
            "a", ["peft_type": .string("P_TUNING"), "num_virtual_tokens": .integer(3), "encoder_hidden_size": .integer(8), "encoder_reparameterization_type": .string(kind)])
        let before = try model.forward(VirtualTokensTests.batch, .all(set.activeAdaptation())).logits.floats(model.engine)
        let state = try set.state(of: "a")
        #expect(state.map(\.name) == ["prompt_embeddings"])
        let (config, tensors) = (try set.configuration(of: "a"), state.map { NamedTensor($0.name, $0.tensor) })
        func files(_ tensors: [NamedTensor]) throws -> AdapterFiles { AdapterFiles(config: config, tensors: try TensorSource(origin: "a file", tensors)) }
        try set.load("b", files(tensors), trainable: false)
        #expect(try model.forward(VirtualTokensTests.batch, .all(set.adaptation(of: [("b", 1)]))).logits.floats(model.engine) == before)
        #expect(failure { try set.setTrainable("b", true) }?.message.contains("P_TUNING") == true)
        #expect(failure { try set.load("c", files(tensors), trainable: true) }?.kind == .unsupported)
        #expect(failure { try set.load("c", files([]), trainable: false) }?.message.contains("prompt_embeddings") == true)
    }

    @Test("labels and answers move with the text") func moved() throws {
        var batch = VirtualTokensTests.batch
        batch.keyMask = [1, 1, 1, 0, 1, 1, 1, 1]
        batch.tokenTypes = [0, 0, 1, 1, 1, 1, 1, 1]
        let behind = try batch.behind(2)
        #expect(behind.length == 6)
        #expect(behind.labels == [-100, -100, 1, 5, 9, 2, -100, -100, 20, 7, 7, 3])
        #expect(behind.keyMask == [1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1])
        #expect(behind.tokenTypes == [0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 1])
        (batch.labels, batch.ends) = ([1, -1], [2, 3])
        #expect(try batch.behind(2).labels == [3, -1])
        #expect(try batch.behind(2).ends == [4, 5])
    }
}
