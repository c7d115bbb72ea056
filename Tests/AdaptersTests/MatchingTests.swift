import Platform
import Tensors
import Testing

@testable import Adapters
@testable import Models

/// PEFT's rules for targets, as tables: settings and the layers they mean.
@Suite struct MatchingTests {
    /// A Llama's names, three layers.
    private static func model(type: String = "llama") throws -> Model {
        let engine = Engine()
        var layers: [any Layer] = [Embedding(name: "model.embed_tokens", index: 0, weight: try .zeros(engine, [8, 8]))]
        func add(_ name: String) throws {
            layers.append(Linear(name: name, index: layers.count, weight: try .zeros(engine, [8, 8]), bias: nil))
        }
        for i in 0..<3 {
            for name in [
                "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.experts.0.up_proj",
            ] { try add("model.layers.\(i).\(name)") }
            layers.append(
                RMSNorm(
                    name: "model.layers.\(i).input_layernorm", index: layers.count, weight: try .zeros(engine, [8]),
                    epsilon: 1e-6))
        }
        try add("lm_head")
        let head = layers[layers.count - 1] as! Linear
        let network = TinyNetwork(embedding: layers[0] as! Embedding, blocks: [], conv: head, head: head)
        return Model(
            engine: engine, precision: .f32, configuration: ["model_type": .string(type)], architecture: type,
            layers: layers, network: network)
    }

    private static func targets(_ settings: JSONObject, type: String = "llama") throws -> [String] {
        var json = settings
        json["peft_type"] = .string("LORA")
        var configuration = try AdapterConfiguration(json, warn: { _ in })
        let model = try model(type: type)
        return try TargetMatching.targets(&configuration, among: model.layers, model).map {
            $0.name.split(separator: ".").filter { !["layers", "self_attn"].contains($0) }.joined(separator: ".")
                .replacingPrefix("model.", unless: "model.embed_tokens")
        }
    }

    @Test(
        arguments: [
            (["target_modules": names("q_proj")], ["0.q_proj", "1.q_proj", "2.q_proj"]),
            (["target_modules": names("proj", "1.self_attn.q_proj")], ["1.q_proj"]),
            (["target_modules": names("model.layers.2.self_attn.v_proj", "nothing")], ["2.v_proj"]),
            (["target_modules": .null], ["0.q_proj", "0.v_proj", "1.q_proj", "1.v_proj", "2.q_proj", "2.v_proj"]),
            (["target_modules": .string(".*[02].*q_proj")], ["0.q_proj", "2.q_proj"]),
            (["target_modules": .string("model.layers.1.self_attn.(q|k)_proj")], ["1.q_proj", "1.k_proj"]),
            (
                ["target_modules": names("q_proj", "embed_tokens", "lm_head")],
                ["model.embed_tokens", "0.q_proj", "1.q_proj", "2.q_proj", "lm_head"]
            ),
            (
                [
                    "target_modules": names("q_proj", "v_proj"),
                    "exclude_modules": names("v_proj", "1.self_attn.q_proj"),
                ], ["0.q_proj", "2.q_proj"]
            ),
            (["target_modules": names("q_proj"), "exclude_modules": .string(".*layers\\.[12]\\..*")], ["0.q_proj"]),
            (["target_modules": names("q_proj"), "layers_to_transform": .integer(1)], ["1.q_proj"]),
            (
                [
                    "target_modules": names("q_proj"), "layers_to_transform": .array([.integer(0), .integer(2)]),
                    "layers_pattern": .string("layers"),
                ], ["0.q_proj", "2.q_proj"]
            ),
            (
                ["target_modules": names("q_proj"), "layers_to_transform": .array([]), "layers_pattern": .array([])],
                ["0.q_proj", "1.q_proj", "2.q_proj"]
            ),
            // The layer's number, not the expert's; with a pattern, the number behind it.
            (
                ["target_modules": names("experts.0.up_proj"), "layers_to_transform": .integer(1)],
                ["1.mlp.experts.0.up_proj"]
            ),
            (
                [
                    "target_modules": names("up_proj"), "layers_to_transform": .integer(0),
                    "layers_pattern": names("experts"),
                ], (0..<3).map { "\($0).mlp.experts.0.up_proj" }
            ),
            // A full name is meant, whatever its number.
            (
                [
                    "target_modules": names("model.layers.2.self_attn.q_proj", "k_proj"),
                    "layers_to_transform": .integer(0),
                ], ["0.k_proj", "2.q_proj"]
            ),
            // Nothing inside a saved module is a target.
            (
                ["target_modules": names("q_proj", "up_proj"), "modules_to_save": names("mlp")],
                ["0.q_proj", "1.q_proj", "2.q_proj"]
            ),
        ] as [(JSONObject, [String])])
    func found(_ settings: JSONObject, _ expected: [String]) throws {
        #expect(try MatchingTests.targets(settings) == expected)
    }

