@testable import Adapters
import Autograd
import Glibc
import Models
import Platform
import Tensors
import Testing

@testable import Training

/// Blocks of compositions: what they compute, and what learns. Numbers against the `adapters` library are in Tests/Python.
@Suite struct CompositionTests {
    private static let bases = String(#filePath.dropLast("TrainingTests/CompositionTests.swift".count)) + "Golden/data/bases/"
    private static let ids: [Int32] = [1, 5, 9, 2, 20, 7, 7, 3]
    private static let batch = Batch(rows: 2, length: 4, ids: ids, labels: ids)

    private func open(_ base: String, _ configs: [(String, JSONObject)]) throws -> (model: Model, set: AdapterSet) {
        let model = try OpenedModel.open(path: CompositionTests.bases + base, Engine(threads: 2), compute: .f32).model
        let set = AdapterSet(model)
        for (number, (name, config)) in configs.enumerated() {
            try set.add(name, config)
            var random = RandomStream(seed: UInt64(number + 3))
            try set.setState(of: name, set.state(of: name).map { item in
                (item.name, try Tensor(model.engine, try item.tensor.floats(model.engine).map { $0 + 0.15 * random.normal() }, shape: item.tensor.shape))
            })
        }
        return (model, set)
    }

    private func logits(_ model: Model, _ routing: Routing, _ batch: Batch = batch) throws -> [Float] { try model.forward(batch, routing).logits.floats(model.engine) }
    private static func bottleneck(_ config: String, _ more: JSONObject = [:]) -> JSONObject {
        var json: JSONObject = ["peft_type": .string("BOTTLENECK"), "config": .string(config), "reduction_factor": .number(4), "non_linearity": .string("tanh")]
        for (key, value) in more.pairs { json[key] = value }
        return json
    }
    private static func fusion(_ members: [String], _ more: JSONObject = [:]) -> JSONObject {
        var json: JSONObject = ["peft_type": .string("ADAPTER_FUSION"), "adapters": .array(members.map { .string($0) })]
        for (key, value) in more.pairs { json[key] = value }
        return json
    }
    private static let fusions: [(String, JSONObject)] = [
        ("dynamic", [:]), ("static", ["config": .string("static"), "query_before_ln": .bool(true)]), ("first", ["residual_before": .bool(true), "key": .bool(false)]),
        ("warm", ["temperature": .number(3)]),
    ]

    @Test("derivatives of fusions are those of differences", arguments: fusions.map(\.0), ["llama", "gpt2"]) func derivatives(_ name: String, _ base: String) throws {
        let settings = try #require(CompositionTests.fusions.first { $0.0 == name }?.1)
        let (model, set) = try open(base, [
            ("a", CompositionTests.bottleneck("double_seq_bn")), ("b", CompositionTests.bottleneck("seq_bn")), ("c", CompositionTests.bottleneck("seq_bn")),
            ("b,c", CompositionTests.fusion(["b", "c"], settings)),
        ])
        try set.setActive(.stack([.adapter("a"), .fuse([.adapter("b"), .adapter("c")], name: "b,c")]))
        func loss() throws -> (Double, GradientStore) {
            let store = GradientStore(model.engine)
            let tape = Tape(model.engine, model.precision, gradients: store)
            let (loss, seed) = try ModelLoss.loss(model, CompositionTests.batch, set.activeRouting(rows: 2), tape)
            try tape.backward(from: loss.variable, gradient: try Tensor(model.engine, [seed], shape: [1]))
            return (loss.sum / Double(loss.count), store)
        }
        let exact = try loss().1
        let learning = try set.trainableParameters()
        // The fusion alone: its members stay.
        #expect(!learning.isEmpty && learning.allSatisfy { $0.key.contains("adapter_fusion_layer") })
        for (key, parameter) in try set.state(of: "b").map(\.name).compactMap({ key in try set.adapter("b").parameters.first { $0.key == key } }) {
            #expect(try exact.buffer(for: parameter).floats(model.engine).allSatisfy { $0 == 0 }, "\(key)")
        }
        for (key, parameter) in learning {
            let gradient = try exact.buffer(for: parameter).floats(model.engine)
            let place = try #require(gradient.indices.max { abs(gradient[$0]) < abs(gradient[$1]) })
            func moved(_ change: Float) throws -> Double {
                unsafe parameter.value.withMutableFloats { unsafe $0[place] += change }
                defer { unsafe parameter.value.withMutableFloats { unsafe $0[place] -= change } }
                return try loss().0
            }
            let slope = (try moved(1e-2) - moved(-1e-2)) / 2e-2
            #expect(abs(slope - Double(gradient[place])) < 0.03 * abs(slope) + 3e-4, "\(key): \(gradient[place]) and \(slope)")
        }
    }

    /// Methods that change inputs, add branches, change outputs.
    private static let methods: [(String, JSONObject)] = [
        ("LORA", ["r": .integer(4)]), ("LOHA", ["r": .integer(2)]), ("OFT", ["oft_block_size": .integer(8)]), ("IA3", ["feedforward_modules": .array([.string("v_proj")])]),
        ("HRA", ["r": .integer(4)]), ("ROAD", ["group_size": .integer(8)]), ("LORA", ["r": .integer(4), "use_dora": .bool(true)]),
    ]

    @Test("an average of any methods is the average of what each makes of a layer") func average() throws {
        for (type, settings) in CompositionTests.methods {
            var config: JSONObject = ["peft_type": .string(type), "target_modules": .array([.string("q_proj"), .string("v_proj")])]
            for (key, value) in settings.pairs { config[key] = value }
            let lora: JSONObject = ["peft_type": .string("LORA"), "r": .integer(2), "target_modules": .array([.string("q_proj"), .string("v_proj")])]
            let (model, set) = try open("llama", [("x", config), ("b", lora), ("before", lora)])
            let x = try Tensor(model.engine, (0..<96).map { Float($0 % 7) - 3 }, shape: [3, 32])
            for layer in ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"] {
                func run(_ composition: Composition) throws -> [Float] {
                    try model.run(layer: layer, x, set.adaptation(of: composition), Tape(model.engine, model.precision)).output.value.floats(model.engine)
                }
                for before in [[], [Composition.adapter("before")]] {
                    let made = try run(.stack(before + [.average([.adapter("x"), .stack([.adapter("b")])], weights: [0.3, 1.1])]))
                    let (one, two, none) = (try run(.stack(before + [.adapter("x")])), try run(.stack(before + [.adapter("b")])), try run(.stack(before)))
                    #expect(worst(made, zip(zip(one, two), none).map { 0.3 * $0.0 + 1.1 * $0.1 - 0.4 * $1 }) < 1e-5, "\(type) \(layer) \(before.count)")
                    #expect(worst(made, one) > 1e-3)
                }
            }
        }
    }

