import Autograd
import Models
import Platform
import Tensors
import Testing

@testable import Adapters

@Suite struct LoRATests {
    /// y = x·(W + s·B·A)ᵀ, computed in double from the values that would be saved.
    @Test func branchIsTheProductOfItsFactors() throws {
        let tiny = try TinyModel()
        try tiny.set.add("a", lora(["use_rslora": .bool(true)]))
        let before = try tiny.logits()
        try tiny.randomize("a")
        let state = Dictionary(uniqueKeysWithValues: try tiny.set.state(of: "a").map { ($0.name, $0.tensor) })
        #expect(difference(try tiny.logits(), before) > 0.01)
        for layer in tiny.network.blocks.flatMap({ [$0.q, $0.v] }) {
            let key = "base_model.model.\(layer.name)"
            let a = try #require(state[key + ".lora_A.weight"]), b = try #require(state[key + ".lora_B.weight"])
            let (av, bv) = (try a.floats(tiny.engine), try b.floats(tiny.engine))
            var w = try layer.weight.floats(tiny.engine)
            for o in 0..<layer.outputSize {
                for i in 0..<layer.inputSize {
                    w[o * layer.inputSize + i] += (0..<4).reduce(0) {
                        $0 + 3 * bv[o * 4 + $1] * av[$1 * layer.inputSize + i]
                    }  // 6/√4
                }
            }
            try layer.setTensor("weight", try Tensor(tiny.engine, w, shape: layer.weight.shape))
        }
        let adapted = try tiny.logits(.all(tiny.model.unadapted))
        let explicit = try TinyModel()
        try explicit.set.add("a", lora(["use_rslora": .bool(true)]))
        try explicit.set.setState(of: "a", state.map { ($0.key, $0.value) })
        #expect(difference(try explicit.logits(), adapted) < 1e-5)
    }

    @Test func aFreshAdapterChangesNothing() throws {
        let tiny = try TinyModel()
        let base = try tiny.logits()
        try tiny.set.add("a", lora(["target_modules": names("q_proj", "c_fc", "embed_tokens", "lm_head")]))
        #expect(try tiny.logits() == base)
        try tiny.set.add("b", lora(["init_lora_weights": .bool(false)]))
        try tiny.set.setActive([("b", 1)])
        #expect(difference(try tiny.logits(), base) > 0.01)
    }

    @Test("copies that few rows read are adapters' memory, 2 bytes a parameter; without room for them there are none")
    func copies() throws {
        let (limit, parameters) = (1 << 20, 2 * 64 * (32 + 64 + 64 + 32))
        var found: Set<Int> = []
        for room in stride(from: 0, through: 128 << 10, by: 2 << 10) {
            let tiny = try TinyModel(limit: limit)
            let budget = tiny.engine.budget
            try tiny.set.add("a", lora(["r": .integer(64)]))
            try tiny.randomize("a", scale: 0.05)
            let apart = try tiny.logits(tape: Tape(tiny.engine, .bf16, gradients: GradientStore(tiny.engine)))
            var filling: [Storage] = []
            while budget.statistics.live + 1024 <= limit - room { filling.append(try Storage(byteCount: 1024, budget: budget, category: .scratch)) }
            let before = budget.statistics.byCategory[MemoryCategory.adapters.rawValue]
            do {
                #expect(difference(try tiny.logits(tape: Tape(tiny.engine, .bf16)), apart) < 0.05)
                found.insert(budget.statistics.byCategory[MemoryCategory.adapters.rawValue] - before)
            } catch let error as PEFTError {
                #expect(error.kind == .memory && found.isEmpty)
            }
            withExtendedLifetime(filling) {}
        }
        #expect(found == [0, 2 * parameters])
    }

    @Test func savedKeysAreThoseOfPEFT() throws {
        let tiny = try TinyModel()
        try tiny.set.add(
            "a",
            lora([
                "target_modules": names("v_proj", "embed_tokens"), "layers_to_transform": .null,
                "lora_bias": .bool(false),
            ]))
        #expect(
            try tiny.set.state(of: "a").map(\.name).sorted() == [
                "base_model.model.model.embed_tokens.base_layer.weight",
                "base_model.model.model.embed_tokens.lora_embedding_A",
                "base_model.model.model.embed_tokens.lora_embedding_B",
                "base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight",
                "base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight",
                "base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight",
                "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight",
            ])
    }

    /// Saved, loaded into another model object: the same bits, in a folder and in an HDF5 file.
    @Test(arguments: ["adapter", "adapter.h5"]) func roundTrip(_ name: String) throws {
        let folder = try TemporaryFolder()
        let tiny = try TinyModel()
        try tiny.set.add(
            "a",
            lora([
                "target_modules": names("q_proj", "c_fc", "embed_tokens"), "lora_dropout": .number(0.5),
                "bias": .string("lora_only"),
            ]))
        try tiny.randomize("a")
        try tiny.set.save("a", path: folder.path + "/" + name)
        let other = try TinyModel()
        try other.set.load("b", path: folder.path + "/" + name, trainable: false)
        #expect(try other.logits() == tiny.logits())
        #expect(try other.set.configuration(of: "b") == tiny.set.configuration(of: "a"))
        let (a, b) = (try tiny.set.state(of: "a"), try other.set.state(of: "b"))
        #expect(a.map(\.name) == b.map(\.name))
        for (x, y) in zip(a, b) { #expect(try x.tensor.floats(tiny.engine) == y.tensor.floats(tiny.engine)) }
        #expect(try other.set.trainableParameters().isEmpty)
    }

    /// By differences.
    @Test(arguments: [
        JSONObject(), ["lora_bias": .bool(true)], ["bias": .string("all")],
        ["modules_to_save": names("norm", "lm_head")],
    ])
    func gradients(_ changes: JSONObject) throws {
        let tiny = try TinyModel()
        var config = changes
        let bias = changes["lora_bias"] != nil
        config["target_modules"] = bias ? names("q_proj", "c_fc") : names("q_proj", "c_fc", "embed_tokens")
        try tiny.set.add("a", lora(config))
        try tiny.randomize("a")
        try tiny.checkGradients(seed: 9)
    }

    @Test("Arrow: what is below learns through the experts' shares, as in PEFT")
    func arrow() throws {
        let tiny = try TinyModel()
        let experts = ["task_0", "task_1", "task_2"], place: JSONValue = names("layers.1.self_attn.q_proj")
        for (index, name) in experts.enumerated() {
            try tiny.set.add(name, lora(["target_modules": place]))
            try tiny.randomize(name, seed: UInt64(index), scale: 0.5)
        }
        try tiny.set.add("low", lora(["target_modules": names("layers.0.self_attn.v_proj")]))
        try tiny.randomize("low", seed: 9)
        let arrow: JSONObject = ["task_adapter_names": .array(experts.map { .string($0) }), "top_k": .integer(2), "router_temperature": .number(0.5)]
        try tiny.set.add("arrow_router", lora(["target_modules": place, "arrow_config": .object(arrow)]))
        try tiny.set.setActive([("low", 1), ("arrow_router", 1)])
        try tiny.checkGradients(seed: 4) { $0.hasPrefix("low|") }
    }
}
