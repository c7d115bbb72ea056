import Checkpoints
import Platform
import Tensors
import Testing

@Suite struct ModelFolderTests {
    let budget = MemoryBudget()

    /// A folder with two shards of two tensors.
    private func makeSharded(_ folder: String, index: String? = nil) throws {
        try AtomicFile.write("{\"model_type\": \"llama\"}", to: Files.join(folder, "config.json"))
        try Safetensors.write([NamedTensor("a", tensor([1], [1])), NamedTensor("b", tensor([2], [1]))], to: Files.join(folder, "model-1.safetensors"))
        try Safetensors.write([NamedTensor("c", tensor([3], [1])), NamedTensor("d", tensor([4], [1]))], to: Files.join(folder, "model-2.safetensors"))
        let map = index ?? "\"a\":\"model-1.safetensors\",\"b\":\"model-1.safetensors\",\"c\":\"model-2.safetensors\",\"d\":\"model-2.safetensors\""
        try AtomicFile.write("{\"metadata\":{\"total_size\":16},\"weight_map\":{\(map)}}", to: Files.join(folder, "model.safetensors.index.json"))
    }

    @Test func joinsShards() throws {
        try withTemporaryFolder { folder in
            try makeSharded(folder)
            let model = try ModelFolder(path: folder, budget: budget)
            #expect(model.config["model_type"]?.stringValue == "llama")
            #expect(model.tensors.names == ["a", "b", "c", "d"])
            #expect(values(try model.tensors.tensor(named: "d")) == [4])
            #expect(model.tensors.unusedNames == ["a", "b", "c"])
            #expect(failure { try model.tensors.requireAllTaken(by: "nobody") }?.message.contains("'a', 'b', 'c'") == true)
            #expect(failure { _ = try model.tensors.tensor(named: "e") }?.kind == .notFound)
            #expect(failure { _ = try model.tensors.tensor(named: "a", shape: [2]) }?.kind == .mismatch)
            #expect(model.tokenizerPath == nil)
            try AtomicFile.write("{}", to: Files.join(folder, "tokenizer.json"))
            #expect(model.tokenizerPath == Files.join(folder, "tokenizer.json"))
        }
    }

    @Test(arguments: [
        ("\"a\":\"model-3.safetensors\"", "model-3.safetensors"),
        ("\"a\":\"model-1.safetensors\",\"c\":\"model-2.safetensors\",\"d\":\"model-2.safetensors\"", "does not place there: 'b'"),
        ("\"a\":\"model-1.safetensors\",\"b\":\"model-1.safetensors\",\"x\":\"model-1.safetensors\"", "lacks tensors that the index places there: 'x'"),
        ("\"a\":\"../model-1.safetensors\"", "not the name of a safetensors file"),
        ("\"a\":\"model-1.bin\"", "not the name of a safetensors file"), ("\"a\":7", "an integer"),
    ])
    func namesWhatTheIndexGetsWrong(map: String, words: String) throws {
        try withTemporaryFolder { folder in
            try makeSharded(folder, index: map)
            let error = failure { _ = try ModelFolder(path: folder, budget: budget) }
            #expect(error?.message.contains(words) == true, "\(error?.message ?? "no error")")
        }
    }

    @Test func saysWhatAFolderLacks() throws {
        try withTemporaryFolder { folder in
            func message(_ path: String) -> String { failure { _ = try ModelFolder(path: path, budget: budget) }?.message ?? "no error" }
            #expect(message(folder + "/none").contains("not a folder"))
            #expect(message(folder).contains("no config.json"))
            try AtomicFile.write("{}", to: Files.join(folder, "adapter_config.json"))
            #expect(message(folder).contains("adapter folder"))
            try AtomicFile.write("[1]", to: Files.join(folder, "config.json"))
            #expect(message(folder).contains("an array"))
            try AtomicFile.write("{}", to: Files.join(folder, "config.json"))
            #expect(message(folder).contains("neither model.safetensors"))
            try AtomicFile.write("x", to: Files.join(folder, "pytorch_model.bin"))
            #expect(message(folder).contains("pickle"))
            try AtomicFile.write("x", to: Files.join(folder, "model.safetensors"))
            #expect(message(folder).contains("header"))
        }
    }
}

@Suite struct AdapterFilesTests {
    let budget = MemoryBudget()
    let config = JSONObject(["r": .integer(8), "lora_alpha": .integer(16), "peft_type": .string("LORA"), "target_modules": .array([.string("q_proj")]), "name": .string("Käthe")])

    @Test func writesWhatPEFTReads() throws {
        try withTemporaryFolder { folder in
            let path = Files.join(folder, "deep/er/adapter")
            try AdapterFiles.writeFolder(path, config: config, tensors: [NamedTensor("x.lora_A.weight", tensor([1, 2], [1, 2]))])
            #expect(try Files.names(in: path) == ["adapter_config.json", "adapter_model.safetensors"])
            #expect(try Files.names(in: Files.parent(of: path)) == ["adapter"])
            let text = String(decoding: try bytes(of: Files.join(path, "adapter_config.json")), as: UTF8.self)
            #expect(text == "{\n  \"lora_alpha\": 16,\n  \"name\": \"Käthe\",\n  \"peft_type\": \"LORA\",\n  \"r\": 8,\n  \"target_modules\": [\n    \"q_proj\"\n  ]\n}")
            let read = try AdapterFiles.open(path: path, budget: budget)
            #expect(read.config == config)
            #expect(read.tensors.metadata == ["format": "pt"])
            #expect(values(try read.tensors.tensor(named: "x.lora_A.weight")) == [1, 2])
        }
    }

