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

    private func difference(_ a: [Float], _ b: [Float]) -> Float {
        var worst: Float = a.count == b.count ? 0 : .infinity
        for (x, y) in zip(a, b) { worst = max(worst, abs(x - y)) }
        return worst
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

    /// Gates open, factors not all small: what is there must show.
    private func shake(_ set: AdapterSet, _ name: String) throws {
        var random = RandomStream(seed: 7)
        let state = try set.state(of: name).filter { $0.name.hasSuffix("adaption_gate") || $0.name.contains("task_") }
        try set.setState(of: name, state.map { ($0.name, try Tensor(set.model.engine, (0..<$0.tensor.count).map { _ in 0.5 + 0.3 * random.normal() }, shape: $0.tensor.shape)) })
    }

    private func gradients(_ model: Model, _ batch: Batch, _ routing: Routing, recomputedBlocks: Int = 0) throws -> (loss: Double, count: Int, store: GradientStore) {
        let store = GradientStore(model.engine)
        let tape = Tape(model.engine, model.precision, gradients: store)
        let (loss, seed) = try ModelLoss.loss(model, batch, routing, tape, recomputedBlocks: recomputedBlocks)
        try tape.backward(from: loss.variable, gradient: try Tensor(model.engine, [seed], shape: [1]))
        return (loss.sum / Double(loss.count), loss.count, store)
    }

    @Test("a plan counts them; recomputed blocks give the same step", arguments: PromptCases.names) func steps(_ name: String) throws {
        let (model, set) = try open("llama")
        try set.add("a", PromptCases.config(name))
        try shake(set, "a")
        try set.add("b", ["peft_type": .string("LORA"), "r": .integer(4), "target_modules": .array([.string("q_proj")])])
        var batch = VirtualTokensTests.batch
        batch.tasks = [2, 0]
        // Alone, and beside an adapter of layers.
        for active in [["a"], ["a", "b"]] {
            try set.setActive(active.map { ($0, 1) })
            let plain = try gradients(model, batch, .all(set.activeAdaptation()))
            let again = try gradients(model, batch, .all(set.activeAdaptation()), recomputedBlocks: 2)
            #expect(plain.loss == again.loss)
            #expect(try set.trainableParameters().count > 0)
            for (key, parameter) in try set.trainableParameters() {
                let expected = try plain.store.buffer(for: parameter).floats(model.engine)
                #expect(try again.store.buffer(for: parameter).floats(model.engine) == expected, "\(key)")
                if !key.contains("lora_A") { #expect(expected.contains { $0 != 0 }, "\(key)") }
            }
            let planner = model.engine.planner()
            let planned = Tape(planner, model.precision, gradients: GradientStore(planner), isTraining: true)
            _ = try ModelLoss.loss(model, batch, .all(set.activeAdaptation()), planned)
        }
    }

    @Test("derivatives are those of differences", arguments: PromptCases.names) func derivatives(_ name: String) throws {
        let (model, set) = try open("llama")
        try set.add("a", PromptCases.config(name))
        try shake(set, "a")
        var batch = VirtualTokensTests.batch
        batch.tasks = [2, 1]
        let exact = try gradients(model, batch, .all(set.activeAdaptation())).store
        for (key, parameter) in try set.trainableParameters() {
            let gradient = try exact.buffer(for: parameter).floats(model.engine)
            let place = try #require(gradient.indices.max { abs(gradient[$0]) < abs(gradient[$1]) })
            // CPT's rows are at rest: a step within their radius.
            let step: Float = name == "cpt" ? 2e-3 : 1e-2
            func loss(_ change: Float) throws -> Double {
                unsafe parameter.value.withMutableFloats { unsafe $0[place] += change }
                defer { unsafe parameter.value.withMutableFloats { unsafe $0[place] -= change } }
                return try #require(try model.forward(batch, .all(set.activeAdaptation())).loss)
            }
            let difference = (try loss(step) - loss(-step)) / Double(2 * step)
            #expect(abs(difference - Double(gradient[place])) < 0.02 * abs(difference) + 2e-4, "\(key): \(gradient[place]) and \(difference)")
        }
    }

    @Test("a prefix of what tokens leave acts as they do", arguments: ["llama", "gpt2", "qwen3", "mistral"]) func filled(_ base: String) throws {
        let (model, set) = try open(base)
        for (name, type) in [("a", "PREFIX_TUNING"), ("b", "CARTRIDGE")] {
            try set.add(name, ["peft_type": .string(type), "num_virtual_tokens": .integer(3)])
            let adapter = try set.adapter(name)
            let tokens: [Int32] = [11, 4, 8]
            try set.fill(try #require(adapter.saved.first), with: tokens)
            let batch = VirtualTokensTests.batch
            let virtual = try model.forward(batch, .all(set.adaptation(of: [(name, 1)]))).logits.floats(model.engine)
            let real = try model.forward(Batch(rows: 2, length: 7, ids: tokens + batch.ids[0..<4] + tokens + batch.ids[4..<8], labels: []), .all(model.unadapted))
            let values = try real.logits.floats(model.engine)
            let row = values.count / 14
            let behind = [3, 10].flatMap { values[$0 * row..<($0 + 4) * row] }
            #expect(difference(virtual, behind) < 1e-4)
        }
    }

    @Test("samples with adapters of different methods, or none, are as they are alone") func mixed() throws {
        let (model, set) = try open("llama")
        for item in PromptCases.all {
            try set.add(item.name, item.config)
            try shake(set, item.name)
        }
        try set.add("lora", ["peft_type": .string("LORA"), "r": .integer(4), "target_modules": .array([.string("q_proj"), .string("down_proj")]), "init_lora_weights": .bool(false)])
        try set.add("ia3", ["peft_type": .string("IA3"), "target_modules": .array([.string("k_proj")]), "feedforward_modules": .array([])])
        let names: [String?] = ["prompt", "mpt", "mpt", nil, "lora", "prefix", "ptuning", "ia3", "beside", "cartridge", "projected", "lora"]
        let rows = names.count
        let ids = (0..<Int32(rows * 4)).map { ($0 * 7 + 3) % 90 }
        var batch = Batch(rows: rows, length: 4, ids: ids, labels: ids)
        batch.tasks = names.indices.map { Int32($0) }.map { $0 < 3 ? $0 : 0 }
        batch.keyMask = Array(repeating: 1, count: rows * 4 - 1) + [0]
        let routing = try set.routing(samples: names)
        let all = try model.forward(batch, routing).logits
        let values = try all.floats(model.engine)
        let (width, length) = (all.shape[2], all.shape[1])
        let store = try gradients(model, batch, routing)
        let again = try gradients(model, batch, routing, recomputedBlocks: 2)
        #expect(store.loss == again.loss)
        var sums: [String: [Float]] = [:]
        var total = 0
        for (row, name) in names.enumerated() {
            var one = Batch(rows: 1, length: 4, ids: Array(ids[row * 4..<row * 4 + 4]), labels: Array(ids[row * 4..<row * 4 + 4]))
            one.tasks = batch.tasks.map { [$0[row]] }
            one.keyMask = batch.keyMask.map { Array($0[row * 4..<row * 4 + 4]) }
            let adaptation = try set.adaptation(of: name.map { [($0, Float(1))] } ?? [])
            let alone = try model.forward(one, .all(adaptation)).logits
            let expected = try alone.floats(model.engine)
            let end = (row + 1) * length * width
            let got = Array(values[end - expected.count..<end])
            // The last sample ends in padding.
            let shown = (row == rows - 1 ? 3 : alone.shape[1]) * width
            let worst = difference(Array(got.prefix(shown)), Array(expected.prefix(shown)))
            #expect(worst < 1e-4, "row \(row), \(name ?? "none")")
            let own = try gradients(model, one, .all(adaptation))
            total += own.count
            guard let name else { continue }
            for (key, parameter) in try set.adapter(name).parameters where parameter.isTrainable {
                let part = try own.store.buffer(for: parameter).floats(model.engine).map { $0 * Float(own.count) }
                sums["\(name)|\(key)"] = sums["\(name)|\(key)"].map { zip($0, part).map(+) } ?? part
            }
        }
        #expect(store.count == total)
        for (name, _) in PromptCases.all where names.contains(name) {
            for (key, parameter) in try set.adapter(name).parameters where parameter.isTrainable {
                let expected = try #require(sums["\(name)|\(key)"]).map { $0 / Float(total) }
                for run in [store, again] {
                    let got = try run.store.buffer(for: parameter).floats(model.engine)
                    #expect(difference(got, expected) < 1e-4, "\(name): \(key)")
                }
            }
        }
    }

    /// Experts with branches at some layers, and a classifier over them.
    private func addRouter(_ set: AdapterSet, _ folder: TemporaryFolder, _ changes: JSONObject = [:]) throws {
        for (name, modules) in [("e0", ["q_proj", "v_proj", "embed_tokens"]), ("e1", ["q_proj", "down_proj"]), ("e2", ["v_proj"])] {
            let config: JSONObject = ["peft_type": .string("LORA"), "r": .integer(2), "target_modules": .array(modules.map { .string($0) }), "init_lora_weights": .bool(false)]
            try set.add(name, config, seed: UInt64(name.utf8.last ?? 0))
            try set.save(name, path: "\(folder.path)/\(name)")
        }
        var config: JSONObject = ["peft_type": .string("XLORA"), "xlora_dropout_p": .number(0), "xlora_size": .integer(8)]
        config["adapters"] = .object(["0": .string("\(folder.path)/e0"), "1": .string("\(folder.path)/e1"), "2": .string("\(folder.path)/e2")])
        for (key, value) in changes.pairs { config[key] = value }
        try set.add("router", config)
        try set.setActive([("router", 1)])
    }

    @Test(
        "experts weighed by a classifier: derivatives, recomputed blocks, and shares that are the experts themselves",
        arguments: [
            [:], ["layerwise_scalings": .bool(true), "xlora_depth": .integer(3)], ["top_k_lora": .integer(2), "enable_softmax_topk": .bool(true), "softmax_temperature": .number(2)],
            ["enable_softmax": .bool(false), "global_scaling_weight": .number(0.5)], ["use_trainable_adapters": .bool(true)],
        ] as [JSONObject])
    func experts(_ changes: JSONObject) throws {
        let (model, set) = try open("llama")
        let folder = TemporaryFolder()
        try addRouter(set, folder, changes)
        let batch = VirtualTokensTests.batch
        let exact = try gradients(model, batch, .all(set.activeAdaptation()))
        let again = try gradients(model, batch, .all(set.activeAdaptation()), recomputedBlocks: 2)
        #expect(exact.loss == again.loss)
        for (key, parameter) in try set.trainableParameters() {
            let gradient = try exact.store.buffer(for: parameter).floats(model.engine)
            #expect(difference(gradient, try again.store.buffer(for: parameter).floats(model.engine)) < 1e-6, "\(key)")
            let place = try #require(gradient.indices.max { abs(gradient[$0]) < abs(gradient[$1]) })
            func loss(_ change: Float) throws -> Double {
                unsafe parameter.value.withMutableFloats { unsafe $0[place] += change }
                defer { unsafe parameter.value.withMutableFloats { unsafe $0[place] -= change } }
                return try #require(try model.forward(batch, .all(set.activeAdaptation())).loss)
            }
            let slope = (try loss(1e-2) - loss(-1e-2)) / 2e-2
            #expect(abs(slope - Double(gradient[place])) < 0.03 * abs(slope) + 3e-4, "\(key): \(gradient[place]) and \(slope)")
        }
        guard changes["enable_softmax"] == .bool(false) else { return }
        // Scores that say "expert 1, twice" (the strength is a half) are that expert.
        try set.setState(of: "router", set.state(of: "router").map { item in
            (item.name, try Tensor(model.engine, item.name.hasSuffix("bias") ? [0, 2, 0] as [Float] : [Float](repeating: 0, count: item.tensor.count), shape: item.tensor.shape))
        })
        let routed = try model.forward(batch, .all(set.activeAdaptation())).logits.floats(model.engine)
        #expect(difference(routed, try model.forward(batch, .all(set.adaptation(of: [("e1", 1)]))).logits.floats(model.engine)) < 1e-5)
    }

    @Test("what experts cannot be is refused by name") func expertRefusals() throws {
        let (_, set) = try open("llama")
        let folder = TemporaryFolder()
        try addRouter(set, folder)
        try set.add("prefix", PromptCases.config("prefix"))
        #expect(failure { try set.setActive([("router", 1), ("prefix", 1)]) }?.kind == .unsupported)
        #expect(failure { _ = try set.merge(["router"], safe: true) }?.kind == .unsupported)
        try set.add("ia3", ["peft_type": .string("IA3"), "target_modules": .array([.string("k_proj")]), "feedforward_modules": .array([])])
        try set.save("ia3", path: folder.path + "/ia3")
        for (changes, word) in [
            (["adapters": .null], "adapters"), (["adapters": .object(["0": .integer(1)])], "not a path"), (["adapters": .object(["0": .string("/nowhere")])], "/nowhere"),
            (["adapters": .object(["0": .string(folder.path + "/ia3")])], "IA3"), (["top_k_lora": .integer(4)], "top_k_lora"), (["softmax_temperature": .number(0)], "softmax_temperature"),
            (["hidden_size": .integer(31)], "hidden_size"), (["xlora_depth": .integer(0)], "xlora_depth"),
        ] as [(JSONObject, String)] {
            var config = try set.configuration(of: "router")
            for (key, value) in changes.pairs { config[key] = value }
            #expect(failure { try set.add("x", config) }?.message.contains(word) == true, "\(word)")
        }
    }

    @Test("adapters of several methods learn at once, each from its rows") func together() throws {
        let names = ["prompt", "lora", "prefix"]
        func open() throws -> (model: Model, set: AdapterSet) {
            let (model, set) = try self.open("llama")
            for name in names {
                try set.add(name, name == "lora" ? ["peft_type": .string("LORA"), "r": .integer(2), "target_modules": .array([.string("q_proj")]), "init_lora_weights": .bool(false)] : PromptCases.config(name))
            }
            return (model, set)
        }
        var options = TrainerOptions()
        options.optimizer.rule = .sgd
        options.optimizer.learningRate = 0.1
        (options.schedule, options.maximumGradientNorm) = (.constant, nil)
        let ids: [Int32] = [1, 5, 9, 2, 20, 7, 7, 3, 8, 9, 4, 2]
        var batch = Batch(rows: 3, length: 4, ids: ids, labels: ids)
        // As many labels in each row, whatever stands in front.
        for row in 0..<3 { batch.labels[4 * row] = -100 }
        batch.adapters = names
        let (model, set) = try open()
        let trainer = try Trainer(model, try Trainee(set, names), options)
        let before = try set.state(of: "lora").map { try $0.tensor.floats(model.engine) }
        _ = try trainer.step(batch)
        #expect(try set.state(of: "lora").map { try $0.tensor.floats(model.engine) } != before)
        for (row, name) in names.enumerated() {
            let (other, alone) = try open()
            var one = Batch(rows: 1, length: 4, ids: Array(ids[4 * row..<4 * row + 4]), labels: Array(batch.labels[4 * row..<4 * row + 4]))
            one.adapters = [name]
            var slow = options
            slow.optimizer.learningRate = 0.1 / 3  // the mean over a third of the labels
            _ = try Trainer(other, try Trainee(alone, [name]), slow).step(one)
            for ((key, together), (_, single)) in zip(try set.state(of: name), try alone.state(of: name)) {
                #expect(difference(try together.floats(model.engine), try single.floats(other.engine)) < 1e-6, "\(name): \(key)")
            }
        }
        batch.adapters = ["prompt", "lora"]
        #expect(failure { _ = try trainer.step(batch) }?.message.contains("adapter_names") == true)
        batch.adapters = ["prompt", "lora", "nobody"]
        #expect(failure { _ = try trainer.step(batch) }?.kind == .notFound)
        #expect(failure { _ = try Trainee(set, ["lora", "lora"]) }?.message.contains("twice") == true)
    }

    @Test("an encoder's samples, too") func mixedEncoder() throws {
        let (model, set) = try open("bert_cls")
        for (name, type) in [("prompt", "PROMPT_TUNING"), ("prefix", "PREFIX_TUNING")] {
            try set.add(name, ["peft_type": .string(type), "task_type": .string("SEQ_CLS"), "num_virtual_tokens": .integer(3)])
        }
        let names: [String?] = [nil, "prompt", "prefix"]
        let ids: [Int32] = [1, 5, 9, 2, 20, 7, 7, 3, 8, 9, 4, 2]
        let values = try model.forward(Batch(rows: 3, length: 4, ids: ids, labels: []), set.routing(samples: names)).logits.floats(model.engine)
        for (row, name) in names.enumerated() {
            let one = Batch(rows: 1, length: 4, ids: Array(ids[row * 4..<row * 4 + 4]), labels: [])
            let expected = try model.forward(one, .all(set.adaptation(of: name.map { [($0, Float(1))] } ?? []))).logits.floats(model.engine)
            #expect(difference(Array(values[row * expected.count..<(row + 1) * expected.count]), expected) < 1e-4, "\(name ?? "none")")
        }
    }

    @Test("a target begins with what its sources learned", arguments: ["AVERAGE_SOURCE_TASKS", "EXACT_SOURCE_TASK", "ONLY_SOURCE_SHARED"]) func sources(_ start: String) throws {
        let (model, set) = try open("llama")
        try set.add("source", PromptCases.config("mpt"))
        try shake(set, "source")
        let folder = TemporaryFolder()
        try set.save("source", path: folder.path)
        var config = PromptCases.config("mpt")
        config["num_tasks"] = .integer(1)
        config["prompt_tuning_init"] = .string(start)
        config["prompt_tuning_init_task"] = .integer(1)
        #expect(failure { try set.add("x", config) }?.message.contains("prompt_tuning_init_state_dict_path") == true)
        config["prompt_tuning_init_state_dict_path"] = .string(folder.path + "/adapter_model.safetensors")
        try set.add("target", config)
        func values(_ name: String) throws -> [String: [Float]] {
            Dictionary(uniqueKeysWithValues: try set.state(of: name).map { ($0.name, try $0.tensor.floats(model.engine)) })
        }
        let (source, target) = (try values("source"), try values("target"))
        #expect(target["prompt_embeddings"] == source["prompt_embeddings"])
        for key in ["prefix_task_cols", "prefix_task_rows"] {
            let (all, own) = (try #require(source[key]), try #require(target[key]))
            func of(_ task: Int) -> [Float] { Array(all[task * own.count..<(task + 1) * own.count]) }
            switch start {
            case "EXACT_SOURCE_TASK": #expect(own == of(1))
            case "AVERAGE_SOURCE_TASKS": #expect(own.indices.allSatisfy { abs(own[$0] - (of(0)[$0] + of(1)[$0] + of(2)[$0]) / 3) < 1e-6 })
            default: #expect(own.allSatisfy { abs($0) < 0.2 } && own.contains { $0 != 0 })
            }
        }
        config["prompt_tuning_init_task"] = .integer(3)
        if start == "EXACT_SOURCE_TASK" { #expect(failure { try set.add("x", config) }?.message.contains("0 to 2") == true) }
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
        var packed = VirtualTokensTests.batch
        packed.firstKey = [0, 0, 2, 2, 0, 0, 0, 0]
        #expect(failure { _ = try model.forward(packed, .all(set.activeAdaptation())) }?.message.contains("pack") == true)
        // Others: sizes that are not the model's, tasks, examples, prompts beside too many layers.
        for (name, changes, word) in [
            ("prefix", ["token_dim": .integer(32)], "16 values"), ("prefix", ["num_layers": .integer(3)], "2 layers"), ("prefix", ["init_weights": .string("one")], "zero"),
            ("projected", ["encoder_hidden_size": .integer(0)], "encoder_hidden_size"), ("cartridge", ["num_frozen_tokens": .integer(4)], "num_frozen_tokens"),
            ("mpt", ["num_tasks": .integer(0)], "num_tasks"), ("mpt", ["num_tasks": .integer(.max)], "task factors"), ("mpt", ["prompt_tuning_init": .string("SAMPLE_VOCAB")], "EXACT_SOURCE_TASK"),
            ("cpt", ["cpt_token_ids": .array([.integer(1000)])], "cpt_mask"), ("cpt", ["cpt_tokens_type_mask": .array([1, 2, 3, -4].map { .integer($0) })], "-4"),
            ("cpt", ["cpt_token_ids": .array([1, 2, 3, 1000].map { .integer($0) })], "1000"), ("cpt", ["task_type": .string("SEQ_CLS")], "CAUSAL_LM"), ("cpt", ["cpt_token_ids": .array([])], "there must be some"),
            ("cpt", ["opt_projection_epsilon": .number(-1)], "opt_projection_epsilon"), ("beside", ["adapter_layers": .integer(3)], "adapter_layers"),
            ("beside", ["adapter_len": .null], "adapter_len"), ("beside", ["target_modules": .string("mlp")], "self_attn"), ("beside", ["adapter_len": .integer(.max)], "prompt"),
        ] as [(String, JSONObject, String)] {
            var config = PromptCases.config(name)
            for (key, value) in changes.pairs { config[key] = value }
            let message = failure { try set.add("x", config) }?.message
            #expect(message?.contains(word) == true, "\(name), \(word): \(message ?? "accepted")")
        }
        for item in PromptCases.all where item.name != "prompt" {
            try set.add(item.name, item.config)
            #expect(failure { _ = try set.merge([item.name], safe: true) }?.kind == .unsupported, "\(item.name)")
        }
        #expect(failure { try set.setActive([("prefix", 1), ("cartridge", 1)]) }?.kind == .unsupported)
        #expect(failure { try set.setActive([("prefix", 2)]) }?.kind == .unsupported)
        try set.setActive([("mpt", 1)])
        var batch = VirtualTokensTests.batch
        #expect(failure { _ = try model.forward(batch, .all(set.activeAdaptation())) }?.message.contains("task_ids") == true)
        batch.tasks = [0, 3]
        #expect(failure { _ = try model.forward(batch, .all(set.activeAdaptation())) }?.message.contains("0 to 2") == true)
        batch.tasks = [0]
        #expect(failure { _ = try model.forward(batch, .all(set.activeAdaptation())) }?.message.contains("task_ids") == true)
        try set.setActive([("prefix", 1)])
        #expect(failure { _ = try model.forward(packed, .all(set.activeAdaptation())) }?.message.contains("pack") == true)
        let longest = try #require(model.network.cacheShape?.maximumLength)
        let long = Batch(rows: 1, length: longest - 2, ids: Array(repeating: 1, count: longest - 2), labels: [])
        for name in ["prefix", "prompt"] {
            let adaptation = try set.adaptation(of: [(name == "prompt" ? "a" : name, 1)])
            #expect(failure { _ = try model.forward(long, .all(adaptation)) }?.message.contains("virtual") == true, "\(name)")
        }
        let (perceptron, others) = try open("mlp")
        _ = perceptron
        for item in PromptCases.all { #expect(failure { try others.add(item.name, item.config) } != nil, "\(item.name)") }
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
        let behind = try batch.behind([2, 2], width: 2)
        #expect(behind.length == 6)
        #expect(behind.labels == [-100, -100, 1, 5, 9, 2, -100, -100, 20, 7, 7, 3])
        #expect(behind.keyMask == [1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1])
        #expect(behind.tokenTypes == [0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 1])
        (batch.labels, batch.ends) = ([1, -1], [2, 3])
        #expect(try batch.behind([2, 2], width: 2).labels == [3, -1])
        #expect(try batch.behind([2, 2], width: 2).ends == [4, 5])
    }

    @Test("packed rows: what stands in front of a text stands in front of each sample", arguments: PromptCases.names + ["rows"]) func packed(_ name: String) throws {
        let (model, set) = try open("llama")
        try set.add("a", PromptCases.config(name == "rows" ? "prefix" : name))
        try shake(set, "a")
        try set.add("b", ["peft_type": .string("LORA"), "r": .integer(2), "target_modules": .array([.string("q_proj")]), "init_lora_weights": .bool(false)])
        let samples = [[1, 5, 9, 2], [20, 7, 7], [3, 8, 9, 4, 2, 6]].enumerated().map { number, ids in Sample(ids: ids.map { Int32($0) }, labels: ids.map { Int32($0) }, task: Int32(number == 2 ? 1 : 2)) }
        if name == "rows" { try set.setActive(.batchSplit([.adapter("a"), .adapter("b")], sizes: [1, 1])) }
        let rows = [[samples[0], samples[1]], [samples[2]]]
        let packed = try gradients(model, Batch(packing: rows, paddingID: 0), set.activeRouting(rows: 2))
        let routing = name == "rows" ? try set.routing(samples: ["a", "a", "b"]) : .all(try set.activeAdaptation())
        // The first token of a packed sample is not learned.
        var alone = Batch(samples, paddingID: 0)
        for row in 0..<3 { alone.labels[row * alone.length] = Sample.ignored }
        let plain = try gradients(model, alone, routing)
        #expect(packed.count == plain.count && abs(packed.loss - plain.loss) < 1e-6)
        for (key, parameter) in try set.trainableParameters() {
            #expect(difference(try packed.store.buffer(for: parameter).floats(model.engine), try plain.store.buffer(for: parameter).floats(model.engine)) < 1e-5, "\(key)")
        }
    }

    @Test("virtual tokens stand where the text has tokens for them", arguments: ["llama", "gpt2", "t5"]) func placed(_ base: String) throws {
        let (model, set) = try open(base)
        var config = VirtualTokensTests.prompt
        config["prompt_token_ids"] = .array([.integer(90), .integer(70), .integer(91)])
        try set.add("a", config)
        let words = try #require(model.layers.first { $0 is Embedding } as? Embedding)
        let table = try words.weight.floats(model.engine)
        let rows = [11, 4, 8].flatMap { table[$0 * words.dimension..<($0 + 1) * words.dimension] }
        try set.setState(of: "a", [("prompt_embeddings", try Tensor(model.engine, rows, shape: [3, words.dimension]))])
        func logits(_ ids: [Int32], _ adaptation: Adaptation) throws -> [Float] {
            var batch = Batch(rows: 2, length: 5, ids: ids, labels: [])
            if base == "t5" { batch.source = SourceBatch(length: 5, ids: ids, keyMask: nil) }
            return try model.forward(batch, .all(adaptation)).logits.floats(model.engine)
        }
        // One text has them apart and in another order, the other has one twice.
        let written: [Int32] = [1, 90, 9, 91, 70, 5, 90, 7, 90, 3]
        #expect(try logits(written, set.activeAdaptation()) == logits([1, 11, 9, 8, 4, 5, 11, 7, 11, 3], model.unadapted))
        #expect(try logits(written, set.activeAdaptation()) != logits(written, model.unadapted))
        try set.add("p", ["peft_type": .string("P_TUNING"), "num_virtual_tokens": .integer(2), "encoder_hidden_size": .integer(8), "prompt_token_ids": .array([.integer(90), .integer(91)])])
        try set.setActive([("p", 1)])
        guard base == "llama" else { return }
        let batch = Batch(rows: 2, length: 4, ids: [1, 90, 9, 91, 20, 91, 7, 90], labels: VirtualTokensTests.batch.labels)
        let exact = try gradients(model, batch, .all(set.activeAdaptation())).store
        for (key, parameter) in try set.trainableParameters() {
            let gradient = try exact.buffer(for: parameter).floats(model.engine)
            let place = try #require(gradient.indices.max { abs(gradient[$0]) < abs(gradient[$1]) })
            func loss(_ change: Float) throws -> Double {
                unsafe parameter.value.withMutableFloats { unsafe $0[place] += change }
                defer { unsafe parameter.value.withMutableFloats { unsafe $0[place] -= change } }
                return try #require(try model.forward(batch, .all(set.activeAdaptation())).loss)
            }
            let slope = (try loss(1e-2) - loss(-1e-2)) / 2e-2
            #expect(abs(slope - Double(gradient[place])) < 0.03 * abs(slope) + 3e-4, "\(key): \(gradient[place]) and \(slope)")
        }
        for ids in [[90], [90, 90, 91], [90, 91, 96], [90, -1, 91]] {
            config["prompt_token_ids"] = .array(ids.map { .integer(Int64($0)) })
            #expect(failure { try set.add("x", config) }?.message.contains("prompt_token_ids") == true)
        }
        #expect(try set.configuration(of: "a")["prompt_token_ids"] != nil)
        try set.add("plain", VirtualTokensTests.prompt)
        #expect(try set.configuration(of: "plain")["prompt_token_ids"] == nil)
    }

    @Test("experts that train are in their router's file") func trainedExperts() throws {
        let (model, set) = try open("llama")
        let folder = TemporaryFolder()
        try addRouter(set, folder, ["use_trainable_adapters": .bool(true)])
        var options = TrainerOptions()
        options.schedule = .constant
        let trainer = try Trainer(model, try Trainee(set), options)
        for _ in 0..<3 { _ = try trainer.step(VirtualTokensTests.batch) }
        let expected = try model.forward(VirtualTokensTests.batch, .all(set.activeAdaptation()))
        let shares = try #require(expected.shares)
        #expect(shares.shape == [2, 4, 1, 3])
        let sums = try shares.floats(model.engine)
        for start in stride(from: 0, to: sums.count, by: 3) {
            let sum: Float = sums[start..<start + 3].reduce(0, +)
            #expect(abs(sum - 1) < 1e-5)
        }
        try set.save("router", path: folder.path + "/router.h5")
        try set.load("again", path: folder.path + "/router.h5", trainable: false)
        #expect(try model.forward(VirtualTokensTests.batch, .all(set.adaptation(of: [("again", 1)]))).logits.floats(model.engine) == expected.logits.floats(model.engine))
        try set.setActive([("e1", 1)])
        #expect(try model.forward(VirtualTokensTests.batch, .all(set.activeAdaptation())).shares == nil)
    }
}
