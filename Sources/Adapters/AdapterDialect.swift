internal import Autograd
internal import Checkpoints
internal import Models
internal import Platform
internal import Tensors

/// Adapters as others store them: one safetensors file without a configuration, whose names say all there is to know. Read are the names
/// of kohya-ss' sd-scripts, of LyCORIS and of diffusers,
///
///     lora_te_model_layers_0_self_attn_q_proj.lora_down.weight     dots are underscores; .lora_up.weight, .lora_mid.weight, .alpha, .dora_scale
///     lycoris_model_layers_0_self_attn_q_proj.hada_w1_a …          LoHa; .lokr_w1 … LoKr; .diff, .diff_b the change itself; .oft_blocks, .rescale
///                                                                  OFT, BOFT; .a1.weight … GLoRA; .weight, .on_input (IA)³; .w_norm, .b_norm norms
///     transformer.model.layers.0.self_attn.q_proj.lora_A.weight    also .lora.down.weight, .lora_linear_layer.up.weight
///
/// and become PEFT's. Which it is, is seen from the names; nothing is guessed: a name that no module of the model has, an ending that nobody
/// uses, two methods in one file are errors that say so.
struct AdapterDialect {
    /// In front of a module's name with underscores; the longer before what they begin with.
    static let prefixes = ["lora_prior_unet_", "lora_prior_te_", "lora_transformer_", "lora_unet_", "lora_te1_", "lora_te2_", "lora_te3_", "lora_te_", "lycoris_", "lora_"]
    /// In front of a module's name with dots.
    static let components = ["transformer", "unet", "text_encoder", "text_encoder_2", "text_encoder_3", "diffusion_model", "prior"]

    /// What a tensor is to its module; LoHa's, LoKr's and full changes' names are PEFT's or our own already.
    static let ownParts = [
        "diff", "diff_b", "dora_scale", "oft_blocks", "rescale", "a1.weight", "a2.weight", "b1.weight", "b2.weight", "on_input", "w_norm", "b_norm", "weight",
    ]
    private static let endings: [(ending: String, part: String)] =
        ["lora_down.weight", "lora.down.weight", "lora_linear_layer.down.weight", "lora_A.weight"].map { ($0, "down") }
        + ["lora_up.weight", "lora.up.weight", "lora_linear_layer.up.weight", "lora_B.weight"].map { ($0, "up") }
        + [("lora_mid.weight", "mid"), ("alpha", "alpha")]
        + ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"].map { ($0, $0) }
        + ["lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"].map { ($0, $0) }
        + ownParts.map { ($0, $0) }

    let origin: String
    let engine: Engine
    private let model: Model
    /// By layer, in the order of the model.
    private(set) var modules: [(layer: any Layer, parts: [String: Tensor])] = []

    /// The configuration and the tensors as PEFT's folders have them.
    static func read(_ source: TensorSource, _ model: Model) throws(PEFTError) -> AdapterFiles {
        try AdapterDialect(source, model).files(source.metadata)
    }

    private init(_ source: TensorSource, _ model: Model) throws(PEFTError) {
        (origin, self.model, engine) = (source.origin, model, model.engine)
        if let name = source.names.first(where: { $0.hasPrefix(Adapter.prefix) }) {
            throw PEFTError(.unsupported, "\(origin): '\(name)' is PEFT's name; what its adapter does depends on its adapter_config.json: load the folder")
        }
        var (found, unknown, nowhere): ([Int: [String: Tensor]], [String], [String]) = ([:], [], [])
        let names = ModuleTable(model)
        for item in source.all {
            // A weight by itself is any model's.
            guard let (ending, part) = AdapterDialect.endings.first(where: { item.name.hasSuffix("." + $0.ending) }),
                part != "weight" || source.contains(String(item.name.dropLast(ending.count)) + "on_input")
            else {
                unknown.append(item.name)
                continue
            }
            guard let layer = names.layer(String(item.name.dropLast(ending.count + 1))) else {
                nowhere.append(item.name)
                continue
            }
            guard found[layer.index, default: [:]].updateValue(item.tensor, forKey: part) == nil else {
                throw PEFTError(.mismatch, "\(origin): '\(item.name)' is there twice, under two names")
            }
        }
        guard unknown.isEmpty, nowhere.isEmpty else {
            var parts: [String] = []
            if !unknown.isEmpty { parts.append("\(unknown.count) tensors have none of the endings that are read (a \"weight\" is one beside an \"on_input\"): \(TensorSource.list(unknown))") }
            if !nowhere.isEmpty {
                parts.append("\(nowhere.count) tensors name no module of this model, whose modules are called like '\(names.example)': \(TensorSource.list(nowhere))")
            }
            throw PEFTError(.mismatch, "\(origin): \(parts.joined(separator: "; "))")
        }
        modules = found.sorted { $0.key < $1.key }.map { (model.layers[$0.key], $0.value) }
    }

