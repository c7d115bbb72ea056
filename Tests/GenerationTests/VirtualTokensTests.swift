import Adapters
import Autograd
import Models
import Platform
import Tensors
import Testing
import Training

@testable import Generation

/// Virtual tokens in sessions: what the cache holds in front of the first token.
@Suite struct VirtualTokensTests {
    private static let base = String(#filePath.dropLast("GenerationTests/VirtualTokensTests.swift".count)) + "Golden/data/bases/llama"

    /// Logits of the last token, without a cache.
    private func uncached(_ model: Model, _ ids: [Int32], _ adaptation: Adaptation) throws -> [Float] {
        let tape = Tape(model.engine, model.precision)
        let batch = Batch(rows: 1, length: ids.count, ids: ids, labels: [])
        let (input, context, _) = try ModelLoss.input(batch, model, .all(adaptation), tape)
        return try model.logits(try model.hidden(input, context), of: input, rows: .last, context).value.floats(model.engine)
    }

    private func difference(_ a: [Float], _ b: [Float]) -> Float { a.count == b.count ? zip(a, b).map { abs($0 - $1) }.max() ?? 0 : .infinity }

    @Test("the cache gives what the whole text gives") func cached() throws {
        let model = try OpenedModel.open(path: VirtualTokensTests.base, Engine(threads: 2), compute: .f32).model
        let set = AdapterSet(model)
        for (name, count) in [("a", 3), ("b", 5)] {
            try set.add(name, ["peft_type": .string("PROMPT_TUNING"), "task_type": .string("CAUSAL_LM"), "num_virtual_tokens": .integer(Int64(count))])
        }
        let session = try Session(model, tokenizer: nil, options: SessionOptions()) { () throws(PEFTError) in try set.activeAdaptation() }
        let ids: [Int32] = [1, 5, 9, 2, 20, 7]
        func check(_ ids: [Int32], _ name: String?) throws {
            let adaptation = try set.adaptation(of: name.map { [($0, Float(1))] } ?? [])
            #expect(session.tokens == ids)
            #expect(difference(try session.nextLogits(), try uncached(model, ids, adaptation)) < 1e-4, "\(ids.count) tokens, \(name ?? "none")")
        }
        try session.append(Array(ids[0..<4]))
        try check(Array(ids[0..<4]), "a")
        try session.append(Array(ids[4...]))
        try check(ids, "a")
        try session.rewind(to: 2)
        try check(Array(ids[0..<2]), "a")
        let fork = try session.fork()
        try fork.append([7])
        #expect(difference(try fork.nextLogits(), try uncached(model, [1, 5, 7], set.activeAdaptation())) < 1e-4)
        // Another adapter begins with the next conversation.
        try set.setActive([("b", 1)])
        try session.rewind(to: 0)
        try session.append(ids)
        try check(ids, "b")
        try set.setEnabled(false)
        try session.rewind(to: 0)
        try session.append(ids)
        try check(ids, nil)
    }

    private static let configs: [(name: String, config: JSONObject)] = [
        ("prompt", ["peft_type": .string("PROMPT_TUNING"), "num_virtual_tokens": .integer(3)]),
        ("ptuning", ["peft_type": .string("P_TUNING"), "num_virtual_tokens": .integer(2), "encoder_hidden_size": .integer(8)]),
        ("mpt", ["peft_type": .string("MULTITASK_PROMPT_TUNING"), "num_virtual_tokens": .integer(4), "num_tasks": .integer(3)]),
        ("prefix", ["peft_type": .string("PREFIX_TUNING"), "num_virtual_tokens": .integer(5)]),
        ("cartridge", ["peft_type": .string("CARTRIDGE"), "num_virtual_tokens": .integer(3)]),
        ("beside", ["peft_type": .string("ADAPTION_PROMPT"), "adapter_len": .integer(4), "adapter_layers": .integer(2)]),
        ("lora", ["peft_type": .string("LORA"), "target_modules": .array([.string("q_proj")]), "init_lora_weights": .bool(false)]),
    ]

    @Test("eight conversations with different methods, stepped together, are as each alone and uncached") func together() throws {
        let model = try OpenedModel.open(path: VirtualTokensTests.base, Engine(threads: 2), compute: .f32).model
        let set = AdapterSet(model)
        for (name, config) in VirtualTokensTests.configs { try set.add(name, config) }
        let gates = try set.state(of: "beside").filter { $0.name.hasSuffix("gate") }
        try set.setState(of: "beside", gates.map { ($0.name, try Tensor(model.engine, [Float(0.8)], shape: [1])) })
        let choices: [[String]] = VirtualTokensTests.configs.map { [$0.name] } + [["lora", "prefix"]]
        var generators: [TextGenerator] = []
        for (index, names) in choices.enumerated() {
            var options = SessionOptions()
            options.ignoresEnd = true
            options.task = 1
            options.sampling.temperature = 0
            let session = try Session(model, tokenizer: nil, options: options) { () throws(PEFTError) in try set.adaptation(of: names.map { ($0, 1) }) }
            try session.append([1, 5, Int32(index + 2), 20])
            generators.append(TextGenerator(session))
        }
        for _ in 0..<6 { _ = try SessionGroup.next(&generators) }
        for (names, generator) in zip(choices, generators) {
            let session = generator.session
            #expect(session.tokens.count == 10)
            let adaptation = try set.adaptation(of: names.map { ($0, 1) })
            var batch = Batch(rows: 1, length: 10, ids: session.tokens, labels: [])
            batch.tasks = [1]
            let tape = Tape(model.engine, model.precision)
            let (input, context, _) = try ModelLoss.input(batch, model, .all(adaptation), tape)
            let expected = try model.logits(try model.hidden(input, context), of: input, rows: .last, context).value.floats(model.engine)
            #expect(difference(try session.nextLogits(), expected) < 1e-4, "\(names)")
        }
    }

    @Test("guessed tokens change nothing, whatever acts", arguments: configs.map(\.name) + ["experts", "bottleneck", "waiting"]) func guessed(name: String) throws {
        let model = try OpenedModel.open(path: VirtualTokensTests.base, Engine(threads: 2), compute: .f32).model
        let set = AdapterSet(model)
        switch name {
        case "experts": try set.load(name, path: String(VirtualTokensTests.base.dropLast("bases/llama".count)) + "cases/xlora/adapter", trainable: false)
        case "bottleneck": try set.add(name, ["peft_type": .string("BOTTLENECK"), "config": .string("double_seq_bn")])
        case "waiting":
            try set.add(name, [
                "peft_type": .string("LORA"), "target_modules": .array([.string("q_proj")]), "init_lora_weights": .bool(false), "alora_invocation_tokens": .array([.integer(9), .integer(2)]),
            ])
        default: for (own, config) in VirtualTokensTests.configs where own == name { try set.add(name, config) }
        }
        func session(guessing count: Int) throws -> Session {
            var options = SessionOptions()
            options.task = 1
            options.promptLookupTokens = count
            let session = try Session(model, tokenizer: nil, options: options) { () throws(PEFTError) in try set.activeAdaptation() }
            try session.append([1, 5, 9, 2, 5, 9, 2, 5])
            return session
        }
        let (plain, guessing) = (try session(guessing: 0), try session(guessing: 7))
        // A text that repeats itself, and does not always: guesses come true, in part, and not at all.
        for (step, token) in ([9, 2, 5, 9, 2, 7, 9, 2, 5, 9, 3, 3, 9, 2, 5, 9, 2, 5] as [Int32]).enumerated() {
            for session in [plain, guessing] { try session.accept(token) }
            #expect(try plain.nextLogits() == guessing.nextLogits(), "\(name), token \(step)")
        }
        for session in [plain, guessing] { try session.append([4, 4]) }
        #expect(try plain.nextLogits() == guessing.nextLogits())
    }

    @Test("experts chosen token by token: the cache has the base model's states beside") func experts() throws {
        let model = try OpenedModel.open(path: VirtualTokensTests.base, Engine(threads: 2), compute: .f32).model
        let set = AdapterSet(model)
        let folder = String(VirtualTokensTests.base.dropLast("bases/llama".count)) + "cases/xlora/adapter"
        try set.load("x", path: folder, trainable: false)
        let session = try Session(model, tokenizer: nil, options: SessionOptions()) { () throws(PEFTError) in try set.activeAdaptation() }
        func check(_ session: Session) throws {
            let tape = Tape(model.engine, model.precision)
            let batch = Batch(rows: 1, length: session.tokens.count, ids: session.tokens, labels: [])
            let (input, context, _) = try ModelLoss.input(batch, model, .all(set.activeAdaptation()), tape)
            let expected = try model.logits(try model.hidden(input, context), of: input, rows: .last, context).value.floats(model.engine)
            #expect(difference(try session.nextLogits(), expected) < 1e-4, "\(session.tokens)")
        }
        try session.append([1, 5, 9, 2])
        try check(session)
        try session.append([7])
        try check(session)
        try session.rewind(to: 2)
        try check(session)
        let fork = try session.fork()
        try fork.append([3, 4])
        try check(fork)
        try session.append([8])
        try check(session)
        // In the middle of what was read without it, it cannot begin.
        try set.setEnabled(false)
        try session.append([11])
        try set.setEnabled(true)
        #expect(throws: PEFTError.self) { try session.append([12]) }
        try session.rewind(to: 0)
        try session.append([12, 1])
        try check(session)
    }
}