    /// `Fixtures/peft_adapter` was saved by PEFT 0.21.2: read and written again, both files are the same bytes.
    @Test func writesPEFTsBytes() throws {
        try withTemporaryFolder { folder in
            let path = Files.join(folder, "copy")
            let adapter = try AdapterFiles.open(path: fixture("peft_adapter"), budget: budget)
            #expect(adapter.config["peft_type"]?.stringValue == "LORA")
            #expect(adapter.tensors.names.allSatisfy { $0.hasPrefix("base_model.model.") })
            try AdapterFiles.writeFolder(path, config: adapter.config, tensors: adapter.tensors.all)
            for name in [AdapterFiles.configFile, AdapterFiles.weightsFile] {
                #expect(try bytes(of: Files.join(path, name)) == bytes(of: Files.join(fixture("peft_adapter"), name)), "\(name)")
            }
        }
    }

    @Test func keepsOtherFilesAndMappedTensorsWhenReplaced() throws {
        try withTemporaryFolder { folder in
            try AdapterFiles.writeFolder(folder, config: config, tensors: [NamedTensor("x", tensor([1, 2], [2]))])
            try AtomicFile.write("hello", to: Files.join(folder, "README.md"))
            let old = try AdapterFiles.open(path: folder, budget: budget)
            try AdapterFiles.writeFolder(folder, config: config, tensors: [NamedTensor("x", tensor([3], [1]))])
            #expect(try Files.names(in: folder) == ["README.md", "adapter_config.json", "adapter_model.safetensors"])
            #expect(values(try old.tensors.tensor(named: "x")) == [1, 2])
            #expect(values(try AdapterFiles.open(path: folder, budget: budget).tensors.tensor(named: "x")) == [3])
        }
    }

    @Test func writesAndReadsHDF5() throws {
        try withTemporaryFolder { folder in
            let path = Files.join(folder, "adapter.h5")
            try AdapterFiles.writeHDF5(path, config: config, tensors: [NamedTensor("x.lora_A.weight", tensor([1, 2], [1, 2]))], budget: budget)
            let read = try AdapterFiles.open(path: path, budget: budget)
            #expect(read.config == config)
            #expect(values(try read.tensors.tensor(named: "x.lora_A.weight", shape: [1, 2])) == [1, 2])
        }
    }

    @Test func saysWhatIsMissing() throws {
        try withTemporaryFolder { folder in
            func message(_ path: String) -> String { failure { _ = try AdapterFiles.open(path: path, budget: budget) }?.message ?? "no error" }
            #expect(message(folder + "/none").contains("no adapter"))
            #expect(message(folder).contains("adapter_config.json"))
            try AtomicFile.write("{\"r\": }", to: Files.join(folder, "adapter_config.json"))
            #expect(message(folder).contains("JSON"))
            try AtomicFile.write("{}", to: Files.join(folder, "adapter_config.json"))
            #expect(message(folder).contains("adapter_model.safetensors"))
            try AtomicFile.write("PK", to: Files.join(folder, "adapter_model.bin"))
            #expect(message(folder).contains("pickle"))
            #expect(message(Files.join(folder, "adapter_model.bin")).contains("HDF5"))
            #expect(failure { try AdapterFiles.writeFolder(Files.join(folder, "adapter_model.bin"), config: config, tensors: []) }?.kind == .io)
        }
    }

    #if DEBUG
    /// Every system call of a save fails once; the old adapter must be whole and nothing left over.
    @Test(arguments: [FailureInjection.Call.open, .write, .fsync, .rename, .close, .mkdir]) func losesNothingWhenASaveFails(call: FailureInjection.Call) throws {
        try withTemporaryFolder { folder in
            let old = Files.join(folder, "old")
            let new = Files.join(folder, "new")
            try AdapterFiles.writeFolder(old, config: config, tensors: [NamedTensor("x", tensor([1], [1]))])
            let large = try NamedTensor("x", tensor([Float](repeating: 2, count: 40_000), [40_000]))
            for path in [old, new] {
                for after in 0..<8 {
                    let error = failure {
                        try FailureInjection.$current.withValue(FailureInjection(call, errno: 28, after: after)) {
                            try AdapterFiles.writeFolder(path, config: config, tensors: [large])
                        }
                    }
                    guard let error else { break }
                    #expect(error.message.contains("no space left"), "\(error.message)")
                    #expect(error.detail == 28)
                    // After the renames began a failure to flush the folder is reported, but the files are whole.
                    let read = try? AdapterFiles.open(path: path, budget: budget)
                    #expect(path == new || read != nil)
                    #expect(read?.tensors.names ?? ["x"] == ["x"])
                    #expect(try Files.names(in: old) == ["adapter_config.json", "adapter_model.safetensors"])
                    #expect(try Files.names(in: folder).allSatisfy { !$0.hasSuffix(".tmp") })
                }
            }
        }
    }
    #endif
}
