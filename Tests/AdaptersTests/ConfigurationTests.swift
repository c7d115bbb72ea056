import Platform
import Testing

@testable import Adapters

@Suite struct ConfigurationTests {
    @Test func defaultsAndRoundTrip() throws {
        let tiny = try TinyModel()
        try tiny.set.add("a", ["peft_type": .string("LORA")])
        let config = try tiny.set.configuration(of: "a")
        #expect(
            config.count == 41 && config["r"] == .integer(8) && config["lora_alpha"] == .integer(8)
                && config["bias"] == .string("none"))
        #expect(
            config["inference_mode"] == .bool(true) && config["peft_version"] == .string("0.21.2")
                && config["base_model_name_or_path"] == .string("tiny"))
        #expect(config["target_modules"] == names("q_proj", "v_proj"))  // what null means for a Llama
        #expect(config["auto_mapping"]?["base_model_class"] == .string("LlamaForCausalLM"))
        // Read again, it says the same.
        try tiny.set.add("b", config)
        #expect(try tiny.set.configuration(of: "b") == config)
        #expect(tiny.messages.all.isEmpty)
    }

    @Test func unknownKeysAreNamedAndDropped() throws {
        let tiny = try TinyModel()
        try tiny.set.add("a", lora(["future_option": .integer(1), "runtime_config": .object([:])]))
        #expect(
            tiny.messages.all.contains { $0.contains("future_option") }
                && tiny.messages.all.contains { $0.contains("runtime_config") })
        #expect(try tiny.set.configuration(of: "a")["future_option"] == nil)
    }

    @Test(
        arguments: [
            (["peft_type": .null], PEFTError.Kind.argument, "peft_type"),
            (["peft_type": .string("NO_SUCH")], .unsupported, "LORA"),
            (["peft_type": .integer(3)], .argument, "peft_type"),
            (["task_type": .string("CHAT")], .argument, "CAUSAL_LM"),
            (["r": .integer(0)], .argument, "r"),
            (["r": .number(2.5)], .argument, "\"r\""),
            (["r": .null], .argument, "\"r\""),
            (["rank_pattern": .object(["q_proj": .integer(-1)])], .argument, "q_proj"),
            (["rank_pattern": .object(["q_proj": .string("x")])], .argument, "q_proj"),
            (["alpha_pattern": .object(["(": .integer(1)])], .argument, "alpha_pattern"),
            (["lora_alpha": .string("8")], .argument, "lora_alpha"),
            (["lora_dropout": .number(1.5)], .argument, "lora_dropout"),
            (["bias": .string("some")], .argument, "lora_only"),
            (["use_dora": .string("yes")], .argument, "use_dora"),
            (["use_dora": .bool(true), "lora_bias": .bool(true)], .argument, "lora_bias"),
            (["lora_bias": .bool(true), "init_lora_weights": .string("pissa")], .argument, "lora_bias"),
            (["lora_bias": .bool(true), "target_modules": names("embed_tokens")], .argument, "embed_tokens"),
            (["init_lora_weights": .string("nonsense")], .argument, "pissa_niter_N"),
            (["init_lora_weights": .string("pissa_niter_x")], .argument, "pissa_niter_N"),
            (["init_lora_weights": .string("orthogonal"), "r": .integer(3)], .argument, "even"),
            (["init_lora_weights": .string("pissa"), "r": .integer(33)], .argument, "33"),
            (["init_lora_weights": .string("eva")], .argument, "eva"),
            (["alora_invocation_tokens": .array([.string("x")])], .argument, "alora_invocation_tokens"),
            (["target_parameters": .string("x")], .argument, "target_parameters"),
            (["target_parameters": names("x"), "target_modules": .array([])], .notFound, "no stacks of experts"),
            (["target_parameters": names("q_proj.weight")], .argument, "it can be one of them"),
            (["target_parameters": names("embed_tokens.weight")], .unsupported, "Embedding"),
            (["target_parameters": names("v_proj.weight"), "lora_dropout": .number(0.1)], .argument, "lora_dropout"),
            (["target_parameters": names("v_proj.weight"), "use_dora": .bool(true)], .argument, "use_dora"),
            (["target_parameters": names("v_proj.weight"), "target_modules": .array([]), "init_lora_weights": .string("pissa")], .argument, "init_lora_weights"),
            (["megatron_config": .object(["tensor_model_parallel_size": .integer(2)])], .unsupported, "megatron_config"),
            (["target_modules": names("input_layernorm")], .unsupported, "RMSNorm"),
            (["modules_to_save": names("q_proj")], .notFound, "not found"),
            (["modules_to_save": names("proj")], .argument, "modules_to_save"),
            (["modules_to_save": names("layers"), "target_modules": names("c_fc")], .argument, "list of modules"),
            (["trainable_token_indices": .array([.integer(99)])], .argument, "99"),
            (["trainable_token_indices": .array([.integer(1), .integer(1)])], .argument, "once"),
            (["trainable_token_indices": .object(["nowhere": .array([.integer(1)])])], .notFound, "nowhere"),
            (
                ["trainable_token_indices": .array([.integer(1)]), "target_modules": names("embed_tokens")], .argument,
                "embed_tokens"
            ),
            (
                ["trainable_token_indices": .array([.integer(1)]), "modules_to_save": names("embed_tokens")], .argument,
                "embed_tokens"
            ),
        ] as [(JSONObject, PEFTError.Kind, String)])
    func refused(_ changes: JSONObject, _ kind: PEFTError.Kind, _ word: String) throws {
        let tiny = try TinyModel()
        var config = lora(changes)
        if changes["modules_to_save"] == names("q_proj") { config["target_modules"] = names("q_proj", "nothing") }
        let before = try tiny.logits()
        let error = failure {
            try tiny.set.add("a", config)
        }
        // All targets inside modules_to_save: the message says that nothing is left.
        let fits = error?.says(word) == true || word == "not found" && error?.says("modules_to_save") == true
        #expect(error?.kind == kind && fits, "\(error.map { "\($0.kind): \($0)" } ?? "accepted")")
        #expect(try tiny.logits() == before && tiny.set.status()["adapters"]?.objectValue?.isEmpty == true)
    }

    @Test func onlyOneAdapterTrainsBiases() throws {
        let tiny = try TinyModel()
        try tiny.set.add("a", lora(["bias": .string("all")]))
        #expect(throws: PEFTError.self) { try tiny.set.add("b", lora(["bias": .string("lora_only")])) }
        try tiny.set.add("c", lora())
    }

    @Test func namesThatCannotBe() throws {
        let tiny = try TinyModel()
        for name in ["", "__base__", "a|b"] { #expect(throws: PEFTError.self) { try tiny.set.add(name, lora()) } }
        try tiny.set.add("a", lora())
        #expect(throws: PEFTError.self) { try tiny.set.add("a", lora()) }
    }
}
