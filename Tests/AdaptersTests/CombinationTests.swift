import Checkpoints
import Platform
import Quantization
import Tensors
import Testing

@testable import Adapters
@testable import Merging
@testable import Models

/// Combining, converting, extracting. The formulas of PEFT are checked by the golden cases `weighted_*` and `convert_*`.
@Suite struct CombinationTests {
    /// Any method becomes a LoRA that does the same, where LoRA can: what changes norms or nothing that is a weight cannot.
    @Test("conversion to LoRA with all of the energy is the same function", arguments: MethodCase.all)
    func conversion(_ item: MethodCase) throws {
        let tiny = try TinyModel()
        try tiny.set.add("a", item.config)
        try tiny.randomize("a", scale: item.noise)
        try tiny.set.setScale("a", 0.5)
        let wanted = try tiny.logits()
        let options: JSONObject = ["svd_energy": .number(1)]
        let isPossible = item.isMergeable && item.type != "LN_TUNING"
        guard isPossible else {
            #expect(failure { _ = try tiny.set.combine([("a", 1)], into: "b", options) }?.kind == .unsupported)
            return
        }
        let report = try tiny.set.combine([("a", 1)], into: "b", options)
        #expect(try #require(report["error"]?.doubleValue) < 1e-3)
        try tiny.set.setActive([("b", 1)])
        #expect(difference(try tiny.logits(), wanted) < 1e-3)
        #expect(try tiny.set.configuration(of: "b")["peft_type"] == .string("LORA"))
    }

    /// The stated error is the distance of the weights.
    @Test func statedError() throws {
        let tiny = try TinyModel()
        try tiny.set.add("a", ["peft_type": .string("LOHA"), "r": .integer(4), "target_modules": names("q_proj")])
        try tiny.set.add("b", lora(["target_modules": names("q_proj", "c_fc", "embed_tokens")]))
        for (seed, name) in ["a", "b"].enumerated() { try tiny.randomize(name, seed: UInt64(seed)) }
        let parts = try ["a", "b"].map { try tiny.set.contribution(of: $0) }
        for (weights, rank) in [([0.7, -0.4], 3), ([1, 1], 1)] as [([Double], Int64)] {
            let report = try tiny.set.combine([("a", weights[0]), ("b", weights[1])], into: "c", ["svd_rank": .integer(rank)])
            let made = try tiny.set.contribution(of: "c")
            var (lost, square) = (0.0, 0.0)
            for layer in made.layers {
                var sum = [Float](repeating: 0, count: layer.tensor("weight")?.count ?? 0)
                for (part, weight) in zip(parts, weights) {
                    guard let change = try part.change(of: layer) else { continue }
                    for (index, value) in try change.matrix.dense(tiny.engine).floats(tiny.engine).enumerated() { sum[index] += Float(weight) * value }
                }
                let got = try #require(try made.change(of: layer)).matrix.dense(tiny.engine).floats(tiny.engine)
                lost += zip(sum, got).reduce(0) { $0 + Double($1.0 - $1.1) * Double($1.0 - $1.1) }
                square += sum.reduce(0) { $0 + Double($1) * Double($1) }
            }
            let stated = try #require(report["error"]?.doubleValue)
            #expect(abs(stated - (lost / square).squareRoot()) < 1e-4)
            #expect(report["rank"]?.intValue == Int(rank))
            try tiny.set.remove("c")
        }
    }

