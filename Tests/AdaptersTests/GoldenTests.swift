import Autograd
import Checkpoints
import Platform
import Tensors
import Testing

@testable import Adapters
@testable import Models

/// PEFT's numbers on tiny bases (Tests/Golden/README.md), without the Python around them.
@Suite struct GoldenTests {
    static let cases = [
        "lora_all_linear", "lora_basic", "lora_bias_all", "lora_bias_lora_only", "lora_bias_term",
        "lora_embedding_head", "lora_ensure_tying", "lora_exclude",
        "lora_gpt2_conv1d", "lora_half_files", "lora_layer_replication", "lora_layers_to_transform",
        "lora_left_padding", "lora_target_parameters", "lora_modules_to_save", "lora_mlp", "lora_rank_alpha_pattern",
        "lora_regex", "lora_rslora", "lora_sharded_base", "lora_tokens", "lora_tokens_tied", "lora_two_active",
        "dora_linear", "dora_bias_rslora",
        "dora_embedding", "dora_gpt2", "dora_two_active", "lora_llama_seqcls",
    ]

    @Test(arguments: cases) func forward(_ name: String) throws {
        let golden = try GoldenCase(name)
        try golden.loadAdapters()
        #expect(golden.error(try golden.logits(), of: "logits") < 2e-4)
        golden.set.setEnabled(false)
        #expect(golden.error(try golden.logits(), of: "logits") > 1e-2)
    }

    @Test(arguments: cases) func gradients(_ name: String) throws {
        let golden = try GoldenCase(name)
        try golden.loadAdapters()
        let expected = golden.expected.names.filter { $0.hasPrefix("grad.") }
        let parameters = try golden.set.trainableParameters()
        guard !expected.isEmpty, let labels = try golden.labels else { return }
        #expect(Set(parameters.map { "grad." + $0.key }) == Set(expected))
        let store = GradientStore(golden.engine)
        let tape = Tape(golden.engine, .f32, gradients: store)
        let logits = try golden.logits(.all(golden.set.activeAdaptation()), tape)
        let loss = try tape.crossEntropy(logits, labels: labels)
        try tape.backward(from: loss.variable, gradient: try Tensor(golden.engine, [1 as Float], shape: [1]))
        let largest = try expected.flatMap { try golden.values($0).map(abs) }.max() ?? 1
        for (key, parameter) in parameters {
            let found =
                try store.gradient(of: parameter)?.floats(golden.engine)
                ?? Array(repeating: 0, count: parameter.value.count)
            let wanted = try golden.values("grad." + key)
            let scale = max(wanted.map(abs).max() ?? 0, largest * 1e-3)
            #expect((zip(found, wanted).map { abs($0 - $1) }.max() ?? 0) < 1e-3 * scale, "\(key)")
        }
    }

