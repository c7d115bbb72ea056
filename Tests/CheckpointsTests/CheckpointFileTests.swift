import Checkpoints
import Glibc
import Platform
import Tensors
import Testing

@Suite struct CheckpointFileTests {
    let budget = MemoryBudget()

    private func read(_ bytes: some Collection<UInt8>) throws -> CheckpointFile { try CheckpointFile.read(mapped(bytes), budget: budget) }

    private func sample(layers: Int = 300) throws -> CheckpointFile {
        var adapter: [NamedTensor] = []
        for layer in 0..<layers { adapter.append(NamedTensor("layers.\(layer).lora_A.weight", try tensor([Float(layer), 1, 2, 3], [2, 2]))) }
        let moments = try [NamedTensor("x", tensor([1, 2, 3], [3])), NamedTensor("empty", tensor([], [0, 2])), NamedTensor("scalar", tensor([5], []))]
        let attributes = JSONObject(["step": .integer(12), "text": .string(String(repeating: "é", count: 100_000)), "lr": .number(1e-4)])
        return CheckpointFile(kind: .training, attributes: attributes, groups: ["adapter": adapter, "optimizer/exp_avg": moments, "optimizer/exp_avg_sq": [], "random": []])
    }

    @Test func readsWhatH5pyWrites() throws {
        let file = try CheckpointFile.read(path: fixture("h5py_adapter.h5"), budget: budget)
        #expect(file.kind == .training)
        #expect(file.attributes["step"]?.intValue == 12)
        #expect(file.attributes["adapter_config"]?["peft_type"]?.stringValue == "LORA")
        #expect(file.groups.keys.sorted() == ["adapter", "optimizer/exp_avg", "types"])
        let types = try file.source("types")
        let expected: [(String, DType)] = [("f4", .f32), ("f2", .f16), ("f8", .f64), ("i1", .i8), ("i2", .i16), ("i4", .i32), ("i8", .i64)]
        for (name, dtype) in expected {
            let tensor = try types.tensor(named: name, shape: [2, 3])
            #expect(tensor.dtype == dtype)
            #expect(values(tensor) == ramp(6), "\(name)")
        }
        #expect(values(try types.tensor(named: "u1", shape: [3])) == [0, 1, 2])
        #expect(values(try types.tensor(named: "scalar", shape: [])) == [-3])
        #expect(values(try types.tensor(named: "empty", shape: [0, 4])).isEmpty)
        let adapter = try AdapterFiles(file, origin: "test").tensors
        #expect(adapter.names.count == 40)
        for layer in 0..<40 {
            let name = "base_model.model.model.layers.\(layer).self_attn.q_proj.lora_A.weight"
            #expect(values(try adapter.tensor(named: name, shape: [2, 2])) == ramp(4).map { $0 + Double(layer) })
        }
    }

    @Test(arguments: [
        ("chunked", "chunks"), ("compressed", "filter"), ("soft", "soft link"), ("externallink", "new-style"), ("externaldata", "another file"),
        ("virtual", "virtual"), ("vlen", "variable-length"), ("bool", "bool"), ("bigendian", "little-endian"), ("tracked", "header|new-style"),
        ("cycle", "nested deeper|circle|outside a group"), ("unwritten", "never written"), ("nomagic", "peftswift_checkpoint"), ("latest", "superblock version"),
        ("userblock", "signature"),
    ])
    func refusesByName(file: String, words: String) throws {
        let error = failure { _ = try CheckpointFile.read(path: fixture("refused_\(file).h5"), budget: budget) }
        #expect(words.split(separator: "|").contains { error?.message.contains($0) == true }, "\(error?.message ?? "no error")")
    }

