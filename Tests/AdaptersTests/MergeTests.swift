import Autograd
import Platform
import Synchronization
import Tensors
import Testing

@testable import Adapters
@testable import Models

@Suite struct MergeTests {
    private static let all = names("q_proj", "v_proj", "c_fc", "embed_tokens", "lm_head")

    static let variants: [JSONObject] = [
        ["target_modules": all], ["target_modules": all, "use_dora": .bool(true)],
        ["target_modules": names("q_proj", "c_fc"), "lora_bias": .bool(true)],
        ["target_modules": all, "bias": .string("all")],
        ["target_modules": names("q_proj"), "trainable_token_indices": .array([.integer(5), .integer(7)])],
        ["target_modules": names("q_proj", "c_fc"), "bias": .string("all"), "use_dora": .bool(true)],
        ["target_modules": all, "use_rslora": .bool(true)],
        ["target_modules": names("q_proj"), "modules_to_save": names("norm", "lm_head")],
    ]

    /// merge(W)·x == hooks(W, x), with weights and scales, and back to the very tensors.
    @Test(arguments: variants) func mergedIsTheSameFunction(_ changes: JSONObject) throws {
        let tiny = try TinyModel()
        try tiny.set.add("a", lora(changes))
        try tiny.randomize("a")
        try tiny.set.setScale("a", 0.5)
        try tiny.set.setActive([("a", 1.5)])
        let (hooked, storages) = (
            try tiny.logits(), tiny.model.layers.flatMap { $0.tensors.map { ObjectIdentifier($0.tensor.storage) } }
        )
        _ = try tiny.set.merge(nil, safe: true)
        #expect(difference(try tiny.logits(), hooked) < 1e-4)
        #expect(tiny.set.status()["merged"] == names("a"))
        // What is merged already is not merged twice.
        _ = try tiny.set.merge(nil, safe: true)
        #expect(difference(try tiny.logits(), hooked) < 1e-4)
        try tiny.set.unmerge()
        #expect(try tiny.logits() == hooked)
        #expect(tiny.model.layers.flatMap { $0.tensors.map { ObjectIdentifier($0.tensor.storage) } } == storages)
        #expect(throws: PEFTError.self) { try tiny.set.unmerge() }
    }

    @Test func severalAdapters() throws {
        let tiny = try TinyModel()
        try tiny.set.add("a", lora(["use_dora": .bool(true)]))
        try tiny.set.add("b", lora(["target_modules": MergeTests.all]))
        try tiny.set.add("c", lora(["use_dora": .bool(true), "r": .integer(2)]))
        for (index, name) in ["a", "b", "c"].enumerated() { try tiny.randomize(name, seed: UInt64(index)) }
        try tiny.set.setActive([("a", 1), ("c", 0.5), ("b", -1)])
        let hooked = try tiny.logits()
        _ = try tiny.set.merge(["a"], safe: false)
        _ = try tiny.set.merge(["c", "b"], safe: true)
        #expect(difference(try tiny.logits(), hooked) < 1e-4)
        try tiny.set.unmerge()
        #expect(try tiny.logits() == hooked)
        _ = try tiny.set.merge(nil, safe: true)
        try tiny.set.mergeAndUnload()
        #expect(difference(try tiny.logits(), hooked) < 1e-4)
        #expect(throws: PEFTError.self) { try tiny.set.unmerge() }
    }

    /// Weights of few bits are quantised again; the report says what of the change is in them.
    @Test(arguments: [DType.bf16, .f16, .q8_0, .q4_1, .q4_0, .q5_0, .q5_1]) func intoOtherFormats(_ dtype: DType) throws
    {
        let tiny = try TinyModel(dtype: dtype)
        try tiny.set.add("a", lora(["target_modules": names("q_proj", "v_proj", "c_fc")]))
        try tiny.randomize("a")
        let hooked = try tiny.logits()
        let base = try tiny.logits(.all(tiny.model.unadapted))
        let report = try tiny.set.merge(nil, safe: true)
        let kept = try #require(report["kept"]?.doubleValue)
        #expect(kept > 0.9 && kept <= 1, "\(dtype): \(kept)")
        #expect(report["layers"]?.arrayValue?.count == 5)
        #expect(tiny.network.blocks.allSatisfy { $0.q.weight.dtype == dtype && $0.v.weight.dtype == dtype })
        #expect(difference(try tiny.logits(), hooked) < difference(base, hooked) / 2)
        try tiny.set.unmerge()
        #expect(try tiny.logits() == hooked)
    }

    /// A change too small for the format is swallowed, and the report says so.
    @Test func swallowed() throws {
        let tiny = try TinyModel(dtype: .q4_0)
        try tiny.set.add("a", lora(["init_lora_weights": .bool(true)]))
        try tiny.randomize("a", scale: 1e-4)
        let kept = try #require(try tiny.set.merge(nil, safe: true)["kept"]?.doubleValue)
        #expect(kept < 0.5, "\(kept)")
        #expect(tiny.messages.all.contains { $0.contains("q8_0") })
        // A format with room for it.
        try tiny.set.unmerge()
        let roomy = try #require(try tiny.set.merge(nil, safe: true, as: .f32)["kept"]?.doubleValue)
        #expect(roomy > 0.9 && tiny.network.blocks[0].q.weight.dtype == .f32)
        try tiny.set.unmerge()
        #expect(tiny.network.blocks[0].q.weight.dtype == .q4_0)
        try tiny.set.mergeAndUnload()
        #expect(tiny.network.blocks[0].q.weight.dtype == .q8_0)
    }

