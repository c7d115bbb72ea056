import Autograd
import Platform
import Quantization
import Tensors
import Testing

@testable import Adapters
@testable import Models

/// `target_parameters` beyond the golden case.
@Suite struct ExpertTests {
    private static let both: JSONObject = [
        "peft_type": .string("LORA"), "r": .integer(2), "target_modules": .array([]), "init_lora_weights": .bool(false),
        "target_parameters": names("experts.down_proj", "experts.gate_up_proj"),
    ]

    private func logits(_ golden: GoldenCase, _ routing: Routing) throws -> [Float] {
        try golden.logits(routing, Tape(golden.engine, .f32)).value.floats(golden.engine)
    }

    @Test func samplesWithTheirOwnExperts() throws {
        let golden = try GoldenCase("lora_target_parameters")
        try golden.set.add("a", ExpertTests.both)
        try golden.set.add("b", ExpertTests.both, seed: 5)
        let mixed = try logits(golden, golden.set.routing(samples: ["b", "a"]))
        let (a, b) = (try logits(golden, golden.set.routing(samples: ["a", "a"])), try logits(golden, golden.set.routing(samples: ["b", "b"])))
        let half = mixed.count / 2
        #expect(difference(a, b) > 0.01)
        #expect(difference(Array(mixed[..<half]), Array(b[..<half])) < 1e-5 && difference(Array(mixed[half...]), Array(a[half...])) < 1e-5)
    }

    @Test func patternsNameParameters() throws {
        let golden = try GoldenCase("lora_target_parameters")
        var config = ExpertTests.both
        config["rank_pattern"] = .object(["experts.down_proj": .integer(3)])
        try golden.set.add("a", config)
        let shapes = Dictionary(uniqueKeysWithValues: try golden.set.state(of: "a").map { ($0.name, $0.tensor.shape) })
        let module = "base_model.model.model.layers.1.mlp.experts"
        #expect(shapes["\(module).lora_A.weight"] == [12, 24] && shapes["\(module).base_layer.lora_B.weight"] == [48, 8])
        // Alone, a parameter is not wrapped again.
        config["target_parameters"] = names("experts.gate_up_proj")
        try golden.set.add("b", config)
        #expect(try golden.set.state(of: "b").map(\.name).contains("\(module).lora_B.weight"))
    }

    /// Frozen experts in another weight format, adapted and merged.
    @Test func quantizedExperts() throws {
        let golden = try GoldenCase("lora_target_parameters")
        let plain = try logits(golden, .all(golden.model.unadapted))
        for case let experts as Experts in golden.model.layers {
            let stack = try #require(experts.tensor("gate_up_proj"))
            try experts.setTensor("gate_up_proj", try stack.encoded(as: .q8_0, golden.engine, .weights))
        }
        #expect(difference(try logits(golden, .all(golden.model.unadapted)), plain) < 0.05)
        try golden.set.add("a", ExpertTests.both)
        let hooked = try golden.logits().value.floats(golden.engine)
        #expect(difference(hooked, plain) > 0.05)
        _ = try golden.set.merge(nil, safe: true)
        #expect(difference(try golden.logits().value.floats(golden.engine), hooked) < 0.05)
        try golden.set.unmerge()
        #expect(try golden.logits().value.floats(golden.engine) == hooked)
    }

    /// Experts trained in full stand in for the model's, and take their place.
    @Test func savedExperts() throws {
        let golden = try GoldenCase("lora_target_parameters")
        let plain = try golden.logits().value.floats(golden.engine)
        try golden.set.add("a", ["peft_type": .string("LORA"), "target_modules": names("q_proj"), "modules_to_save": names("experts")])
        #expect(difference(try golden.logits().value.floats(golden.engine), plain) < 1e-6)
        #expect(try golden.set.state(of: "a").contains { $0.name.hasSuffix("layers.0.mlp.experts.down_proj") })
    }

    /// The weight of a linear layer by its own name is that layer.
    @Test func weightsOfLinearLayers() throws {
        let tiny = try TinyModel()
        try tiny.set.add("a", lora(["target_modules": names("v_proj"), "layers_to_transform": .null]))
        try tiny.set.add("b", lora(["target_modules": .array([]), "target_parameters": names("v_proj.weight"), "layers_to_transform": .null]))
        #expect(try tiny.set.state(of: "a").map(\.name) == tiny.set.state(of: "b").map(\.name))
    }

    @Test func whatExpertsRefuse() throws {
        let golden = try GoldenCase("lora_target_parameters")
        for (method, module) in [("LORA", "experts"), ("LOHA", "gate"), ("LORA", "w1"), ("LORA", "w3")] {
            #expect(throws: PEFTError.self) { try golden.set.add("a", ["peft_type": .string(method), "target_modules": names(module)]) }
        }
        for pattern in [".*experts\\.w2", ".*(q_proj|w1)"] {
            #expect(throws: PEFTError.self) { try golden.set.add("a", ["peft_type": .string("LORA"), "target_modules": .string(pattern)]) }
        }
        try golden.set.add("pattern", ["peft_type": .string("LORA"), "target_modules": .string(".*q_proj")])
        for (key, value) in [("use_rslora", JSONValue.bool(true)), ("lora_dropout", .number(0.1)), ("lora_bias", .bool(true)), ("init_lora_weights", .string("pissa"))] {
            var config = ExpertTests.both
            config[key] = value
            let isPossible = key == "use_rslora"
            #expect(((try? golden.set.add(key, config)) != nil) == isPossible, "\(key)")
        }
    }
}