    private func files(_ metadata: [String: String]) throws(PEFTError) -> AdapterFiles {
        let kinds = Set(modules.map { AdapterDialect.kind($0.parts) })
        guard kinds.count == 1, let kind = kinds.first else {
            throw PEFTError(.unsupported, "\(origin): it has \(kinds.count) methods (\(kinds.sorted().joined(separator: ", "))); an adapter is of one")
        }
        var config: JSONObject = ["peft_type": .string(kind), "target_modules": .array(modules.map { .string($0.layer.name) })]
        let tensors: [NamedTensor]
        switch kind {
        case "LORA": tensors = try lora(&config, metadata)
        case "LOHA": tensors = try loha(&config)
        case "LOKR": tensors = try lokr(&config)
        case LyCORISGLoRA.peftType:
            setRanks(try ranks("a2.weight"), try modules.map { (module) throws(PEFTError) in try alpha(module.parts) }, "alpha", &config)
            tensors = ownNames()
        case LyCORISOFT.peftType: tensors = try oft(&config)
        case IA3.peftType: tensors = try ia3(&config)
        case LNTuning.peftType: tensors = try norms()
        default:
            tensors = modules.flatMap { module in module.parts.sorted { $0.key < $1.key }.map { NamedTensor("\(Adapter.prefix)\(module.layer.name).\($0.key)", $0.value) } }
            config["use_bias"] = .bool(modules.contains { $0.parts["diff_b"] != nil })
        }
        return AdapterFiles(config: config, tensors: try TensorSource(origin: origin, tensors))
    }

    private static func kind(_ parts: [String: Tensor]) -> String {
        if parts["down"] != nil || parts["up"] != nil { return "LORA" }
        if parts["hada_w1_a"] != nil { return "LOHA" }
        if parts.keys.contains(where: { $0.hasPrefix("lokr_") }) { return "LOKR" }
        if parts["oft_blocks"] != nil { return LyCORISOFT.peftType }
        if parts["a1.weight"] != nil { return LyCORISGLoRA.peftType }
        if parts["weight"] != nil { return IA3.peftType }
        return parts["w_norm"] == nil ? FullChange.peftType : LNTuning.peftType
    }

    func missing(_ part: String, _ layer: any Layer) -> PEFTError {
        PEFTError(.mismatch, "\(origin): the module '\(layer.name)' has no '\(AdapterDialect.endings.first { $0.part == part }?.ending ?? part)'")
    }

    // MARK: Ranks and strengths

    /// Writes ranks and alphas: those most modules have, and the others' in patterns. An alpha of 0, or none, is the rank, as everywhere.
    func setRanks(_ ranks: [Int], _ alphas: [Double?], _ alphaKey: String, _ config: inout JSONObject) {
        let alphas = zip(ranks, alphas).map { rank, alpha in alpha.flatMap { $0 == 0 ? nil : $0 } ?? Double(rank) }
        func mostFrequent<T: Hashable & Comparable>(_ values: [T]) -> T? {
            let counts = Dictionary(grouping: values) { $0 }.mapValues(\.count)
            return counts.max { ($0.value, $1.key) < ($1.value, $0.key) }?.key
        }
        let (rank, alpha) = (mostFrequent(ranks) ?? 1, mostFrequent(alphas) ?? 1)
        var (rankPattern, alphaPattern): (JSONObject, JSONObject) = ([:], [:])
        for (index, module) in modules.enumerated() {
            if ranks[index] != rank { rankPattern[module.layer.name] = .integer(Int64(ranks[index])) }
            if alphas[index] != alpha { alphaPattern[module.layer.name] = .number(alphas[index]) }
        }
        config["r"] = .integer(Int64(rank))
        config[alphaKey] = .number(alpha)
        config["rank_pattern"] = .object(rankPattern)
        config["alpha_pattern"] = .object(alphaPattern)
    }

    func alpha(_ parts: [String: Tensor]) throws(PEFTError) -> Double? {
        guard let tensor = parts["alpha"] else { return nil }
        if tensor.count == 1, tensor.dtype == .i64, let value = tensor.integers()?.first { return Double(value) }  // LyCORIS' constraint of 0
        guard tensor.count == 1, tensor.dtype.isWeightFormat, let value = try tensor.converted(to: .f32, engine, .scratch).floats(engine).first, value.isFinite else {
            throw PEFTError(.format, "\(origin): an alpha is \(tensor.dtype.name) \(tensor.shape); one finite number is needed")
        }
        return Double(value)
    }