    @Test func notFinite() throws {
        let tiny = try TinyModel()
        try tiny.set.add("a", lora())
        try tiny.randomize("a")
        let key = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"
        try tiny.set.setState(
            of: "a", [(key, try Tensor(tiny.engine, [Float](repeating: .nan, count: 32 * 4), shape: [32, 4]))])
        let before = try tiny.model.layers.map { try $0.tensors[0].tensor.floats(tiny.engine) }
        let error = failure {
            _ = try tiny.set.merge(nil, safe: true)
        }
        #expect(error?.kind == .numeric && error?.says("layers.1.self_attn.v_proj") == true)
        #expect(try tiny.model.layers.map { try $0.tensors[0].tensor.floats(tiny.engine) } == before)
        #expect(tiny.set.status()["merged"] == .array([]))
        _ = try tiny.set.merge(nil, safe: false)
        try tiny.set.unmerge()
        #expect(try tiny.model.layers.map { try $0.tensors[0].tensor.floats(tiny.engine) } == before)
    }

    @Test func whatIsNotPossible() throws {
        let tiny = try TinyModel()
        #expect(throws: PEFTError.self) { _ = try tiny.set.merge(nil, safe: true) }
        try tiny.set.add("a", lora(["lora_bias": .bool(true)]))
        let error = failure {
            _ = try tiny.set.merge(nil, safe: true)
        }
        #expect(error?.kind == .unsupported && error?.says("v_proj") == true)
        #expect(throws: PEFTError.self) { _ = try tiny.set.merge(["nobody"], safe: true) }
        try tiny.set.remove("a")
        try tiny.set.add("b", lora())
        _ = try tiny.set.merge(nil, safe: true)
        #expect(throws: PEFTError.self) { try tiny.set.remove("b") }
        #expect(throws: PEFTError.self) { try tiny.set.setScale("b", 2) }
        #expect(throws: PEFTError.self) { _ = try tiny.set.routing(samples: ["b", nil]) }
        #expect(throws: PEFTError.self) { try tiny.set.add("p", lora(["init_lora_weights": .string("pissa")])) }
    }

    /// As in PEFT: choosing adapters or disabling them takes out what is merged.
    @Test func choosingUnmerges() throws {
        let tiny = try TinyModel()
        let base = try tiny.logits()
        for name in ["a", "b"] {
            try tiny.set.add(name, lora())
            try tiny.randomize(name, seed: name == "a" ? 1 : 2)
        }
        try tiny.set.setActive([("b", 1)])
        let b = try tiny.logits()
        try tiny.set.setActive([("a", 1)])
        _ = try tiny.set.merge(nil, safe: true)
        #expect(throws: PEFTError.self) { try tiny.set.setActive([("nobody", 1)]) }
        #expect(tiny.set.status()["merged"] == names("a"))
        try tiny.set.setActive([("b", 1)])
        #expect(try tiny.logits() == b)
        _ = try tiny.set.merge(nil, safe: true)
        tiny.set.setEnabled(false)
        #expect(try tiny.logits() == base)
        tiny.set.setEnabled(true)
        #expect(try tiny.logits() == b)
    }

    /// Computations see an adapter merged or hooked, never both or neither.
    @Test func mergingUnderRunningComputations() throws {
        let tiny = try TinyModel()
        try tiny.set.add("a", lora(["use_dora": .bool(true)]))
        try tiny.randomize("a")
        let wanted = try tiny.logits()
        let worst = Mutex<Float>(0)
        Threads.run(3) { thread in
            for _ in 0..<40 {
                if thread == 0 {
                    _ = try? tiny.set.merge(nil, safe: true)
                    try? tiny.set.unmerge()
                } else {
                    let found = tiny.model.lock.read { (try? tiny.logits()) ?? [] }
                    let error = difference(found, wanted)
                    worst.withLock { $0 = max($0, error) }
                }
            }
        }
        #expect(worst.withLock { $0 } < 1e-4)
    }

    @Test(arguments: ["pissa", "pissa_niter_8", "olora"]) func residuals(_ name: String) throws {
        for dtype in [DType.f32, .bf16, .q4_1] {
            let tiny = try TinyModel(dtype: dtype)
            let base = try tiny.logits()
            try tiny.set.add(
                "a", lora(["init_lora_weights": .string(name), "target_modules": names("q_proj", "v_proj", "c_fc")]))
            #expect(tiny.network.blocks[0].q.weight.dtype == (dtype == .q4_1 ? .q8_0 : dtype))
            #expect(difference(try tiny.logits(), base) < (dtype == .f32 ? 1e-4 : 0.05), "\(dtype)")
            #expect(difference(try tiny.logits(.all(tiny.model.unadapted)), base) > 0.05)
            // Saved and loaded into a fresh model, the same residual is taken again.
            try tiny.randomize("a", scale: 0.1)
            let folder = try TemporaryFolder()
            try tiny.set.save("a", path: folder.path + "/a")
            let other = try TinyModel(dtype: dtype)
            try other.set.load("b", path: folder.path + "/a", trainable: false)
            #expect(difference(try other.logits(), try tiny.logits()) < 1e-5)
            try tiny.set.remove("a")
            #expect(try tiny.logits() == base)
        }
    }
}
