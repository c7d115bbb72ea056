import Autograd
import Checkpoints
import Platform
import Tensors
import Testing

@testable import Adapters
@testable import Models

@Suite struct SetTests {
    @Test func severalAdaptersActTogether() throws {
        let tiny = try TinyModel()
        let base = try tiny.logits()
        try tiny.set.add("a", lora())
        try tiny.set.add("b", lora(["target_modules": names("c_fc", "v_proj"), "r": .integer(2)]))
        try tiny.randomize("a", seed: 1)
        try tiny.randomize("b", seed: 2)
        let a = try tiny.logits()  // the first one is active
        try tiny.set.setActive([("b", 1)])
        let b = try tiny.logits()
        try tiny.set.setActive([("a", 1), ("b", 1)])
        let both = try tiny.logits()
        #expect(difference(both, a) > 0.01 && difference(both, b) > 0.01)
        #expect(
            try tiny.set.trainableParameters().map(\.key).allSatisfy {
                $0.hasPrefix("a|base_model.") || $0.hasPrefix("b|base_model.")
            })
        // Weights and scales multiply.
        try tiny.set.setActive([("a", 0.5), ("b", 0)])
        let half = try tiny.logits()
        try tiny.set.setScale("a", 0.5)
        try tiny.set.setActive([("a", 1)])
        #expect(difference(try tiny.logits(), half) < 1e-6)
        try tiny.set.setActive([])
        #expect(try tiny.logits() == base)
        #expect(try tiny.logits(.all(tiny.set.adaptation(of: [("b", 1)]))) == b)
    }

    @Test func renameAndRemove() throws {
        let tiny = try TinyModel()
        let base = try tiny.logits()
        try tiny.set.add("a", lora())
        try tiny.randomize("a")
        let a = try tiny.logits()
        try tiny.set.rename("a", to: "smith")
        #expect(try tiny.logits() == a)
        #expect(throws: PEFTError.self) { _ = try tiny.set.state(of: "a") }
        try tiny.set.add("b", lora())
        #expect(throws: PEFTError.self) { try tiny.set.rename("b", to: "smith") }
        #expect(throws: PEFTError.self) { try tiny.set.rename("nobody", to: "x") }
        try tiny.set.remove("smith")  // the only active one: the other takes its place
        #expect(tiny.set.status()["active"]?.arrayValue?.first?["name"] == .string("b"))
        try tiny.set.remove("b")
        #expect(try tiny.logits() == base)
        #expect(throws: PEFTError.self) { try tiny.set.remove("b") }
        #expect(throws: PEFTError.self) { try tiny.set.setActive([("b", 1)]) }
    }

    /// An adaptation that was handed out stays what it was.
    @Test func adaptationsAreValues() throws {
        let tiny = try TinyModel()
        try tiny.set.add("a", lora())
        try tiny.randomize("a")
        let (adaptation, logits) = (try tiny.set.activeAdaptation(), try tiny.logits())
        try tiny.set.setScale("a", 3)
        try tiny.set.remove("a")
        #expect(try tiny.logits(.all(adaptation)) == logits)
    }

    @Test func mixedBatch() throws {
        let tiny = try TinyModel()
        try tiny.set.add("a", lora())
        try tiny.set.add("b", lora(["use_dora": .bool(true), "modules_to_save": names("norm")]))
        try tiny.randomize("a", seed: 1)
        try tiny.randomize("b", seed: 2)
        let a = try tiny.logits(.all(tiny.set.adaptation(of: [("a", 1)])))
        let b = try tiny.logits(.all(tiny.set.adaptation(of: [("b", 1)])))
        let base = try tiny.logits(.all(tiny.model.unadapted))
        let half = a.count / 2
        #expect(
            difference(try tiny.logits(tiny.set.routing(samples: ["a", "b"])), Array(a[..<half] + b[half...])) < 1e-5)
        #expect(
            difference(try tiny.logits(tiny.set.routing(samples: [nil, "a"])), Array(base[..<half] + a[half...])) < 1e-5
        )
        #expect(throws: PEFTError.self) { _ = try tiny.set.routing(samples: ["a", "nobody"]) }
    }

    @Test func twoCopiesOfOneModuleCannotAct() throws {
        let tiny = try TinyModel()
        for name in ["a", "b"] { try tiny.set.add(name, lora(["modules_to_save": names("lm_head")])) }
        let error = failure {
            try tiny.set.setActive([("a", 1), ("b", 1)])
        }
        #expect(error?.kind == .state && error?.says("lm_head") == true)
        #expect(tiny.set.status()["active"]?.arrayValue?.count == 1)
    }

    @Test func stateIsAllOrNothing() throws {
        let tiny = try TinyModel()
        try tiny.set.add("a", lora())
        try tiny.randomize("a")
        let before = try tiny.set.state(of: "a")
        let key = before[0].name
        let good = (
            name: key,
            tensor: try Tensor(
                tiny.engine, [Float](repeating: 1, count: before[0].tensor.count), shape: before[0].tensor.shape)
        )
        for bad in [
            (name: before[1].name, tensor: try Tensor(tiny.engine, [1, 2, 3] as [Float], shape: [3])),
            (name: "base_model.model.nothing", tensor: good.tensor),
            (
                name: before[1].name,
                tensor: try Tensor(
                    tiny.engine, [Int32](repeating: 1, count: before[1].tensor.count), shape: before[1].tensor.shape)
            ),
        ] {
            let error = failure {
                try tiny.set.setState(of: "a", [good, bad])
            }
            #expect(error?.kind == .mismatch)
            #expect(try tiny.set.state(of: "a")[0].tensor.floats(tiny.engine) == before[0].tensor.floats(tiny.engine))
        }
        // Any float type; some keys; with or without the prefix. Copies stay what they were.
        let half = try good.tensor.converted(to: .bf16, tiny.engine)
        try tiny.set.setState(of: "a", [(String(key.dropFirst("base_model.model.".count)), half)])
        #expect(
            try tiny.set.state(of: "a")[0].tensor.floats(tiny.engine) == [Float](repeating: 1, count: good.tensor.count)
        )
        #expect(try before[0].tensor.floats(tiny.engine) != [Float](repeating: 1, count: good.tensor.count))
    }

    @Test func status() throws {
        let tiny = try TinyModel()
        try tiny.set.add("a", lora(["target_modules": names("q_proj")]))
        let status = tiny.set.status()
        let size = 4 * (TinyModel.size + TinyModel.wide) * 2
        let base = tiny.model.layers.flatMap(\.tensors).reduce(0) { $0 + $1.tensor.count }
        #expect(status["enabled"] == .bool(true) && status["merged"] == .array([]))
        #expect(status["active"] == .array([.object(["name": .string("a"), "weight": .number(1)])]))
        #expect(
            status["trainable_parameters"] == .integer(Int64(size))
                && status["all_parameters"] == .integer(Int64(base + size)))
        let adapter = try #require(status["adapters"]?["a"])
        #expect(
            adapter["peft_type"] == .string("LORA") && adapter["trainable"] == .bool(true)
                && adapter["parameters"] == .integer(Int64(size)))
        #expect(adapter["layers"] == names("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"))
        try tiny.set.setTrainable("a", false)
        #expect(tiny.set.status()["trainable_parameters"] == .integer(0))
    }

    /// Everything an adapter's file can have wrong. The set is as before, and the message names what.
    @Test func badFiles() throws {
        let tiny = try TinyModel()
        try tiny.set.add("a", lora(["target_modules": names("q_proj", "embed_tokens")]))
        let config = try tiny.set.configuration(of: "a")
        let tensors = try tiny.set.state(of: "a").map { NamedTensor($0.name, $0.tensor) }
        let folder = try TemporaryFolder()
        let before = try tiny.logits()
        let first = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
        func changed(_ body: (inout JSONObject) -> Void) -> JSONObject {
            var result = config
            body(&result)
            return result
        }
        func replaced(_ name: String, _ shape: [Int], _ dtype: DType = .f32) throws -> [NamedTensor] {
            try tensors.map { $0.name == name ? NamedTensor(name, try .zeros(tiny.engine, shape, dtype)) : $0 }
        }
        let cases: [(JSONObject, [NamedTensor], PEFTError.Kind, String)] = [
            (config, tensors.filter { $0.name != first }, .mismatch, first),
            (
                config,
                tensors + [NamedTensor("base_model.model.stranger.lora_A.weight", try .zeros(tiny.engine, [2, 2]))],
                .mismatch, "stranger"
            ),
            (config, try replaced(first, [4, 33]), .mismatch, first),
            (config, try replaced(first, [4, 32], .i32), .mismatch, first),
            (changed { $0["r"] = .integer(5) }, tensors, .mismatch, "[5, 24]"),
            (changed { $0["target_modules"] = names("query") }, tensors, .mismatch, "query"),
            (
                changed { $0["target_modules"] = names("q_proj", "v_proj", "embed_tokens") }, tensors, .mismatch,
                "v_proj"
            ),
            (changed { $0["peft_type"] = .string("OTHER") }, tensors, .unsupported, "OTHER"),
            (changed { $0["peft_type"] = nil }, tensors, .format, "peft_type"),
            (changed { $0["lora_alpha"] = .string("x") }, tensors, .format, "lora_alpha"),
        ]
        for (index, (config, tensors, kind, word)) in cases.enumerated() {
            let path = "\(folder.path)/\(index)"
            try AdapterFiles.writeFolder(path, config: config, tensors: tensors)
            let error = failure {
                try tiny.set.load("b", path: path, trainable: true)
            }
            #expect(
                error?.kind == kind && error?.says(word) == true,
                "case \(index): \(error.map { "\($0.kind): \($0)" } ?? "accepted")")
        }
        #expect(throws: PEFTError.self) { try tiny.set.load("b", path: folder.path + "/nowhere", trainable: true) }
        #expect(try tiny.logits() == before && tiny.set.status()["adapters"]?.objectValue?.count == 1)
    }

    /// An adapter that was trained over other embeddings brings them along, and they act only with it.
    @Test func ownBaseWeights() throws {
        let tiny = try TinyModel()
        try tiny.set.add("a", lora(["target_modules": names("q_proj", "embed_tokens")]))
        try tiny.randomize("a")
        let folder = try TemporaryFolder()
        try tiny.set.save("a", path: folder.path + "/a")
        let other = try TinyModel()
        let embedding = other.network.embedding
        try embedding.setTensor(
            "weight",
            try Tensor(
                other.engine, try embedding.weight.floats(other.engine).map { $0 * 0.5 }, shape: embedding.weight.shape)
        )
        let base = try other.logits()
        try other.set.load("a", path: folder.path + "/a", trainable: true)
        #expect(difference(try other.logits(), try tiny.logits()) < 1e-6)
        #expect(try other.set.state(of: "a").map(\.name).sorted() == tiny.set.state(of: "a").map(\.name).sorted())
        other.set.setEnabled(false)
        #expect(try other.logits() == base)
        other.set.setEnabled(true)
        _ = try other.set.merge(nil, safe: true)
        #expect(difference(try other.logits(), try tiny.logits()) < 1e-5)
        try other.set.unmerge()
        other.set.setEnabled(false)
        #expect(try other.logits() == base)
    }

    /// Asking for what acts must cost nothing beside a token: ≤ 10 µs for a switch.
    @Test func switchingIsCheap() throws {
        let tiny = try TinyModel()
        for name in ["a", "b"] { try tiny.set.add(name, lora(["target_modules": names("q_proj", "v_proj", "c_fc")])) }
        let clock = ContinuousClock()
        var best = Duration.seconds(1)
        for _ in 0..<50 {
            let time = try clock.measure {
                for _ in 0..<10 {
                    for name in ["a", "b"] {
                        try tiny.set.setActive([(name, 1)])
                        _ = try tiny.set.activeAdaptation()
                    }
                }
            }
            best = min(best, time / 20)
        }
        #expect(best < .microseconds(10), "\(best)")
    }

    /// DoRA: gradients with the norm as a constant. The parameters are moved behind the lock's back, so the norms that the
    /// first pass computed stay in use: the very function the gradient is of.
    @Test func magnitudeGradients() throws {
        let tiny = try TinyModel()
        try tiny.set.add(
            "a",
            lora([
                "use_dora": .bool(true), "target_modules": names("q_proj", "c_fc", "embed_tokens"),
                "bias": .string("lora_only"),
            ]))
        try tiny.randomize("a")
        try tiny.checkGradients(seed: 4)
    }

    /// With dropout, DoRA's branch and change of scale see the dropped input, the layer the whole one.
    @Test func magnitudeWithDropout() throws {
        let tiny = try TinyModel()
        try tiny.set.add(
            "a", lora(["use_dora": .bool(true), "lora_dropout": .number(0.25), "target_modules": names("q_proj")]))
        try tiny.randomize("a")
        let linear = tiny.network.blocks[0].q
        let module = try #require(try tiny.set.adapter("a").modules.first as? LinearLoRA)
        var stream = RandomStream(seed: 8)
        let x = try Tensor(tiny.engine, (0..<3 * 32).map { _ in stream.normal() }, shape: [3, 32])
        func run(_ tape: Tape) throws -> [Float] {
            let context = ForwardContext(
                tape: tape, routing: .all(try tiny.set.activeAdaptation()), batch: 1, length: 3,
                positions: try Tensor(tiny.engine, [0, 1, 2] as [Int32], shape: [3]))
            return try linear(Variable(x), context).value.floats(tiny.engine)
        }
        let random = RandomStream(seed: 21)
        let trained = try run(Tape(tiny.engine, .f32, isTraining: true, random: random))
        let dropped = try Tape(tiny.engine, .f32, isTraining: true, random: random).dropout(Variable(x), 0.25).value
            .floats(tiny.engine)
        let (w, b) = (try linear.weight.floats(tiny.engine), try linear.bias!.floats(tiny.engine))
        let (av, bv, m) = (
            try module.a.value.floats(tiny.engine), try module.b.value.floats(tiny.engine),
            try module.magnitude!.parameter.value.floats(tiny.engine)
        )
        let xs = try x.floats(tiny.engine)
        var expected: [Float] = []
        for row in 0..<3 {
            for o in 0..<linear.outputSize {
                let full = (0..<32).map { i in
                    w[o * 32 + i] + 1.5 * (0..<4).reduce(Float(0)) { $0 + bv[o * 4 + $1] * av[$1 * 32 + i] }
                }
                let n = full.reduce(0) { $0 + $1 * $1 }.squareRoot()
                func dot(_ v: [Float], _ weights: (Int) -> Float) -> Float {
                    (0..<32).reduce(0) { $0 + v[row * 32 + $1] * weights($1) }
                }
                let (plain, lost, adapted) = (
                    dot(xs) { w[o * 32 + $0] }, dot(dropped) { w[o * 32 + $0] }, dot(dropped) { full[$0] }
                )
                expected.append(plain + b[o] + m[o] / n * adapted - lost)
            }
        }
        #expect(difference(trained, expected) < 1e-4)
    }
}