    /// A matrix by its factors, and by itself: one decomposition.
    @Test func directionsOfProducts() throws {
        let engine = Engine()
        var random = RandomStream(seed: 9)
        func matrix(_ shape: [Int]) throws -> Tensor { try Tensor(engine, (0..<shape[0] * shape[1]).map { _ in random.normal() }, shape: shape) }
        let product = WeightChange.Matrix.product(b: try matrix([30, 4]), a: try matrix([4, 25]), scale: -0.5)
        let (decompositions, dense) = (try Decompositions(engine), WeightChange.Matrix.dense(try product.dense(engine)))
        let (one, other) = (try decompositions.lowRank(product, .fixed(2)), try decompositions.lowRank(dense, .fixed(2)))
        #expect(abs(one.lost - other.lost) < 1e-3 * other.square && abs(one.square - other.square) < 1e-4 * other.square)
        func values(_ factors: LowRank) throws -> [Float] { try WeightChange.Matrix.product(b: factors.b, a: factors.a, scale: 1).dense(engine).floats(engine) }
        #expect(difference(try values(one), try values(other)) < 1e-4)
        #expect(abs(try product.inner(product, engine) - other.square) < 1e-4 * other.square)
        let all = try decompositions.lowRank(product, .energy(1))
        #expect(all.rank <= 4 && all.lost < 1e-6 * all.square)
    }

    // MARK: Pruning

    private func pruned(_ pruning: Pruning, _ values: [Float], density: Double, columns: Int? = nil) throws -> [Float] {
        let engine = Engine()
        let columns = columns ?? values.count
        let x = try Tensor(engine, values, shape: [values.count / columns, columns])
        var random = RandomStream(seed: 1)
        pruning(x, density: density, &random)
        return try x.floats(engine)
    }

    @Test func magnitude() throws {
        // int(0.5 · 7) = 3; of two equal ones the first.
        #expect(try pruned(.magnitude, [1, -5, 2, 2, 0, -2.5, 1e-20], density: 0.5) == [0, -5, 2, 0, 0, -2.5, 0])
        #expect(try pruned(.magnitude, [1, -5, 2], density: 1) == [1, -5, 2])
        #expect(try pruned(.magnitude, [1, -5, 2], density: 0.1) == [0, 0, 0])
        var random = RandomStream(seed: 4)
        let values = (0..<5000).map { _ in random.normal() }
        let kept = try pruned(.magnitude, values, density: 0.37)
        let border = values.map(abs).sorted(by: >)[1849]
        #expect(zip(values, kept).allSatisfy { $1 == (abs($0) >= border ? $0 : 0) })
    }

    @Test func band() throws {
        // 10 values: the largest 2 go, then the largest 5 stay.
        #expect(try pruned(.band(gamma: 0.2), [1, -2, 3, -4, 5, -6, 7, -8, 9, -10], density: 0.5) == [0, 0, 0, -4, 5, -6, 7, -8, 0, 0])
    }

    /// What is kept grows so that the expectation stays; DELLA keeps large values more often.
    @Test func random() throws {
        let values = (0..<40000).map { Float($0 % 100 + 1) }
        let dare = try pruned(.random, values, density: 0.3)
        #expect(abs(Double(dare.count { $0 != 0 }) / 40000 - 0.3) < 0.01)
        #expect(zip(values, dare).allSatisfy { $1 == 0 || abs($1 - $0 / 0.3) < 1e-3 * $0 })
        let della = try pruned(.ranked(epsilon: 0.2), values, density: 0.3, columns: 100)
        let (small, large) = ((0..<400).reduce(0) { $0 + (della[$1 * 100 + 5] != 0 ? 1 : 0) }, (0..<400).reduce(0) { $0 + (della[$1 * 100 + 95] != 0 ? 1 : 0) })
        #expect(abs(Double(small) / 400 - 0.12) < 0.06 && abs(Double(large) / 400 - 0.484) < 0.08, "\(small), \(large)")
        let sums = (values.reduce(0) { $0 + Double($1) }, della.reduce(0) { $0 + Double($1) })
        #expect(abs(sums.1 / sums.0 - 1) < 0.02)
    }

    // MARK: Extraction, residues