    // MARK: Methods

    private func lora(_ config: inout JSONObject, _ metadata: [String: String]) throws(PEFTError) -> [NamedTensor] {
        var (tensors, ranks, alphas): ([NamedTensor], [Int], [Double?]) = ([], [], [])
        let isDecomposed = modules.contains { $0.parts["dora_scale"] != nil }
        for (layer, parts) in modules {
            guard let down = parts["down"] else { throw missing("down", layer) }
            guard let up = parts["up"] else { throw missing("up", layer) }
            let key = Adapter.prefix + layer.name
            let kernel = (layer as? Convolution)?.geometry.kernel ?? []
            let a = try parts["mid"].map { (mid) throws(PEFTError) in try joined(mid, down, layer) } ?? down
            tensors.append(NamedTensor(key + ".lora_A.weight", try AdapterDialect.without(a, ones: kernel.isEmpty)))
            tensors.append(NamedTensor(key + ".lora_B.weight", try AdapterDialect.without(up, ones: kernel.isEmpty)))
            ranks.append(down.shape.first ?? 0)
            alphas.append(try alpha(parts))
            guard isDecomposed else { continue }
            guard let scale = parts["dora_scale"] else { throw missing("dora_scale", layer) }
            tensors.append(NamedTensor(key + ".lora_magnitude_vector", try magnitude(scale, of: up, layer, kernel)))
        }
        setRanks(ranks, alphas, "lora_alpha", &config)
        if let text = metadata["lora_adapter_metadata"], case .object(let all) = try JSONValue(parsing: text) {
            // diffusers writes PEFT's configuration beside the tensors, each key behind its component's name.
            for (key, value) in all.pairs {
                let parts = key.split(separator: ".", maxSplits: 1)
                if parts.count == 2, ["lora_alpha", "r", "alpha_pattern", "rank_pattern", "use_rslora"].contains(String(parts[1])) { config[String(parts[1])] = value }
            }
        } else if alphas.allSatisfy({ $0 == nil }) {
            engine.info("\(origin): there is no alpha in it; as those who write such files mean it, factors act as they are")
        }
        config["use_dora"] = .bool(isDecomposed)
        return tensors
    }

    /// Linear layers are sometimes stored as convolutions of one place.
    private static func without(_ tensor: Tensor, ones isLinear: Bool) throws(PEFTError) -> Tensor {
        let shape = tensor.shape
        guard isLinear, shape.count > 2, shape.dropFirst(2).allSatisfy({ $0 == 1 }) else { return tensor }
        return try tensor.reshaped(Array(shape.prefix(2)))
    }

    /// The kernel in the middle and the matrix before it are one kernel: `A[i, c, tap] = Σ_j mid[i, j, tap]·down[j, c]`.
    private func joined(_ mid: Tensor, _ down: Tensor, _ layer: any Layer) throws(PEFTError) -> Tensor {
        let rank = down.shape.first ?? 0
        guard mid.shape.count > 2, mid.shape[0] == rank, mid.shape[1] == rank, rank > 0, down.dtype.isWeightFormat, mid.dtype.isWeightFormat else {
            throw PEFTError(.mismatch, "\(origin): '\(layer.name)' has a lora_mid of the shape \(mid.shape) between factors of rank \(rank)")
        }
        let (channels, taps) = (down.count / rank, mid.shape.dropFirst(2).reduce(1, *))
        let (m, d) = (try mid.converted(to: .f32, engine, .scratch).floats(engine), try down.converted(to: .f32, engine, .scratch).floats(engine))
        var a = [Float](repeating: 0, count: rank * channels * taps)
        for i in 0..<rank {
            for j in 0..<rank {
                for c in 0..<channels {
                    for tap in 0..<taps { a[(i * channels + c) * taps + tap] += m[(i * rank + j) * taps + tap] * d[j * channels + c] }
                }
            }
        }
        return try Tensor(engine, a, shape: [rank, channels] + mid.shape.dropFirst(2))
    }

    /// One number for each output; LyCORIS can have one for each input too, which PEFT has not.
    private func magnitude(_ scale: Tensor, of up: Tensor, _ layer: any Layer, _ kernel: [Int]) throws(PEFTError) -> Tensor {
        let outputs = up.shape.first ?? 0
        guard scale.count == outputs, scale.shape.first == outputs else { throw normsOfInputs(scale, outputs, layer) }
        return try scale.reshaped(kernel.isEmpty ? [outputs] : [1, outputs] + kernel.map { _ in 1 })
    }

