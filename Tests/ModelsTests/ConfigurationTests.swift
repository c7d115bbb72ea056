import Checkpoints
import Platform
import Tensors
import Testing

@testable import Models

/// What configurations and files that do not fit are answered with.
@Suite struct ConfigurationTests {
    /// The base `llama` with another configuration.
    private func open(_ change: (inout JSONObject) -> Void, drop: String? = nil) throws -> OpenedModel {
        let folder = try ModelFolder(path: Golden.base("llama"), budget: MemoryBudget())
        var config = folder.config
        change(&config)
        let path = "/tmp/peftswift-config-\(UInt64.random(in: 0 ... .max))"
        let output = try AtomicFolder(path)
        var file = try output.file("config.json")
        var weights = try output.file("model.safetensors")
        try file.write(JSONValue.object(config).text())
        let tensors = folder.tensors.all.filter { $0.name != drop }
        try Safetensors.write(tensors.map { TensorDescription($0.name, $0.tensor.dtype, $0.tensor.shape) }, into: &weights) { tensors[$0].tensor }
        try weights.finish()
        try file.finish()
        try weights.publish()
        try file.publish()
        try output.commit()
        return try OpenedModel.open(path: path, Engine(), compute: .f32)
    }

    private func failure(_ change: (inout JSONObject) -> Void, drop: String? = nil) -> PEFTError? {
        do {
            _ = try open(change, drop: drop)
            return nil
        } catch { return error as? PEFTError }
    }

    @Test func refusedByName() throws {
        let cases: [(PEFTError.Kind, String, (inout JSONObject) -> Void)] = [
            (.unsupported, "model_type", { $0["model_type"] = .string("mamba") }),
            (.unsupported, "hidden_act", { $0["hidden_act"] = .string("xielu") }),
            (.unsupported, "dynamic", { $0["rope_parameters"] = .object(["rope_type": .string("dynamic"), "factor": .integer(2)]) }),
            (.format, "yarn", { $0["rope_parameters"] = .object(["rope_type": .string("yarn"), "factor": .integer(0)]) }),
            (.format, "beta_slow", { $0["rope_parameters"] = .object(["rope_type": .string("yarn"), "factor": .integer(2), "beta_slow": .integer(-1)]) }),
            (.unsupported, "architectures", { $0["architectures"] = .array([.string("LlamaForMaskedLM")]) }),
            (.format, "num_hidden_layers", { $0["num_hidden_layers"] = .integer(-1) }),
            (.format, "num_hidden_layers", { $0["num_hidden_layers"] = .integer(1 << 40) }),
            (.format, "head_dim", { $0["head_dim"] = .number(1e300) }),
            (.format, "vocab_size", { $0["vocab_size"] = nil }),
            (.format, "key-value", { $0["num_key_value_heads"] = .integer(3) }),
            (.format, "q_proj.weight", { $0["hidden_size"] = .integer(32); $0["head_dim"] = .integer(16) }),
            (.format, "model.layers.2", { $0["num_hidden_layers"] = .integer(3) }),
            (.format, "q_proj.bias", { $0["attention_bias"] = .bool(true) }),
            (.format, "tie_word_embeddings", { $0["tie_word_embeddings"] = .string("yes") }),
        ]
        for (kind, word, change) in cases {
            let error = failure(change)
            #expect(error?.kind == kind && error?.message.contains(word) == true, "\(word): \(error.map { "\($0.kind) \($0)" } ?? "no error")")
        }
        let missing = failure({ _ in }, drop: "model.layers.1.mlp.up_proj.weight")
        #expect(missing?.kind == .format && missing?.message.contains("model.layers.1.mlp.up_proj.weight") == true)
    }

    @Test func leftOverTensorsAreNamed() throws {
        let opened = try open { $0["num_hidden_layers"] = .integer(1) }
        #expect(opened.model.unusedTensors.count == 9 && opened.model.unusedTensors.allSatisfy { $0.hasPrefix("model.layers.1.") })
    }

    /// Frequencies against transformers 5.23.0 (`ROPE_INIT_FUNCTIONS`), head size 8, base 10000.
    @Test func rotaryScaling() throws {
        func frequencies(_ rope: JSONObject) throws -> [Float] {
            try RotaryTable(Engine(), headSize: 8, ModelConfiguration(["rope_parameters": .object(rope)], origin: "test")).frequencies
        }
        #expect(try frequencies(["rope_type": .string("default"), "rope_theta": .integer(10000)]) == [1, 0.1, 0.01, 0.001])
        #expect(try frequencies(["type": .string("linear"), "factor": .integer(4)]) == [0.25, 0.025, 0.0025, 0.00025])
        // Wavelengths 6.3, 63, 628, 6283 with an original length of 1024: kept below 256, divided by 8 above 1024, between them mixed.
        let mixed = try frequencies([
            "rope_type": .string("llama3"), "factor": .integer(8), "low_freq_factor": .integer(1), "high_freq_factor": .integer(4),
            "original_max_position_embeddings": .integer(1024),
        ])
        let smooth = (1024 / (2 * Float.pi / 0.01) - 1) / 3
        #expect(mixed[0] == 1 && mixed[1] == 0.1 && abs(mixed[2] - ((1 - smooth) * 0.01 / 8 + smooth * 0.01)) < 1e-8 && mixed[3] == 0.001 / 8)
    }
}