    @Test(arguments: cases) func merged(_ name: String) throws {
        let golden = try GoldenCase(name)
        try golden.loadAdapters()
        let merged = golden.expected.names.filter { $0.hasPrefix("merged.") }
        guard !merged.isEmpty else { return }
        let before = try golden.model.layers.flatMap { layer in
            try layer.tensors.map { ("\(layer.name).\($0.name)", try $0.tensor.floats(golden.engine)) }
        }
        let logits = try golden.logits().value.floats(golden.engine)
        let report = try golden.set.merge(nil, safe: true)
        #expect(abs((report["kept"]?.doubleValue ?? 0) - 1) < 1e-4)
        for key in merged {
            let parts = key.dropFirst("merged.".count).split(separator: ".")
            let tensor = try #require(
                golden.model.layer(named: parts.dropLast().joined(separator: "."))?.tensor(String(parts.last!)))
            #expect(difference(try tensor.floats(golden.engine), try golden.values(key)) < 2e-4, "\(key)")
        }
        #expect(golden.error(try golden.logits(), of: "logits_merged") < 2e-4)
        #expect(difference(try golden.logits().value.floats(golden.engine), logits) < 2e-4)
        try golden.set.unmerge()
        let after = try golden.model.layers.flatMap { layer in
            try layer.tensors.map { ("\(layer.name).\($0.name)", try $0.tensor.floats(golden.engine)) }
        }
        #expect(zip(before, after).allSatisfy { $0.0 == $1.0 && $0.1 == $1.1 })
        #expect(try golden.logits().value.floats(golden.engine) == logits)
    }

    @Test(arguments: ["lora_modules_to_save", "lora_llama_seqcls"]) func unloaded(_ name: String) throws {
        let golden = try GoldenCase(name)
        try golden.loadAdapters()
        let logits = try golden.logits().value.floats(golden.engine)
        try golden.set.mergeAndUnload()
        for key in golden.expected.names where key.hasPrefix("unloaded.") {
            let parts = key.dropFirst("unloaded.".count).split(separator: ".")
            let tensor = try #require(
                golden.model.layer(named: parts.dropLast().joined(separator: "."))?.tensor(String(parts.last!)))
            #expect(difference(try tensor.floats(golden.engine), try golden.values(key)) < 2e-4, "\(key)")
        }
        #expect(difference(try golden.logits().value.floats(golden.engine), logits) < 2e-4)
        #expect(golden.set.status()["adapters"]?.objectValue?.isEmpty == true)
    }

    /// What is saved has PEFT's keys, values and configuration.
    @Test(arguments: cases.filter { !$0.hasSuffix("two_active") && $0 != "lora_half_files" }) func saved(_ name: String)
        throws
    {
        let golden = try GoldenCase(name)
        try golden.loadAdapters()
        let folder = try TemporaryFolder()
        try golden.set.save("default", path: folder.path + "/out")
        let (written, wanted) = (
            try AdapterFiles.open(path: folder.path + "/out", budget: MemoryBudget()), try golden.files("adapter")
        )
        #expect(Set(written.tensors.names) == Set(wanted.tensors.names))
        for item in wanted.tensors.all {
            let tensor = try #require(written.tensors.peek(item.name))
            #expect(tensor.dtype == item.tensor.dtype && tensor.shape == item.tensor.shape, "\(item.name)")
            #expect(
                difference(try tensor.floats(golden.engine), try item.tensor.floats(golden.engine)) < 1e-6,
                "\(item.name)")
        }
        for (key, value) in wanted.config.pairs
        where !["auto_mapping", "base_model_name_or_path", "revision"].contains(key) {
            if let list = value.arrayValue, let found = written.config[key]?.arrayValue,
                key.hasSuffix("modules") || key == "modules_to_save"
            {
                #expect(Set(list.map { $0.text() }) == Set(found.map { $0.text() }), "\(key)")
            } else {
                #expect(written.config[key] == value, "\(key)")
            }
        }
        #expect(Set(written.config.keys) == Set(wanted.config.keys))
    }

    @Test(arguments: [
        "init_lora_default", "init_lora_gaussian", "init_dora", "init_pissa", "init_pissa_rslora", "init_olora",
        "init_orthogonal", "mica",
    ]) func started(_ name: String) throws {
        let golden = try GoldenCase(name)
        guard let config = golden.description["config"]?.objectValue else { return }
        let base = try golden.logits(.all(golden.model.unadapted), Tape(golden.engine, .f32)).value.floats(
            golden.engine)
        let before = Dictionary(
            uniqueKeysWithValues: try golden.model.layers.map {
                ($0.name, try $0.tensor("weight")!.floats(golden.engine))
            })
        try golden.set.add("default", config)
        let state = Dictionary(uniqueKeysWithValues: try golden.set.state(of: "default").map { ($0.name, $0.tensor) })
        let expected = golden.expected.names.filter { $0.hasPrefix("init.") }
        #expect(Set(expected.map { String($0.dropFirst(5)) }) == Set(state.keys))
        for key in expected {
            let tensor = try #require(state[String(key.dropFirst(5))])
            let (found, wanted) = (try tensor.floats(golden.engine), try golden.values(key))
            #expect(tensor.shape == golden.expected.peek(key)?.shape)
            let mode = golden.description["init_modes"]?[String(key.dropFirst(5))]?.stringValue
            if mode == "exact" || mode == "close" { #expect(difference(found, wanted) < 1e-4, "\(key)") }
            if mode == "stat" {
                let (x, y) = (found.map(abs).reduce(0, +), wanted.map(abs).reduce(0, +))
                #expect(abs(x / max(y, 1e-30) - 1) < (found.count < 256 ? 0.45 : 0.25), "\(key)")
            }
        }
        for key in golden.expected.names where key.hasPrefix("base_after_init.") {
            let parts = key.dropFirst("base_after_init.".count).split(separator: ".")
            let tensor = try #require(
                golden.model.layer(named: parts.dropLast().joined(separator: "."))?.tensor(String(parts.last!)))
            #expect(difference(try tensor.floats(golden.engine), try golden.values(key)) < 1e-4, "\(key)")
        }
        // All of them leave the function of the model alone.
        #expect(difference(try golden.logits().value.floats(golden.engine), base) < 1e-4)
        if golden.expected.contains("logits_init") {
            #expect(golden.error(try golden.logits(), of: "logits_init") < 2e-4)
        }
        try golden.set.remove("default")
        for layer in golden.model.layers {
            #expect(try layer.tensor("weight")?.floats(golden.engine) == before[layer.name])
        }
    }

    @Test func mixedBatch() throws {
        let golden = try GoldenCase("lora_mixed_batch")
        try golden.loadAdapters()
        let routing = try golden.set.routing(samples: ["a", "__base__", "b"])
        #expect(golden.error(try golden.logits(routing, Tape(golden.engine, .f32)), of: "mixed_batch") < 2e-4)
    }

    @Test func scaleAndSwitch() throws {
        let golden = try GoldenCase("lora_set_scale")
        try golden.loadAdapters()
        try golden.set.setScale("default", 0.5)
        #expect(golden.error(try golden.logits(), of: "scaled") < 2e-4)
        let two = try GoldenCase("lora_two_active")
        try two.loadAdapters()
        for name in ["a", "b"] {
            try two.set.setActive([(name, 1)])
            #expect(two.error(try two.logits(), of: "switched.\(name)") < 2e-4)
        }
    }

    @Test func refusedConfigurations() throws {
        let cases = try GoldenCase("errors_config").description["errors"]?.arrayValue ?? []
        for item in cases where item["config"]?["peft_type"]?.stringValue == "LORA" {
            let golden = try GoldenCase("errors_config")
            let config = try #require(item["config"]?.objectValue)
            #expect(throws: PEFTError.self, "\(item["peft"]?.text() ?? "")") { try golden.set.add("default", config) }
            #expect(golden.set.status()["adapters"]?.objectValue?.isEmpty == true)
        }
    }
}