    @Test("rows and tokens of blocks are what they are alone") func rows() throws {
        let lora: JSONObject = ["peft_type": .string("LORA"), "r": .integer(2), "target_modules": .array([.string("q_proj"), .string("down_proj")])]
        let prefix: JSONObject = ["peft_type": .string("PREFIX_TUNING"), "num_virtual_tokens": .integer(3)]
        let (model, set) = try open("llama", [("l", lora), ("b", CompositionTests.bottleneck("double_seq_bn", ["use_gating": .bool(true)])), ("c", CompositionTests.bottleneck("par_bn")), ("p", prefix)])
        func one(_ composition: Composition, row: Int) throws -> [Float] {
            try logits(model, .all(set.adaptation(of: composition)), Batch(rows: 1, length: 4, ids: Array(CompositionTests.ids[4 * row..<4 * row + 4]), labels: []))
        }
        let (l, b, c, p) = (Composition.adapter("l"), Composition.adapter("b"), Composition.adapter("c"), Composition.adapter("p"))
        let inner = Composition.average([l, .stack([b, .batchSplit([c, l], sizes: [1, 1])])], weights: [0.5, 0.5])
        #expect(failure { try set.setActive(inner) }?.message.contains("twice") == true)
        try set.setActive(.stack([p, .batchSplit([.average([l, b], weights: [0.5, 0.5]), .stack([c, l])], sizes: [1, 1])]))
        let split = try logits(model, set.activeRouting(rows: 2))
        let expected = try one(.stack([p, .average([l, b], weights: [0.5, 0.5])]), row: 0) + one(.stack([p, c, l]), row: 1)
        #expect(worst(split, expected) < 1e-5)
        #expect(failure { _ = try set.activeRouting(rows: 3) }?.message.contains("[1, 1]") == true)
        // Parallel: as many times the rows, and a loss over all of them.
        try set.setActive(.stack([p, .parallel([l, b, c])]))
        let parallel = try logits(model, set.activeRouting(rows: 2))
        #expect(worst(parallel, try [l, b, c].flatMap { member in try (0..<2).flatMap { try one(.stack([p, member]), row: $0) } }) < 1e-5)
        let losses = try [l, b, c].map { try model.forward(CompositionTests.batch, .all(set.adaptation(of: .stack([p, $0])))).loss ?? 0 }
        let loss = try #require(try model.forward(CompositionTests.batch, set.activeRouting(rows: 2)).loss)
        #expect(abs(loss - losses.reduce(0, +) / 3) < 1e-5)
        #expect(failure { _ = try set.activeAdaptation() }?.kind == .unsupported)
        // Split: a causal model's first tokens do not know what acts on the later ones.
        try set.setActive(.stack([.split([l, .stack([c])], lengths: [1, 3])]))
        let (both, first) = (try logits(model, set.activeRouting(rows: 2)), try one(l, row: 0))
        let width = first.count / 4
        #expect(worst(Array(both[0..<width]), Array(first[0..<width])) < 1e-5 && worst(Array(both[width..<2 * width]), Array(first[width..<2 * width])) > 1e-3)
        try set.setActive(.split([l, .split([l, l], lengths: [1, 1])], lengths: [1, 2]))
        #expect(worst(try logits(model, set.activeRouting(rows: 2)), try one(l, row: 0) + one(l, row: 1)) < 1e-5)
        try set.setActive(.split([l, c], lengths: [4, 1]))
        #expect(failure { _ = try logits(model, set.activeRouting(rows: 2)) }?.message.contains("Split") == true)
        #expect(failure { try set.setActive(.split([l, .split([l, c], lengths: [2, 1])], lengths: [1, 2])) }?.kind == .argument)
        #expect(failure { try set.setActive(.split([l, p], lengths: [1, 1])); _ = try logits(model, set.activeRouting(rows: 2)) }?.kind == .unsupported)
        #expect(failure { try set.setActive(.average([l, p], weights: [1, 1])) }?.message.contains("\"p\"") == true)
        #expect(failure { try set.setActive(.average([b, c], weights: [1, 1])) }?.message.contains("beside") == true)
    }