    @Test func allLinearLeavesTheHeadOut() throws {
        let found = try MatchingTests.targets(["target_modules": .string("All-Linear")])
        #expect(found.count == 15 && !found.contains("lm_head") && !found.contains("model.embed_tokens"))
    }

    @Test(
        arguments: [
            (["target_modules": names("nothing")], "q_proj"),
            (["target_modules": names()], "not found"),
            (["target_modules": names("q_proj"), "exclude_modules": names("q_proj")], "exclude_modules"),
            (["target_modules": names("q_proj"), "modules_to_save": names("q_proj")], "modules_to_save"),
            (["target_modules": .string(".*"), "exclude_modules": .string(".*")], "all modules are excluded"),
            (["target_modules": names("q_proj"), "layers_to_transform": .integer(7)], "layers_to_transform"),
            (["target_modules": names("q_proj"), "layers_pattern": .string("layers")], "layers_to_transform"),
            (["target_modules": .string(".*q_proj"), "layers_to_transform": .integer(0)], "layers_to_transform"),
            (["target_modules": .string(".*q_proj"), "layers_pattern": .string("layers")], "layers_pattern"),
            (["target_modules": .string("(")], "target_modules"),
            (["target_modules": .integer(3)], "target_modules"),
            (["target_modules": .array([.integer(3)])], "target_modules"),
            (["target_modules": names("q_proj"), "layers_to_transform": .string("x")], "layers_to_transform"),
            (["target_modules": names("self_attn")], "group"),
        ] as [(JSONObject, String)])
    func refused(_ settings: JSONObject, _ word: String) throws {
        let error = failure { _ = try MatchingTests.targets(settings) }
        #expect(error?.says(word) == true, "\(error?.message ?? "accepted")")
    }

    @Test func noDefaultForTheFamily() throws {
        let error = failure { _ = try MatchingTests.targets([:], type: "marvel") }
        #expect(error?.kind == .argument && error?.says("marvel") == true)
    }

    /// A long list is saved as the shortest suffixes that mean the same.
    @Test func longListsAreCondensed() throws {
        let engine = Engine()
        let layers: [any Layer] = try (0..<12).flatMap { i in
            ["q", "k", "v"].map { ("model.layers.\(i).attn.\($0)", i) }
        }.enumerated().map { index, item in
            Linear(name: item.0, index: index, weight: try .zeros(engine, [4, 4]), bias: nil)
        }
        let head = layers[0] as! Linear
        let network = TinyNetwork(
            embedding: Embedding(name: "e", index: 99, weight: try .zeros(engine, [4, 4])), blocks: [], conv: head,
            head: head)
        let model = Model(
            engine: engine, precision: .f32, configuration: [:], architecture: "x", layers: layers, network: network)
        let full = layers.map(\.name).filter { !$0.hasSuffix("k") }
        var configuration = try AdapterConfiguration(
            ["peft_type": .string("LORA"), "target_modules": .array(full.map { .string($0) })], warn: { _ in })
        #expect(try TargetMatching.targets(&configuration, among: layers, model).map(\.name) == full)
        #expect(configuration.values["target_modules"] == names("q", "v"))
    }

    /// The first key in the order of the text that matches.
    @Test func patternTables() throws {
        let configuration = try AdapterConfiguration(
            [
                "peft_type": .string("LORA"),
                "rank_pattern": .object([
                    "layers.0.self_attn.q_proj": .integer(2), "q_proj": .integer(3),
                    "^model.layers.1.self_attn.k_proj": .integer(5), "proj": .integer(9),
                ]),
            ], warn: { _ in })
        let table = try PatternTable(configuration, "rank_pattern")
        #expect(try table.value(for: "model.layers.0.self_attn.q_proj") == 2)
        #expect(try table.value(for: "model.layers.1.self_attn.q_proj") == 3)
        #expect(try table.value(for: "model.layers.1.self_attn.k_proj") == 5)
        #expect(try table.value(for: "model.layers.11.self_attn.k_proj") == nil)
        let messages = Messages()
        try table.check(["model.layers.0.self_attn.q_proj"], warn: { messages.add($0) })
        #expect(messages.all.contains { $0.contains("proj, ") || $0.contains("no target is named by") })
    }
}

extension String {
    fileprivate func replacingPrefix(_ prefix: String, unless whole: String) -> String {
        self == whole || !hasPrefix(prefix) ? self : String(dropFirst(prefix.count))
    }
}