/// One case of the kit, its base opened.
struct GoldenCase {
    static let folder = String(#filePath.dropLast("AdaptersTests/GoldenTests.swift".count)) + "Golden/data"

    let name: String
    let description: JSONObject
    let engine = Engine()
    let model: Model
    let set: AdapterSet
    let expected: TensorSource
    private let inputs: TensorSource?

    init(_ name: String) throws {
        self.name = name
        let path = "\(GoldenCase.folder)/cases/\(name)"
        description = try Files.jsonObject(at: path + "/case.json")
        model = try OpenedModel.open(
            path: "\(GoldenCase.folder)/bases/\(description["base"]!.stringValue!)", engine, compute: .f32
        ).model
        set = AdapterSet(model)
        expected = try Safetensors.open(path: path + "/expected.safetensors", budget: engine.budget)
        inputs =
            Files.isFile(path + "/inputs.safetensors")
            ? try Safetensors.open(path: path + "/inputs.safetensors", budget: engine.budget) : nil
    }

    func files(_ folder: String) throws -> AdapterFiles {
        try .open(path: "\(GoldenCase.folder)/cases/\(name)/\(folder)", budget: engine.budget)
    }

    func loadAdapters() throws {
        for (adapter, folder) in description["adapters"]!.objectValue!.pairs {
            try set.load(adapter, path: "\(GoldenCase.folder)/cases/\(name)/\(folder.stringValue!)", trainable: true)
        }
        try set.setActive(description["active"]!.arrayValue!.map { ($0.stringValue!, 1) })
    }

    private func integers(_ name: String) throws -> [Int32]? {
        guard let tensor = inputs?.peek(name) else { return nil }
        return (0..<tensor.count).map {
            Int32(truncatingIfNeeded: tensor.pointer.load(fromByteOffset: $0 * 8, as: Int64.self))
        }
    }

    /// Of the rows of the logits; language models' are those of the next token.
    var labels: Tensor? {
        get throws {
            guard let labels = try integers("labels") else { return nil }
            guard model.task == .causalLM, let shape = inputs?.peek("labels")?.shape else {
                return try Tensor(engine, labels, shape: [labels.count])
            }
            let length = shape[1]
            let shifted = labels.indices.map { ($0 + 1) % length == 0 ? -100 : labels[$0 + 1] }
            return try Tensor(engine, shifted, shape: [labels.count])
        }
    }

    func logits() throws -> Variable { try logits(.all(set.activeAdaptation()), Tape(engine, .f32)) }

    func logits(_ routing: Routing, _ tape: Tape) throws -> Variable {
        guard let ids = try integers("input_ids"), let shape = inputs?.peek("input_ids")?.shape else {
            let x = try #require(inputs?.peek("x"))
            let context = ForwardContext(
                tape: tape, routing: routing, batch: x.rows, length: 1,
                positions: try Tensor(engine, [Int32](repeating: 0, count: x.rows), shape: [x.rows]))
            let input = ModelInput.features(Variable(x))
            return try model.logits(try model.hidden(input, context), of: input, context)
        }
        let (batch, length) = (shape[0], shape[1])
        var mask: Tensor?
        if let values = try integers("attention_mask") {
            let tensor = try Tensor(engine, [batch, length], .u8)
            for (index, value) in values.enumerated() {
                tensor.pointer.storeBytes(of: UInt8(value), toByteOffset: index, as: UInt8.self)
            }
            mask = tensor
        }
        let context = ForwardContext(
            tape: tape, routing: routing, batch: batch, length: length,
            positions: try Tensor(engine, (0..<batch).flatMap { _ in (0..<Int32(length)) }, shape: [ids.count]),
            keyMask: mask)
        let input = ModelInput.ids(try Tensor(engine, ids, shape: [ids.count]))
        return try model.logits(try model.hidden(input, context), of: input, context)
    }

    func values(_ name: String) throws -> [Float] { try expected.tensor(named: name).floats(engine) }

    /// Relative to the largest expected value; what stands at padded positions does not count.
    func error(_ logits: Variable, of name: String) -> Float {
        guard let wanted = try? values(name), let found = try? logits.value.floats(engine) else { return .infinity }
        guard let mask = try? integers("attention_mask"), wanted.count % mask.count == 0,
            expected.peek(name)?.shape.count == 3
        else { return difference(found, wanted) }
        let width = wanted.count / mask.count
        func seen(_ values: [Float]) -> [Float] {
            values.enumerated().map { mask[$0.offset / width] == 0 ? 0 : $0.element }
        }
        return difference(seen(found), seen(wanted))
    }
}
