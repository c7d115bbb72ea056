package import Checkpoints
internal import Models
package import Platform
package import Tensors

/// A plain LoRA adapter by itself, without a model: factors by module, as PEFT folders have them.
package struct LoRAFile {
    /// How a module's factors are saved.
    package enum Form: Equatable, Sendable {
        case linear
        case embedding
        /// Of a convolution: the sizes behind the channels.
        case kernel([Int])
    }

    package struct Module {
        /// "model.layers.0.self_attn.q_proj"
        package let name: String
        package let form: Form
        package let change: WeightChange

        package init(_ name: String, _ form: Form, _ change: WeightChange) {
            (self.name, self.form, self.change) = (name, form, change)
        }
    }

    /// Of adapter_config.json, with PEFT's defaults.
    package var configuration: JSONObject
    package var modules: [Module]
    /// Modules trained in full, by saved key.
    package var others: [NamedTensor]

    // MARK: Reading

    /// Options that make more of an adapter than products of its factors.
    private static let beyond = [
        "use_dora", "kasa_config", "use_bdlora", "velora_config", "monteclora_config", "alora_invocation_tokens", "arrow_config", "use_qalora",
        "layer_replication", "target_parameters", "trainable_token_indices", "ensure_weight_tying", "megatron_config",
    ]

    /// - Throws: `.unsupported` for what is not plain LoRA, `.format` and `.mismatch` for tensors that are missing or do not fit.
    package init(_ files: AdapterFiles, _ engine: Engine) throws(PEFTError) {
        let origin = files.tensors.origin
        do throws(PEFTError) { try self.init(reading: files, engine) } catch {
            throw PEFTError(error.kind == .argument ? .format : error.kind, "\(origin): \(error.message)", detail: error.detail)
        }
    }

    private init(reading files: AdapterFiles, _ engine: Engine) throws(PEFTError) {
        let configuration = try AdapterConfiguration(files.config, warn: { engine.warn($0) })
        guard configuration.method == LoRA.self else {
            throw PEFTError(
                .unsupported,
                "it is \(configuration.method.peftType); without its model only LoRA can be computed with: load it over the model and combine it there, which makes a LoRA of it")
        }
        var wrong = LoRAFile.beyond.filter { configuration.isSet($0) }
        if try configuration.values.text("bias") ?? "none" != "none" { wrong.append("bias") }
        if try LoRAStart(configuration, isNew: false).changesBase { wrong.append("init_lora_weights") }
        guard wrong.isEmpty else {
            throw PEFTError(.unsupported, "it has \(wrong.joined(separator: ", ")); without a model only plain LoRA can be computed with")
        }
        let scales = try Scales(configuration)
        self.configuration = configuration.values
        (modules, others) = ([], [])
        var taken: Set<String> = []
        for item in files.tensors.all {
            guard let (module, ends) = LoRAFile.module(of: item.name) else { continue }
            let bKey = AdapterKeys.full(module) + ends.b
            guard let b = files.tensors.peek(module + ends.b) ?? files.tensors.peek(bKey) else {
                throw PEFTError(.mismatch, "it has '\(item.name)', but no '\(module + ends.b)'")
            }
            let bias = files.tensors.peek(module + ".lora_B.bias")
            let name = String(AdapterKeys.full(module).dropFirst(Adapter.prefix.count))
            modules.append(try LoRAFile.read(name, item.tensor, b, bias, isEmbedding: ends.isEmbedding, try scales.scale(of: name), engine))
            taken.formUnion([item.name, module + ends.b, bKey, module + ".lora_B.bias"])
        }
        for item in files.tensors.all where !taken.contains(item.name) {
            guard !item.name.split(separator: ".").contains(where: { $0.hasPrefix("lora_") }), configuration.isSet("modules_to_save") else {
                throw PEFTError(.mismatch, "the tensor '\(item.name)' belongs to nothing that plain LoRA has")
            }
            others.append(item)
        }
        guard !modules.isEmpty else { throw PEFTError(.mismatch, "it has no lora_A tensors") }
    }

    /// The module whose A has this name, and how the names of A and B end.
    private static func module(of key: String) -> (module: String, ends: (b: String, isEmbedding: Bool))? {
        for (a, b, isEmbedding) in [(".lora_A.weight", ".lora_B.weight", false), (".lora_embedding_A", ".lora_embedding_B", true)] where key.hasSuffix(a) {
            return (String(key.dropLast(a.count)), (b, isEmbedding))
        }
        return nil
    }

    private static func read(_ name: String, _ a: Tensor, _ b: Tensor, _ bias: Tensor?, isEmbedding: Bool, _ scale: (rank: Int, scale: Double), _ engine: Engine)
        throws(PEFTError) -> Module
    {
        guard [a, b, bias ?? a].allSatisfy({ $0.dtype.isWeightFormat && $0.count > 0 }), a.shape.count >= 2, b.shape.count >= 2 else {
            throw PEFTError(.mismatch, "the factors of '\(name)' are \(a.dtype.name) \(a.shape) and \(b.dtype.name) \(b.shape); matrices of a floating-point type are needed")
        }
        let (rank, outputs) = (a.shape[0], b.shape[0])
        guard rank == scale.rank, b.count == outputs * rank, bias?.count ?? outputs == outputs else {
            throw PEFTError(.mismatch, "the factors of '\(name)' are A \(a.shape), B \(b.shape), its configuration says r = \(scale.rank)")
        }
        let product = WeightChange.Matrix.product(
            b: try b.converted(to: .f32, engine, .scratch).reshaped([outputs, rank]),
            a: try a.converted(to: .f32, engine, .scratch).reshaped([rank, a.count / rank]), scale: scale.scale)
        try product.checkIsFinite("'\(name)'")
        let scaled = try bias.map { (bias) throws(PEFTError) in
            let own = try bias.converted(to: .f32, engine, .scratch).reshaped([outputs])
            engine.axpby(Float(scale.scale), own, 0, into: own)
            return own
        }
        let form: Form = isEmbedding ? .embedding : a.shape.count == 2 ? .linear : .kernel(Array(a.shape.dropFirst(2)))
        return Module(name, form, WeightChange(product, bias: scaled))
    }

    /// Rank and factor of each module, as the configuration says.
    private struct Scales {
        let (rank, alpha): (Int, Double)
        let (ranks, alphas): (PatternTable, PatternTable)
        let isRankStabilized: Bool

        init(_ configuration: AdapterConfiguration) throws(PEFTError) {
            (rank, alpha) = (try configuration.integer("r"), try configuration.number("lora_alpha"))
            (ranks, alphas) = (try PatternTable(configuration, "rank_pattern"), try PatternTable(configuration, "alpha_pattern"))
            isRankStabilized = try configuration.flag("use_rslora")
        }

        func scale(of name: String) throws(PEFTError) -> (rank: Int, scale: Double) {
            let rank = try ranks.value(for: name).map { Int(exactly: $0) ?? 0 } ?? self.rank
            guard rank > 0 else { throw PEFTError(.argument, "r is \(rank) for '\(name)'; it must be positive") }
            let alpha = try alphas.value(for: name) ?? self.alpha
            return (rank, isRankStabilized ? alpha / Double(rank).squareRoot() : alpha / Double(rank))
        }
    }

    /// The largest rank a LoRA's configuration has; nil: it is none.
    package static func rank(of configuration: JSONObject) -> Int? {
        guard configuration["peft_type"] == .string(LoRA.peftType), let rank = configuration["r"]?.intValue else { return nil }
        let pattern = configuration["rank_pattern"]?.objectValue?.pairs.compactMap { $0.value.intValue } ?? []
        return max(rank, pattern.max() ?? 0)
    }

    // MARK: Making

    /// - Parameters:
    ///   - settings: what the configuration has besides ranks and targets.
    ///   - targets: suffixes that name the modules.
    package init(_ modules: [(name: String, form: Form, factors: LowRank)], _ settings: JSONObject, targets: [String], others: [NamedTensor]) {
        configuration = settings
        configuration["peft_type"] = .string(LoRA.peftType)
        let rank = modules.map(\.factors.rank).max() ?? 1
        var pattern = JSONObject()
        for module in modules where module.factors.rank != rank { pattern["^" + module.name] = .integer(Int64(module.factors.rank)) }
        configuration["r"] = .integer(Int64(rank))
        configuration["lora_alpha"] = .integer(Int64(rank))
        configuration["rank_pattern"] = .object(pattern)
        configuration["alpha_pattern"] = .object(pattern)
        configuration["target_modules"] = .array(targets.sorted().map { .string($0) })
        configuration["lora_bias"] = .bool(modules.contains { $0.factors.bias != nil })
        self.modules = modules.map {
            Module($0.name, $0.form, WeightChange(.product(b: $0.factors.b, a: $0.factors.a, scale: 1), bias: $0.factors.bias))
        }
        self.others = others
    }

    /// The tensors by saved key; scales of modules are 1.
    package func tensors(_ engine: Engine) throws(PEFTError) -> [NamedTensor] {
        let hasBias = configuration["lora_bias"] == .bool(true)
        var result: [NamedTensor] = []
        for module in modules {
            guard case .product(let b, let a, _) = module.change.matrix else { continue }
            let key = Adapter.prefix + module.name
            switch module.form {
            case .embedding:
                result += [NamedTensor(key + ".lora_embedding_A", a), NamedTensor(key + ".lora_embedding_B", b)]
                continue
            case .linear: result += [NamedTensor(key + ".lora_A.weight", a), NamedTensor(key + ".lora_B.weight", b)]
            case .kernel(let kernel):
                let taps = kernel.reduce(1, *)
                result.append(NamedTensor(key + ".lora_A.weight", try a.reshaped([a.rows, a.columns / max(taps, 1)] + kernel)))
                result.append(NamedTensor(key + ".lora_B.weight", try b.reshaped([b.rows, b.columns] + kernel.map { _ in 1 })))
            }
            guard hasBias else { continue }
            let bias = if let bias = module.change.bias { bias } else { try Tensor.zeros(engine, [b.rows], .f32, .scratch) }
            result.append(NamedTensor(key + ".lora_B.bias", bias))
        }
        return result + others
    }

    package func files(_ origin: String, _ engine: Engine) throws(PEFTError) -> AdapterFiles {
        AdapterFiles(config: configuration, tensors: try TensorSource(origin: origin, try tensors(engine)))
    }
}
