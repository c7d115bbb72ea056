import Autograd
import Checkpoints
@testable import Models
import Platform
import Tensors
import Testing

@testable import Adapters

/// What every method has to do, whatever it is.
@Suite struct MethodTests {
    @Test("every method is in the table of cases")
    func everyMethod() {
        let cases = Set(MethodCase.all.map(\.type))
        for method in AdapterMethods.all where !method.layerKinds.isEmpty { #expect(cases.contains(method.peftType), "\(method.peftType) has no case in MethodCase.all") }
    }

    @Test("a fresh adapter changes nothing where that is promised", arguments: MethodCase.all)
    func neutral(_ item: MethodCase) throws {
        let tiny = try TinyModel()
        let base = try tiny.logits()
        try tiny.set.add("a", item.config, seed: 3)
        let fresh = try tiny.logits()
        if item.isNeutral { #expect(difference(fresh, base) < 1e-5, "changes \(difference(fresh, base))") }
        try tiny.randomize("a", scale: item.noise)
        #expect(difference(try tiny.logits(), base) > 1e-3)
        // Another seed, another adapter, unless there is nothing random in it.
        tiny.set.setEnabled(false)
        #expect(try tiny.logits() == base)
    }

    @Test("merged weights do what hooks do; taking them out gives the same bits", arguments: MethodCase.all)
    func merge(_ item: MethodCase) throws {
        let tiny = try TinyModel()
        let base = try tiny.logits()
        try tiny.set.add("a", item.config)
        try tiny.randomize("a", scale: item.noise)
        guard item.isMergeable else {
            #expect(failure { _ = try tiny.set.merge(nil, safe: true) }?.kind == .unsupported)
            return
        }
        for scale in [1, 0.5] as [Float] {
            try tiny.set.setScale("a", scale)
            let hooked = try tiny.logits()
            _ = try tiny.set.merge(nil, safe: true)
            #expect(difference(try tiny.logits(), hooked) < 1e-4, "at scale \(scale)")
            try tiny.set.unmerge()
            #expect(try tiny.logits() == hooked)
        }
        try tiny.set.setActive([])
        #expect(try tiny.logits() == base)
    }

    @Test("two at once act as when they are merged one after the other", arguments: MethodCase.all.filter(\.isAdditive))
    func two(_ item: MethodCase) throws {
        let tiny = try TinyModel()
        try tiny.set.add("a", item.config, seed: 1)
        try tiny.set.add("b", item.config, seed: 2)
        try tiny.randomize("a", seed: 1, scale: item.noise)
        try tiny.randomize("b", seed: 2, scale: item.noise)
        let a = try tiny.logits()
        try tiny.set.setActive([("a", 1), ("b", 1)])
        let both = try tiny.logits()
        #expect(difference(both, a) > 1e-3)
        _ = try tiny.set.merge(nil, safe: true)
        #expect(difference(try tiny.logits(), both) < 1e-4)
    }

    @Test("any method beside any other: hooks and merged weights agree", arguments: MethodCase.all)
    func besideLoRA(_ item: MethodCase) throws {
        let tiny = try TinyModel()
        try tiny.set.add("a", item.config)
        try tiny.set.add("b", lora())
        try tiny.randomize("a", seed: 1, scale: item.noise)
        try tiny.randomize("b", seed: 2)
        try tiny.set.setActive([("b", 1), ("a", 1)])
        let both = try tiny.logits()
        guard item.isMergeable else { return }
        _ = try tiny.set.merge(["b", "a"], safe: true)
        // DoRA, HiRA and MiSS "bat" look at the weight, of which they have the original.
        if item.isAdditive { #expect(difference(try tiny.logits(), both) < 1e-4) }
    }

    @Test("few rows take products of low rank with the layer's own: the same as one operation after the other, and no longer than the values are there", arguments: MethodCase.all)
    func fewRows(_ item: MethodCase) throws {
        let tiny = try TinyModel()
        try tiny.set.add("a", item.config)
        for (seed, scale) in [(1, 1), (2, 0.5)] as [(UInt64, Float)] {
            try tiny.randomize("a", seed: seed, scale: item.noise)
            try tiny.set.setScale("a", scale)
            for (precision, most) in [(.f32, 1e-4), (.bf16, 0.05)] as [(Precision, Float)] {
                let apart = try tiny.logits(tape: Tape(tiny.engine, precision, gradients: GradientStore(tiny.engine)))
                let joined = try tiny.logits(tape: Tape(tiny.engine, precision))
                #expect(difference(joined, apart) < most, "\(precision) at scale \(scale): \(difference(joined, apart))")
            }
        }
        let (adaptation, block) = (try tiny.set.activeAdaptation(), tiny.network.blocks[0])
        let changes = try adaptation.fewRowChanges(Tape(tiny.engine, .bf16))
        if let layer = [block.v, block.q].first(where: { adaptation[$0] != nil }) { #expect(changes.isAll(at: layer.index) == item.isJoined) }
    }

    @Test("folded into copies of weights for few rows: the same but for their rounding, shared, and no longer than the values are there", arguments: MethodCase.all)
    func folded(_ item: MethodCase) throws {
        for (format, precision, most) in [(.f32, .f32, 1e-4), (.bf16, .bf16, 0.05), (.q4_1, Precision(activation: .bf16, compute: .int8), 0.05)] as [(DType, Precision, Float)] {
            let tiny = try TinyModel(dtype: format)
            for name in ["a", "b"] {
                try tiny.set.add(name, item.config, seed: 1)
                try tiny.randomize(name, seed: 2, scale: item.noise / 2)
            }
            let (one, other) = (FoldedChanges(tiny.model), FoldedChanges(tiny.model))
            func adaptation(_ name: String, _ folded: FoldedChanges?) throws -> Adaptation {
                var adaptation = try tiny.set.adaptation(of: [(name, 1)])
                adaptation.folded = folded
                return adaptation
            }
            func logits(_ routing: Routing) throws -> [Float] { try tiny.logits(routing, tape: Tape(tiny.engine, precision)) }
            func changes(_ name: String, _ folded: FoldedChanges?) throws -> FewRowChanges { try adaptation(name, folded).fewRowChanges(Tape(tiny.engine, precision)) }
            for seed in [4, 5] as [UInt64] {
                try tiny.randomize("a", seed: seed, scale: item.noise / 2)
                let distance = difference(try logits(.all(adaptation("a", one))), try logits(.all(adaptation("a", nil))))
                #expect(distance < most, "\(format.name): \(distance)")
                let mine = try changes("a", one), theirs = try changes("a", other)
                #expect(mine === theirs)
                #expect(tiny.network.blocks.contains { mine.weights(at: $0.v.index) != nil || mine.weights(at: $0.q.index) != nil } == item.isFolded)
            }
            #expect(try changes("a", nil) !== changes("a", one) && changes("b", one) !== changes("a", one))
            #expect(try !adaptation("a", one).isSame(as: adaptation("a", nil)) && adaptation("a", one).isSame(as: adaptation("a", other)))
            guard item.isPerSample else { continue }
            let alone = try ["a", "b"].map { try logits(.all(adaptation($0, one))) }, half = alone[0].count / 2
            let mixed = try logits(.samples([(0..<1, adaptation("a", one)), (1..<2, adaptation("b", one))]))
            #expect(difference(mixed, Array(alone[0][..<half] + alone[1][half...])) < most / 5)
            guard item.isFolded else { continue }
            // Beside rows of no adapter, and of one that is of low rank.
            try tiny.set.add("c", lora())
            try tiny.randomize("c", scale: 0.1)
            for beside in [tiny.model.unadapted, try adaptation("c", nil)] {
                let wanted = Array(alone[0][..<half] + (try logits(.all(beside)))[half...])
                #expect(difference(try logits(.samples([(0..<1, adaptation("a", one)), (1..<2, beside)])), wanted) < most / 5)
                let turned = Array(try logits(.all(beside))[..<half] + (try logits(.all(adaptation("a", one))))[half...])
                #expect(difference(try logits(.samples([(0..<1, beside), (1..<2, adaptation("a", one))])), turned) < most / 5)
            }
        }
    }

    @Test("derivatives agree with differences", arguments: MethodCase.all.filter(\.hasExactGradients))
    func gradients(_ item: MethodCase) throws {
        let tiny = try TinyModel()
        try tiny.set.add("a", item.config)
        try tiny.randomize("a", scale: item.noise / 3)
        try tiny.checkGradients(seed: 5, movesNorms: item.movesNorms)
    }

    @Test("a step can be planned without data", arguments: MethodCase.all)
    func planned(_ item: MethodCase) throws {
        let tiny = try TinyModel()
        try tiny.set.add("a", item.config)
        let planner = tiny.engine.planner()
        let tape = Tape(planner, .f32, gradients: GradientStore(planner), isTraining: true)
        let ids = try Tensor(planner, [Int32](repeating: 0, count: 8), shape: [8])
        let context = ForwardContext(tape: tape, routing: try Routing.all(try tiny.set.activeAdaptation()).byTask([1, 0], batch: 2, isEach: true), batch: 2, length: 4, positions: ids)
        let output = try tiny.model.logits(try tiny.model.hidden(.ids(ids), context), of: .ids(ids), context)
        try tape.backward(from: output, gradient: try Tensor(planner, output.shape))
    }

    @Test("saved and loaded: the same values and the same logits, to the bit", arguments: MethodCase.all)
    func saved(_ item: MethodCase) throws {
        let tiny = try TinyModel()
        try tiny.set.add("a", item.config)
        try tiny.randomize("a", scale: item.noise)
        let (state, logits) = (try tiny.set.state(of: "a"), try tiny.logits())
        let folder = try TemporaryFolder()
        for path in [folder.path + "/folder", folder.path + "/file.h5"] {
            try tiny.set.save("a", path: path)
            try tiny.set.load("b", path: path, trainable: true)
            let again = try tiny.set.state(of: "b")
            #expect(state.map(\.name) == again.map(\.name))
            for (one, other) in zip(state, again) { #expect(try one.tensor.numbers(tiny.engine) == other.tensor.numbers(tiny.engine), "\(one.name)") }
            #expect(try tiny.logits(.all(tiny.set.adaptation(of: [("b", 1)]))) == logits)
            #expect(try tiny.set.configuration(of: "b") == tiny.set.configuration(of: "a"))
            try tiny.set.remove("b")
        }
    }

    @Test("files that lack a tensor, have a wrong one or one too many are refused by its name", arguments: MethodCase.all)
    func badFiles(_ item: MethodCase) throws {
        let tiny = try TinyModel()
        try tiny.set.add("a", item.config)
        let (state, config) = (try tiny.set.state(of: "a"), try tiny.set.configuration(of: "a"))
        // Not a weight of the base model that is kept beside the adapter.
        let own = state.filter { !$0.name.contains("base_layer") }
        guard let victim = own.first else { return #expect(Bool(false), "nothing is saved") }
        func attempt(_ tensors: [(name: String, tensor: Tensor)]) throws -> PEFTError? {
            let folder = try TemporaryFolder()
            try AdapterFiles.writeFolder(folder.path + "/a", config: config, tensors: tensors.map { NamedTensor($0.name, $0.tensor) })
            defer { try? tiny.set.remove("b") }
            return failure { try tiny.set.load("b", path: folder.path + "/a", trainable: false) }
        }
        #expect(try attempt(state) == nil)
        let isOptional = item.type == "TINYLORA"  // Projections may be left out.
        if !isOptional {
            let missing = try attempt(state.filter { $0.name != victim.name })
            #expect(missing?.kind == .mismatch && missing?.says(victim.name) == true, "\(String(describing: missing))")
        }
        let stray = try attempt(state + [("base_model.model.nobody.lora_Q", victim.tensor)])
        #expect(stray?.kind == .mismatch && stray?.says("nobody.lora_Q") == true, "\(String(describing: stray))")
        let wrong = try Tensor.zeros(tiny.engine, victim.tensor.shape.dropLast() + [victim.tensor.columns + 1])
        let misshapen = try attempt(state.map { $0.name == victim.name ? ($0.name, wrong) : $0 })
        #expect(misshapen?.kind == .mismatch && misshapen?.says(victim.name) == true, "\(String(describing: misshapen))")
    }

    @Test("each sample of a batch can have its own", arguments: MethodCase.all.filter(\.isPerSample))
    func mixedBatch(_ item: MethodCase) throws {
        let tiny = try TinyModel()
        try tiny.set.add("a", item.config)
        try tiny.set.add("b", lora())
        try tiny.randomize("a", seed: 1, scale: item.noise)
        try tiny.randomize("b", seed: 2)
        let alone = try ["a", "b"].map { try tiny.logits(.all(tiny.set.adaptation(of: [($0, 1)]))) }
        let mixed = try tiny.logits(tiny.set.routing(samples: ["a", "b"]))
        let half = mixed.count / 2
        #expect(difference(Array(mixed[..<half]), Array(alone[0][..<half])) < 1e-5)
        #expect(difference(Array(mixed[half...]), Array(alone[1][half...])) < 1e-5)
    }

    @Test("on weights of any format, and merged into them with room", arguments: zip(MethodCase.all, MethodCase.formats(from: 0)))
    func onFormats(_ item: MethodCase, _ format: DType) throws {
        let tiny = try TinyModel(dtype: format)
        try tiny.set.add("a", item.config)
        try tiny.randomize("a", scale: item.noise)
        let hooked = try tiny.logits()
        if item.isSmooth, item.hasExactGradients { try tiny.checkGradients(seed: 6, movesNorms: item.movesNorms) }
        guard item.isMergeable else { return }
        _ = try tiny.set.merge(nil, safe: true, as: .f32)
        // Weights that are no blocks stay in their type.
        let most: Float = format.isQuantized ? 1e-4 : 0.02
        #expect(difference(try tiny.logits(), hooked) < most)
    }

    @Test("a step that is computed again has the same bits, on any format; in bf16 it has the direction of f32's",
        arguments: zip(MethodCase.all, MethodCase.formats(from: 9)))
    func recomputed(_ item: MethodCase, _ format: DType) throws {
        let tiny = try TinyModel(dtype: format)
        try tiny.set.add("a", item.config)
        try tiny.randomize("a", scale: item.noise / 3)
        let parameters = try tiny.set.trainableParameters().map(\.parameter)
        func gradients(_ precision: Precision, again: Bool) throws -> [Float] {
            let store = GradientStore(tiny.engine)
            let tape = Tape(tiny.engine, precision, gradients: store, isTraining: true, random: RandomStream(seed: 9))
            let output = again ? try tape.recomputed([]) { (tape, _) throws(PEFTError) in try tiny.output(tape) } : try tiny.output(tape)
            var stream = RandomStream(seed: 7)
            let weights = try Tensor(tiny.engine, (0..<output.value.count).map { _ in stream.normal() }, shape: output.shape)
            try tape.backward(from: output, gradient: try weights.converted(to: output.value.dtype, tiny.engine))
            return try parameters.flatMap { try store.gradient(of: $0)?.floats(tiny.engine) ?? [] }
        }
        let exact = try gradients(.f32, again: false)
        #expect(exact.contains { $0 != 0 })
        #expect(try gradients(.f32, again: true) == exact)
        let rounded = try gradients(.bf16, again: false)
        #expect(try gradients(.bf16, again: true) == rounded)
        guard item.isSmooth else { return }
        func dot(_ a: [Float], _ b: [Float]) -> Double { zip(a, b).reduce(0) { $0 + Double($1.0) * Double($1.1) } }
        let cosine = dot(exact, rounded) / (dot(exact, exact) * dot(rounded, rounded)).squareRoot()
        #expect(cosine > 0.99, "cosine \(cosine)")
    }

    @Test("the kinds of layers it says it is for, and no others", arguments: AdapterMethods.all.map { $0.peftType })
    func layerKinds(_ type: String) throws {
        let tiny = try TinyModel()
        let (method, engine) = (try AdapterMethods.named(type), tiny.engine)
        var layers = tiny.model.layers
        for (dimensions, kind) in [(1, "Conv1d"), (2, "Conv2d"), (3, "Conv3d")] {
            let kernel = Array(repeating: 2, count: dimensions)
            let (ones, zeros) = (kernel.map { _ in 1 }, kernel.map { _ in 0 })
            layers.append(
                try Convolution(
                    name: "kinds.\(kind)", index: layers.count, weight: .zeros(engine, [16, 8] + kernel, .f32, .weights),
                    bias: .zeros(engine, [16], .f32, .weights), geometry: PatchGeometry(kernel: kernel, stride: ones, padding: zeros, dilation: ones), groups: 1))
        }
        let model = Model(
            engine: engine, precision: .f32, configuration: tiny.model.configuration, architecture: "llama", layers: layers, network: tiny.network)
        guard let item = MethodCase.all.first(where: { $0.type == type }) else { return }
        for (kind, name) in [
            ("Linear", "q_proj"), ("Conv1D", "c_fc"), ("Embedding", "embed_tokens"), ("RMSNorm", "input_layernorm"), ("Conv1d", "kinds.Conv1d"),
            ("Conv2d", "kinds.Conv2d"), ("Conv3d", "kinds.Conv3d"),
        ] {
            var config = item.config
            config["target_modules"] = names(name)
            if config["feedforward_modules"] != nil { config["feedforward_modules"] = .null }
            let error = failure { try AdapterSet(model).add("a", config) }
            let isFor = method.layerKinds.contains(kind) || method.layerKinds == ["*"]
            #expect((error == nil) == isFor && (isFor || error?.says(kind) == true), "\(kind): \(String(describing: error))")
        }
    }

    @Test("an unknown key is named, a wrong value refused by its key", arguments: AdapterMethods.all.map { $0.peftType })
    func configuration(_ type: String) throws {
        let tiny = try TinyModel()
        guard let item = MethodCase.all.first(where: { $0.type == type }) else { return }
        var config = item.config
        config["no_such_key"] = .integer(1)
        try tiny.set.add("a", config)
        #expect(tiny.messages.all.contains { $0.contains("no_such_key") })
        let method = try AdapterMethods.named(type)
        for (key, value) in method.defaults.pairs where !["modules_to_save", "megatron_core", "fan_in_fan_out"].contains(key) {
            // Something of a kind that the key cannot have.
            switch value {
            case .integer, .number, .bool: break
            default: continue
            }
            var wrong = item.config
            wrong[key] = .object(["a": .integer(1)])
            let error = failure { try tiny.set.add("wrong", wrong) }
            if error == nil { try tiny.set.remove("wrong") }
            #expect(error?.says(key) == true || MethodTests.unread.contains("\(type).\(key)"), "\(key): \(String(describing: error))")
        }
    }

    /// Keys that mean nothing for a method, as in PEFT.
    private static let unread: Set<String> = [
        "ADALORA.r", "ADALORA.use_rslora", "ADALORA.qalora_group_size", "LORA.qalora_group_size", "ADALORA.init_lora_weights", "TINYLORA.init_v_bound",
    ]
}

extension Tensor {
    /// Also of integers.
    fileprivate func numbers(_ engine: Engine) throws -> [Float] {
        dtype.isFloat ? try floats(engine) : try #require(integers()).map { Float($0) }
    }
}