    private func normsOfInputs(_ scale: Tensor, _ outputs: Int, _ layer: any Layer) -> PEFTError {
        PEFTError(.unsupported, "\(origin): '\(layer.name)' has a dora_scale of the shape \(scale.shape); norms of outputs, [\(outputs), 1], are read, norms of inputs are not")
    }

    /// Of each module: the rows of a tensor that it must have.
    private func ranks(_ part: String) throws(PEFTError) -> [Int] {
        try modules.map { (module) throws(PEFTError) in
            guard let factor = module.parts[part] else { throw missing(part, module.layer) }
            return factor.shape.first ?? 0
        }
    }

    private func loha(_ config: inout JSONObject) throws(PEFTError) -> [NamedTensor] {
        setRanks(try ranks("hada_w1_b"), try modules.map { (module) throws(PEFTError) in try alpha(module.parts) }, "alpha", &config)
        config["use_effective_conv2d"] = .bool(modules.contains { $0.parts["hada_t1"] != nil })
        return try kept(&config)
    }

    private func lokr(_ config: inout JSONObject) throws(PEFTError) -> [NamedTensor] {
        var (ranks, alphas): ([Int], [Double?]) = ([], [])
        var factors: Set<Int>?
        for (layer, parts) in modules {
            let columns = parts["lokr_w1_b"] ?? parts["lokr_w1"]
            guard let l = (parts["lokr_w1"] ?? parts["lokr_w1_a"])?.shape.first, let m = columns?.shape.last else { throw missing("lokr_w1", layer) }
            let target = try MatrixTarget(layer, of: LoKr.self)
            // Those that divide this module so.
            let own = Set([-1, l, m].filter { factor in
                factor != 0 && LoKr.factors(of: target.outputSize, factor).small == l && LoKr.factors(of: target.channels, factor).small == m
            })
            factors = factors?.intersection(own) ?? own
            if let rank = (parts["lokr_w2_b"] ?? parts["lokr_w1_b"])?.shape.first {
                ranks.append(rank)
                alphas.append(try alpha(parts))
            } else {
                // Both are whole: the rank says only that, and nothing is scaled.
                ranks.append(max(target.outputSize, target.inputSize))
                alphas.append(nil)
            }
        }
        guard let factor = factors?.min() else { throw PEFTError(.unsupported, "\(origin): no one decompose_factor divides all its modules as they are") }
        config["decompose_factor"] = .integer(Int64(factor))
        config["decompose_both"] = .bool(modules.contains { $0.parts["lokr_w1_a"] != nil })
        config["use_effective_conv2d"] = .bool(modules.contains { $0.parts["lokr_t2"] != nil })
        setRanks(ranks, alphas, "alpha", &config)
        return try kept(&config)
    }

    /// All but alphas, under their names.
    private func kept(_ config: inout JSONObject) throws(PEFTError) -> [NamedTensor] {
        let isDecomposed = modules.contains { $0.parts["dora_scale"] != nil }
        config["weight_decompose"] = .bool(isDecomposed)
        for (layer, parts) in modules where isDecomposed {
            guard let scale = parts["dora_scale"] else { throw missing("dora_scale", layer) }
            let outputs = try MatrixTarget(layer, of: LoHa.self).outputSize
            guard scale.count == outputs, scale.shape.first == outputs else { throw normsOfInputs(scale, outputs, layer) }
        }
        return ownNames()
    }

    func ownNames() -> [NamedTensor] {
        modules.flatMap { module in
            module.parts.filter { $0.key != "alpha" }.sorted { $0.key < $1.key }.map { NamedTensor("\(Adapter.prefix)\(module.layer.name).\($0.key)", $0.value) }
        }
    }
}

/// The modules of a model by the names they have in other files.
private struct ModuleTable {
    private let model: Model
    /// With underscores for dots; nil: two modules would be called so.
    private var underscored: [String: (any Layer)?] = [:]

    init(_ model: Model) {
        self.model = model
        for layer in model.layers {
            let name = AdapterDialect.underscored(layer.name)
            underscored[name] = underscored[name] == nil ? .some(layer) : .some(nil)
        }
    }

    var example: String { model.layers.first { $0 is Linear }?.name ?? "" }

    func layer(_ text: String) -> (any Layer)? {
        if let layer = model.layer(named: text) { return layer }
        if let component = AdapterDialect.components.first(where: { text.hasPrefix($0 + ".") }) { return model.layer(named: String(text.dropFirst(component.count + 1))) }
        guard let prefix = AdapterDialect.prefixes.first(where: { text.hasPrefix($0) }) else { return nil }
        return underscored[String(text.dropFirst(prefix.count))] ?? nil
    }
}

extension AdapterDialect {
    static func underscored(_ name: String) -> String { String(name.map { $0 == "." ? "_" : $0 }) }
}