    @Test func writesAndReads() throws {
        try withTemporaryFolder { folder in
            let path = Files.join(folder, "checkpoint.h5")
            let written = try sample()
            try written.write(to: path, budget: budget)
            let file = try CheckpointFile.read(path: path, budget: budget)
            #expect(file.kind == .training)
            #expect(file.attributes == written.attributes)
            #expect(file.groups.keys.sorted() == ["adapter", "optimizer/exp_avg", "optimizer/exp_avg_sq", "random"])
            let adapter = try file.source("adapter")
            #expect(adapter.names.count == 300)
            for layer in 0..<300 { #expect(values(try adapter.tensor(named: "layers.\(layer).lora_A.weight", shape: [2, 2])) == [Double(layer), 1, 2, 3]) }
            let moments = try file.source("optimizer/exp_avg")
            #expect(values(try moments.tensor(named: "x")) == [1, 2, 3])
            #expect(try moments.tensor(named: "empty").shape == [0, 2])
            #expect(values(try moments.tensor(named: "scalar", shape: [])) == [5])
            // Equal contents make equal files.
            try written.write(to: path + "2", budget: budget)
            #expect(try bytes(of: path) == bytes(of: path + "2"))
            #expect(try Files.names(in: folder) == ["checkpoint.h5", "checkpoint.h52"])
        }
    }

    @Test func keepsEveryElementType() throws {
        try withTemporaryFolder { folder in
            let path = Files.join(folder, "types.h5")
            let source = try Safetensors.open(path: fixture("all_types.safetensors"), budget: budget)
            let plain = source.all.filter { $0.tensor.dtype != .bool && !$0.name.contains("/") }
            try CheckpointFile(kind: .adapter, attributes: JSONObject(), groups: ["types": plain]).write(to: path, budget: budget)
            let read = try CheckpointFile.read(path: path, budget: budget).source("types")
            for item in plain {
                let tensor = try read.tensor(named: item.name, shape: item.tensor.shape)
                #expect(tensor.dtype == item.tensor.dtype && values(tensor) == values(item.tensor), "\(item.name)")
            }
            #expect(plain.contains { $0.tensor.dtype == .bf16 } && plain.contains { $0.tensor.dtype == .f16 })
        }
    }

    @Test func refusesWhatHDF5CannotHold() throws {
        try withTemporaryFolder { folder in
            let path = Files.join(folder, "x.h5")
            let blocks = try Tensor(Storage(byteCount: 20, budget: budget, category: .weights), dtype: .q4_1, shape: [32])
            let plain = try tensor([1], [1])
            func message(_ groups: [String: [NamedTensor]]) -> String {
                failure { try CheckpointFile(kind: .adapter, attributes: JSONObject(), groups: groups).write(to: path, budget: budget) }?.message ?? "no error"
            }
            #expect(message(["adapter": [NamedTensor("q", blocks)]]).contains("q4_1"))
            #expect(message(["adapter": [NamedTensor("a/b", plain)]]).contains("'a/b'"))
            #expect(message(["adapter": [NamedTensor("a", plain), NamedTensor("a", plain)]]).contains("adapter/a"))
            #expect(message(["state": []]).contains("state"))
            #expect(message(["a/b/c": []]).contains("a/b/c"))
            #expect(message(["../a": []]).contains("../a"))
            #expect(try Files.names(in: folder).isEmpty)
            #expect(failure { try sample().write(to: folder, budget: budget) }?.message.contains("folder") == true)
        }
    }

    @Test func survivesTruncation() throws {
        let all = try bytes(of: fixture("h5py_adapter.h5"))
        for count in Array(0..<2000) + Array(stride(from: 2000, to: all.count, by: 61)) {
            #expect(failure { _ = try read(all.prefix(count)) }?.kind == .format, "\(count) bytes")
        }
    }

    /// Bit flips everywhere: a wrong file is an error or wrong values, never a crash.
    @Test func survivesFlippedBits() throws {
        for name in ["h5py_adapter.h5", "refused_virtual.h5", "refused_tracked.h5", "refused_cycle.h5"] {
            let all = try bytes(of: fixture(name))
            for bit in stride(from: 0, to: all.count * 8, by: name == "h5py_adapter.h5" ? 41 : 11) {
                var damaged = all
                damaged[bit / 8] ^= 1 << (bit % 8)
                #expect(survives { _ = try read(damaged) })
            }
        }
    }

    /// Whole bytes of addresses and sizes replaced by hostile values.
    @Test func survivesHostileNumbers() throws {
        let all = try bytes(of: fixture("refused_soft.h5"))
        for position in stride(from: 0, to: all.count - 8, by: 4) {
            for value in [UInt64.max, UInt64(all.count), 1 << 63, 0x7fff_ffff_ffff_fff8, 96] {
                var damaged = all
                withUnsafeBytes(of: value.littleEndian) { damaged.replaceSubrange(position..<position + 8, with: $0) }
                #expect(survives { _ = try read(damaged) })
            }
        }
    }

    @Test func savesInParallel() async throws {
        try await withThrowingTaskGroup(of: Bool.self) { group in
            for index in 0..<4 {
                group.addTask {
                    let path = "/tmp/peftswift-test-parallel-\(UInt64.random(in: .min ... .max)).h5"
                    defer { unlink(path) }
                    try sample(layers: 20 + index).write(to: path, budget: budget)
                    return try CheckpointFile.read(path: path, budget: budget).groups["adapter"]?.count == 20 + index
                }
            }
            for try await isRight in group { #expect(isRight) }
        }
    }
}

@Suite struct BaseFingerprintTests {
    @Test func tellsBasesApart() throws {
        let a = try NamedTensor("a", tensor([1, 2, 3, 4], [2, 2]))
        let b = try NamedTensor("b", tensor([5], [1]))
        let base = BaseFingerprint(family: "llama", [a, b])
        #expect(base.compare(BaseFingerprint(family: "llama", [b, a])) == .same)
        let bytes = try BaseFingerprint(family: "llama", [NamedTensor("a", tensor([1, 2, 3, 5], [2, 2])), b])
        #expect(base.compare(bytes) == .sameArchitecture)
        let shape = try BaseFingerprint(family: "llama", [NamedTensor("a", tensor([1, 2, 3, 4], [4])), b])
        #expect(base.compare(shape) == .different)
        #expect(base.compare(BaseFingerprint(family: "mistral", [a, b])) == .different)
        #expect(base.compare(BaseFingerprint(family: "llama", [a])) == .different)
        #expect(try BaseFingerprint(base.json) == base)
        #expect(failure { _ = try BaseFingerprint(JSONObject(["architecture": .string("xyz")])) }?.kind == .format)
    }

    /// FNV-1a of the bytes that the format of the fingerprint prescribes, computed by hand in Python:
    /// h = 0xcbf29ce484222325; for c in b"llama\xffw\xff" + (1).to_bytes(8,"little") + (2).to_bytes(8,"little"): h = (h ^ c) * 0x100000001b3 % 2**64
    @Test func isFNV1a() throws {
        let fingerprint = BaseFingerprint(family: "llama", [NamedTensor("w", try tensor([1, 2], [2]))])
        #expect(fingerprint.architecture == 0x6346087e7599b2d2)
    }
}