    @Test func extraction() throws {
        let (base, tuned) = (try TinyModel(dtype: .f32), try TinyModel(dtype: .f32))
        try tuned.set.add("a", lora(["target_modules": names("q_proj", "v_proj", "c_fc")]))
        try tuned.randomize("a")
        try tuned.set.mergeAndUnload()
        let report = try base.set.extract(from: tuned.model, into: "b", ["svd_rank": .integer(4)])
        #expect(difference(try base.logits(), try tuned.logits()) < 1e-3)
        #expect(try #require(report["error"]?.doubleValue) < 1e-3)
        #expect(report["left_out"] == .array([]))
        let other = try base.set.extract(from: tuned.model, into: "c", ["svd_rank": .integer(4), "target_modules": names("q_proj")])
        #expect(other["left_out"]?.arrayValue?.count == 3)
        #expect(failure { _ = try base.set.extract(from: base.model, into: "d", ["svd_rank": .integer(4)]) }?.kind == .argument)
        #expect(failure { _ = try base.set.extract(from: tuned.model, into: "d", [:]) }?.says("svd_rank") == true)
    }

    /// What four bits swallow is kept beside them.
    @Test func residue() throws {
        let tiny = try TinyModel(dtype: .q4_0)
        try tiny.set.add("a", lora(["target_modules": names("q_proj", "v_proj", "c_fc")]))
        try tiny.randomize("a", scale: 0.01)
        let hooked = try tiny.logits()
        let report = try tiny.set.merge(nil, safe: true, residue: ("rest", .fixed(32)))
        let (kept, both) = (try #require(report["kept"]?.doubleValue), try #require(report["kept_with_residue"]?.doubleValue))
        #expect(kept < 0.9 && both > 0.99, "\(kept), \(both)")
        #expect(difference(try tiny.logits(), hooked) < 1e-3)
        #expect(failure { _ = try tiny.set.merge(nil, safe: true, residue: ("rest", .fixed(4))) }?.kind == .state)
        try tiny.set.unmerge()
        #expect(try tiny.logits() == hooked)
        #expect(tiny.set.status()["adapters"]?["rest"] == nil)
    }

    // MARK: What is refused

    @Test func refused() throws {
        let tiny = try TinyModel()
        try tiny.set.add("a", lora())
        try tiny.set.add("loha", ["peft_type": .string("LOHA"), "r": .integer(2), "target_modules": names("q_proj")])
        try tiny.randomize("a")
        try tiny.randomize("loha")
        func attempt(_ adapters: [(name: String, weight: Double)], _ options: JSONObject) -> PEFTError? {
            failure { _ = try tiny.set.combine(adapters, into: "new", options) }
        }
        let both: [(name: String, weight: Double)] = [("a", 1), ("loha", 1)]
        #expect(attempt([], [:])?.kind == .argument)
        #expect(attempt([("nobody", 1)], [:])?.kind == .notFound)
        #expect(attempt([("a", 1), ("a", 1)], [:])?.says("twice") == true)
        #expect(attempt([("a", .nan)], [:])?.kind == .argument)
        #expect(attempt(both, ["combination_type": .string("magic")])?.says("magic") == true)
        #expect(attempt(both, ["combination_type": .string("linear")])?.says("loha") == true)
        for density in [0, -0.5, 1.5, Double.nan] {
            #expect(attempt(both, ["combination_type": .string("ties_svd"), "density": .number(density)])?.says("density") == true)
        }
        #expect(attempt(both, ["combination_type": .string("dare_ties_svd")])?.says("density") == true)
        #expect(attempt(both, ["combination_type": .string("cat"), "svd_rank": .integer(3)])?.says("svd_rank") == true)
        #expect(attempt(both, ["svd_rank": .integer(0)])?.says("svd_rank") == true)
        #expect(attempt(both, ["svd_energy": .number(1.5)])?.says("svd_energy") == true)
        #expect(attempt(both, ["majority_sign_method": .string("loudest"), "combination_type": .string("ties_svd"), "density": .number(0.5)])?.says("loudest") == true)
        #expect(attempt([("a", 1)], ["combination_type": .string("slerp")])?.says("slerp") == true)
        #expect(attempt([("a", 1), ("loha", -1)], ["combination_type": .string("slerp")])?.says("slerp") == true)
        #expect(attempt(both, ["layer_weights": .object(["q_proj": .array([.number(1)])])])?.says("layer_weights") == true)
        #expect(attempt([("loha", 1)], [:])?.says("svd_rank") == true)
        // Cancelled: nothing has changed.
        #expect(failure { _ = try tiny.set.combine(both, into: "new", [:], progress: { done, _ in done < 2 }) }?.kind == .cancelled)
        #expect(tiny.set.status()["adapters"]?.objectValue?.count == 2)
        let key = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"
        try tiny.set.setState(of: "a", [(key, try Tensor(tiny.engine, [Float](repeating: .nan, count: 32 * 4), shape: [32, 4]))])
        let error = attempt(both, [:])
        #expect(error?.kind == .numeric && error?.says("layers.1.self_attn.v_proj") == true)
    }

    /// In files: what is not plain LoRA, does not fit, or is not finite.
    @Test func refusedFiles() throws {
        let (tiny, folder) = (try TinyModel(), try TemporaryFolder())
        let folders = AdapterFolders(tiny.engine)
        func path(_ name: String) -> String { folder.path + "/" + name }
        for (name, config) in [("a", lora()), ("dora", lora(["use_dora": .bool(true)])), ("pissa", lora(["init_lora_weights": .string("pissa")])),
            ("loha", ["peft_type": .string("LOHA"), "r": .integer(2), "target_modules": names("q_proj")])] as [(String, JSONObject)]
        {
            let tiny = try TinyModel()
            try tiny.set.add(name, config)
            try tiny.set.save(name, path: path(name))
        }
        func attempt(_ names: [String]) -> PEFTError? {
            failure { _ = try folders.combine(names.map { (path($0), 1) }, to: path("out"), ["combination_type": .string("cat")]) }
        }
        #expect(attempt(["a", "dora"])?.says("use_dora") == true)
        #expect(attempt(["pissa"])?.says("init_lora_weights") == true)
        #expect(attempt(["loha"])?.says("LOHA") == true)
        #expect(attempt(["nowhere"])?.kind == .notFound)
        // Of another model: v_proj is wider.
        let (state, config) = (try tiny.set.addedState(lora()), lora())
        func write(_ name: String, _ change: (String, Tensor) throws -> Tensor?) throws {
            let tensors = try state.compactMap { item in try change(item.name, item.tensor).map { NamedTensor(item.name, $0) } }
            try AdapterFiles.writeFolder(path(name), config: config, tensors: tensors)
        }
        try write("wide") { $0.hasSuffix("v_proj.lora_A.weight") ? try .zeros(tiny.engine, [4, 99]) : $1 }
        try write("rank") { $0.hasSuffix("v_proj.lora_A.weight") ? try .zeros(tiny.engine, [5, 64]) : $1 }
        try write("half") { $0.hasSuffix("v_proj.lora_B.weight") ? nil : $1 }
        try write("nan") { $0.hasSuffix("1.self_attn.v_proj.lora_A.weight") ? try Tensor(tiny.engine, [Float](repeating: .infinity, count: 256), shape: [4, 64]) : $1 }
        try AdapterFiles.writeFolder(path("stray"), config: config, tensors: state.map { NamedTensor($0.name, $0.tensor) } + [NamedTensor("base_model.model.x.lora_Q", state[0].tensor)])
        #expect(attempt(["a", "wide"])?.kind == .mismatch)
        #expect(attempt(["a", "rank"])?.kind == .mismatch)
        #expect(attempt(["half"])?.says("lora_B") == true)
        #expect(attempt(["nan"])?.kind == .numeric)
        #expect(attempt(["stray"])?.says("lora_Q") == true)
        #expect(failure { _ = try folders.compare(path("a"), with: path("wide")) }?.kind == .mismatch)
        #expect(failure { _ = try AdapterFiles.open(path: path("out"), budget: tiny.engine.budget) }?.kind == .notFound)
    }
}

extension AdapterSet {
    /// What a fresh adapter would save.
    fileprivate func addedState(_ config: JSONObject) throws -> [(name: String, tensor: Tensor)] {
        try add("fresh", config)
        defer { try? remove("fresh") }
        return try state(of: "fresh")
    }
}