    @Test("trainers follow a composition: a fusion alone, or all that is named") func training() throws {
        let (model, set) = try open("llama", [
            ("a", CompositionTests.bottleneck("double_seq_bn")), ("b", CompositionTests.bottleneck("double_seq_bn")), ("a,b", CompositionTests.fusion(["a", "b"])),
        ])
        var options = TrainerOptions()
        options.optimizer.learningRate = 1e-2
        options.schedule = .constant
        func states() throws -> [[Float]] { try ["a", "b", "a,b"].map { try set.state(of: $0).flatMap { try $0.tensor.floats(model.engine) } } }
        try set.setActive(.fuse([.adapter("a"), .adapter("b")], name: "a,b"))
        let trainer = try Trainer(model, try Trainee(set), options)
        let before = try states()
        var losses: [Double] = []
        for _ in 0..<6 { losses.append(try trainer.step(CompositionTests.batch).loss) }
        let after = try states()
        #expect(after[0] == before[0] && after[1] == before[1] && after[2] != before[2] && (losses.last ?? 9) < losses[0])
        // Renamed members are followed; naming the fusion is the Fuse of its members.
        try set.rename("a", to: "first")
        #expect(try set.configuration(of: "a,b")["adapters"] == .array([.string("first"), .string("b")]))
        #expect(failure { _ = try set.adaptation(of: .fuse([.adapter("a"), .adapter("b")], name: "a,b")) }?.kind == .notFound)
        try set.setActive([("b", 1)])
        _ = try trainer.step(CompositionTests.batch)
        try set.rename("first", to: "a")
        let named = try logits(model, .all(set.adaptation(of: .stack([.adapter("a,b")]))))
        #expect(try logits(model, .all(set.adaptation(of: .fuse([.adapter("a"), .adapter("b")], name: "a,b")))) == named)
        try set.setActive(.parallel([.adapter("a"), .adapter("b")]))
        let both = try Trainer(model, try Trainee(set), options)
        _ = try both.step(CompositionTests.batch)
        let last = try states()
        #expect(last[0] != after[0] && last[1] != after[1])
        #expect(failure { try set.remove("a") }?.kind == .state)
    }

