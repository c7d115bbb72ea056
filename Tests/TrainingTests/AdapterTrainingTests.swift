import Adapters
import Checkpoints
import Platform
import Tensors
import Testing

@testable import Models
@testable import Training

/// Optimizer steps on real adapters against PEFT's (Tests/Golden/README.md): the update of every parameter within 0.1 %.
@Suite struct AdapterTrainingTests {
    @Test(arguments: [
        "train_cosine_accum_clip", "train_lorafa", "train_loraplus", "train_loraplus_embedding",
        "train_schedule_linear", "train_sgd", "lora_basic", "lora_bias_all",
        "lora_bias_lora_only", "lora_bias_term", "lora_embedding_head", "lora_layer_replication",
        "lora_modules_to_save", "lora_tokens", "lora_tokens_tied", "dora_linear", "dora_bias_rslora",
        "dora_embedding", "dora_gpt2", "lora_llama_seqcls",
    ])
    func steps(_ name: String) throws {
        let folder = String(#filePath.dropLast("TrainingTests/AdapterTrainingTests.swift".count)) + "Golden/data"
        let path = "\(folder)/cases/\(name)"
        let test = try Files.jsonObject(at: path + "/case.json")
        let engine = Engine()
        let model = try OpenedModel.open(path: "\(folder)/bases/\(test["base"]!.stringValue!)", engine, compute: .f32)
            .model
        let set = AdapterSet(model)
        try set.load("default", path: path + "/adapter", trainable: true)
        let start = Dictionary(
            uniqueKeysWithValues: try set.state(of: "default").map { ($0.name, try $0.tensor.floats(engine)) })
        let expected = try Safetensors.open(path: path + "/expected.safetensors", budget: engine.budget)
        let batches = try AdapterTrainingTests.batches(
            try Safetensors.open(path: path + "/inputs.safetensors", budget: engine.budget), engine)

        var settings = test["train"]!.objectValue!
        let steps = settings["steps"]!.intValue!
        if settings["max_steps"] == nil { settings["max_steps"] = .integer(Int64(steps)) }
        // What the kit leaves out is a bare optimizer's: constant rate, no clipping.
        if settings["lr_scheduler"] == nil { settings["lr_scheduler"] = .string("constant") }
        if settings["max_grad_norm"] == nil { settings["max_grad_norm"] = .null }
        for key in ["steps", "record", "microbatches", "train_mode"] { settings[key] = nil }
        let options = try TrainerOptions(.object(settings)) { _ in }
        let trainer = try Trainer(model, try Trainee(set), options)
        var losses: [Float] = []
        for step in 1...steps {
            for _ in 0..<options.accumulationSteps {
                losses.append(Float(try trainer.step(batches[losses.count % batches.count]).loss))
            }
            let state = try set.state(of: "default")
            for (key, tensor) in state {
                guard let wanted = try expected.peek("step\(step).\(key)")?.floats(engine), let from = start[key] else {
                    continue
                }
                let made = zip(try tensor.floats(engine), from).map { $0 - $1 }
                let update = zip(wanted, from).map { $0 - $1 }
                let largest = update.map(abs).max() ?? 0
                #expect(
                    (zip(made, update).map { abs($0 - $1) }.max() ?? 0) < 2e-3 * max(largest, 1e-5),
                    "step \(step), \(key)")
            }
        }
        let wanted = try expected.tensor(named: "losses").floats(engine)
        #expect(zip(losses, wanted).allSatisfy { abs($0 - $1) < 5e-4 * max(abs($1), 1) }, "\(losses) \(wanted)")
        guard (try? set.merge(nil, safe: true)) != nil else { return }
        #expect(throws: PEFTError.self) { _ = try trainer.step(batches[0]) }
    }

    /// Micro-batches "mb<i>.…", or one for all.
    private static func batches(_ inputs: TensorSource, _ engine: Engine) throws -> [Batch] {
        let count = Set(inputs.names.filter { $0.hasPrefix("mb") }.map { $0.split(separator: ".")[0] }).count
        return try (0..<max(count, 1)).map { index in
            let prefix = count == 0 ? "" : "mb\(index)."
            func integers(_ name: String) -> [Int32]? {
                guard let tensor = inputs.peek(prefix + name) else { return nil }
                return (0..<tensor.count).map {
                    Int32(truncatingIfNeeded: tensor.pointer.load(fromByteOffset: $0 * 8, as: Int64.self))
                }
            }
            if let x = inputs.peek(prefix + "x") {
                return Batch(
                    rows: x.rows, features: try x.floats(engine), featureShape: [x.columns],
                    labels: integers("labels") ?? [])
            }
            let ids = try #require(inputs.peek(prefix + "input_ids"))
            return Batch(
                rows: ids.shape[0], length: ids.shape[1], ids: integers("input_ids") ?? [],
                labels: integers("labels") ?? [],
                keyMask: integers("attention_mask")?.map { UInt8($0) })
        }
    }
}