    @Test("a fusion goes to files and back") func files() throws {
        let folder = TemporaryFolder()
        let (model, set) = try open("llama", [
            ("a", CompositionTests.bottleneck("double_seq_bn")), ("b.1", CompositionTests.bottleneck("double_seq_bn")), ("a,b.1", CompositionTests.fusion(["a", "b.1"])),
        ])
        let expected = try logits(model, .all(set.adaptation(of: .adapter("a,b.1"))))
        for path in [folder.path + "/fusion", folder.path + "/fusion.h5"] {
            try set.save("a,b.1", path: path)
            try set.load("again", path: path, trainable: false)
            #expect(try logits(model, .all(set.adaptation(of: .adapter("again")))) == expected)
            try set.remove("again")
        }
        for name in ["adapter_fusion_config.json", "model_adapter_fusion.safetensors"] { #expect(Files.isFile(folder.path + "/fusion/" + name)) }
        let alone = AdapterSet(model)
        #expect(failure { try alone.load("x", path: folder.path + "/fusion", trainable: false) }?.kind == .notFound)
        for name in (try? Files.names(in: folder.path + "/fusion")) ?? [] { unlink(folder.path + "/fusion/" + name) }
        rmdir(folder.path + "/fusion")
    }

    @Test("what an invertible adapter does, it undoes", arguments: [false, true]) func inverse(_ isGlow: Bool) throws {
        let engine = Engine(threads: 1)
        let adapter = try InvertibleAdapter("x.", width: 9, isGlow: isGlow, factor: 2, .tanh, engine)
        var random = RandomStream(seed: 1)
        for parameter in adapter.parameters { parameter.value.fillNormal(0.7, &random) }
        let x = try Tensor(engine, (0..<45).map { Float($0 % 11) - 5 }, shape: [5, 9])
        let tape = Tape(engine, .f32)
        let there = try adapter.entering(Variable(x), tape)
        #expect(worst(try adapter.leaving(there, tape).value.floats(engine), try x.floats(engine)) < 1e-4)
        #expect(worst(try there.value.floats(engine), try x.floats(engine)) > 1e-2)
    }

    @Test("what cannot be is refused by name") func refusals() throws {
        let lora: JSONObject = ["peft_type": .string("LORA"), "r": .integer(2), "target_modules": .array([.string("q_proj")])]
        let (_, set) = try open("llama", [("a", CompositionTests.bottleneck("double_seq_bn")), ("b", CompositionTests.bottleneck("double_seq_bn")), ("l", lora), ("a,b", CompositionTests.fusion(["a", "b"]))])
        for (text, word) in [
            ("[]", "Stack of 0"), ("{\"type\": \"Fuse\", \"children\": []}", "Fuse of 0"), ("{\"type\": \"Mix\", \"children\": [\"a\"]}", "Mix"), ("3", "integer"),
            ("{\"type\": \"Stack\"}", "children"), ("{\"type\": \"Split\", \"children\": [\"a\", \"b\"], \"kwargs\": {\"splits\": [1]}}", "splits"),
            ("{\"type\": \"Split\", \"children\": [\"a\", \"b\"], \"kwargs\": {\"splits\": [1, 0]}}", "splits"),
            ("{\"type\": \"BatchSplit\", \"children\": [\"a\"]}", "batch_sizes"), ("{\"type\": \"Average\", \"children\": [\"a\", \"b\"], \"kwargs\": {\"weights\": [1]}}", "weights"),
            ("{\"type\": \"Average\", \"children\": [\"a\", \"b\"], \"kwargs\": {\"weights\": [1, -1]}}", "normalize_weights"), ("[\"a\", \"nobody\"]", "nobody"), ("[\"a\", \"a\"]", "twice"),
            ("{\"type\": \"Fuse\", \"children\": [\"b\", \"a\"]}", "b,a"), ("{\"type\": \"Fuse\", \"children\": [\"a\", \"l\"], \"kwargs\": {\"name\": \"a,b\"}}", "made for a, b"),
            ("{\"type\": \"Fuse\", \"children\": [\"a\", \"b\"], \"kwargs\": {\"name\": \"l\"}}", "ADAPTER_FUSION"), ("{\"type\": \"Average\", \"children\": [{\"type\": \"Parallel\", \"children\": [\"a\", \"b\"]}]}", "Parallel"),
            ("{\"type\": \"Stack\", \"children\": [\"a\"], \"kwargs\": {\"x\": 1}}", "\"x\""), (String(repeating: "[", count: 40) + "\"a\"" + String(repeating: "]", count: 40), "deeper"),
            ("[\"a\", \"a,b\"]", "twice"),
        ] {
            let before = set.status()
            let error = failure { try set.setActive(try Composition(try JSONValue(parsing: text))) }
            #expect(error?.message.contains(word) == true && set.status() == before, "\(text): \(error?.message ?? "")")
        }
        for (members, word) in [(["a"], "two or more"), (["a", "a"], "once"), (["a", "l"], "LORA"), (["a", "a,b"], "ADAPTER_FUSION"), (["a", "self"], "self")] {
            #expect(failure { try set.add("self", CompositionTests.fusion(members)) }?.message.contains(word) == true, "\(word)")
        }
        #expect(failure { try set.add("x", CompositionTests.fusion(["a", "b"], ["temperature": .number(0.5)])) }?.message.contains("temperature") == true)
        #expect(failure { try set.add("x", CompositionTests.fusion(["a", "b"], ["config": .string("static"), "key": .bool(false), "query": .bool(false)])) }?.message.contains("train") == true)
        // As it is written, it is read.
        let block: JSONValue = try JSONValue(parsing: "{\"type\": \"BatchSplit\", \"children\": [{\"type\": \"Average\", \"children\": [\"a\", \"l\"]}, {\"type\": \"single\", \"children\": [\"b\"], \"kwargs\": {\"weight\": 2}}], \"kwargs\": {\"batch_sizes\": 3}}")
        #expect(try Composition(Composition(block).json) == Composition(block))
    }
}
