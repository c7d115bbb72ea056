internal import Checkpoints
internal import Models
package import Platform
internal import Tensors

/// How an adapter is written.
package struct AdapterFormat: Sendable {
    package enum Names: String, CaseIterable, Sendable {
        /// A folder of PEFT's.
        case peft
        /// One file as kohya's scripts and LyCORIS have it.
        case kohya
        /// One file as diffusers has it.
        case diffusers
    }

    package var names = Names.peft
    /// In front of modules' names; nil: "lycoris_" and "transformer".
    package var prefix: String?
    /// The folder with what the adapter was when it began, where that took a part out of the base weights.
    package var initial: String?

    /// `{"format", "prefix", "initial"}`
    package init(_ json: JSONObject) throws(PEFTError) {
        if let unknown = json.keys.first(where: { !["format", "prefix", "initial"].contains($0) }) {
            throw PEFTError(.argument, "unknown option \"\(unknown)\" for saving; known are format, prefix, initial")
        }
        let name = try json.text("format") ?? "peft"
        guard let names = Names(rawValue: name) else {
            throw PEFTError(.argument, "format is '\(name)'; it can be \(Names.allCases.map { "'\($0.rawValue)'" }.joined(separator: ", "))")
        }
        (self.names, prefix, initial) = (names, try json.text("prefix"), try json.text("initial"))
        if names == .peft, prefix != nil { throw PEFTError(.argument, "prefix belongs to the formats 'kohya' and 'diffusers'") }
    }
}

extension AdapterSet {
    /// As `save`, in other forms.
    /// - Throws: `.unsupported` naming what a form cannot hold.
    package func save(_ name: String, path: String, as format: AdapterFormat) throws(PEFTError) {
        var (config, tensors) = (try configuration(of: name), try state(of: name))
        if let initial = format.initial { (config, tensors) = try withoutStart(name, config, tensors, initial) }
        switch format.names {
        case .peft:
            guard format.initial != nil else { return try save(name, path: path) }
            try AdapterFiles.writeFolder(path, config: config, tensors: tensors.map { NamedTensor($0.name, $0.tensor) })
        case .kohya:
            let prefix = format.prefix ?? "lycoris_"
            guard AdapterDialect.prefixes.contains(where: { prefix.hasPrefix($0) }) else {
                throw PEFTError(.argument, "prefix is '\(prefix)'; readers know those that begin with \(AdapterDialect.prefixes.joined(separator: ", "))")
            }
            try Safetensors.write(try kohya(name, tensors, prefix), to: path)
        case .diffusers: try diffusers(name, tensors, config, format.prefix ?? AdapterDialect.components[0], path)
        }
    }

    // MARK: Starts that changed the base

    /// PiSSA, OLoRA, CorDA and LoRA-GA as plain LoRA of the weights there were before (PEFT's `path_initial_model_for_weight_conversion`):
    ///
    ///     W_res + s·B·A = W + s·(B·A − B₀·A₀)    A' = [A; A₀]    B' = [B | −B₀]    of twice the rank, with the same s
    private func withoutStart(_ name: String, _ config: JSONObject, _ tensors: [(name: String, tensor: Tensor)], _ path: String) throws(PEFTError) -> (
        JSONObject, [(name: String, tensor: Tensor)]
    ) {
        let more = (["use_dora", "target_parameters"] + LoRAVariant.keys.filter { $0 != "dylora_block_size" }).filter { key in config[key].map { ![.null, .bool(false), .array([])].contains($0) } ?? false }
        guard config["peft_type"] == .string(LoRA.peftType), more.isEmpty else {
            throw PEFTError(.unsupported, "'\(name)' is \(config["peft_type"]?.stringValue ?? "") \(more.joined(separator: ", ")); what a start took out of the base is given back to plain LoRA")
        }
        var config = config
        let isStabilized = try config.boolean("use_rslora") ?? false
        for key in ["rank_pattern", "alpha_pattern"] {
            guard let pattern = config[key]?.objectValue, !pattern.isEmpty else { continue }
            guard !isStabilized else { throw PEFTError(.unsupported, "'\(name)' has \(key) and use_rslora, whose strengths no alphas of twice the rank say") }
            var doubled = JSONObject()
            for (name, value) in pattern.pairs { doubled[name] = value.intValue.map { .integer(Int64($0) * 2) } ?? .number((value.doubleValue ?? 0) * 2) }
            config[key] = .object(doubled)
        }
        let alpha = try config.double("lora_alpha") ?? 8
        config["r"] = .integer(Int64((try config.integer("r") ?? 8) * 2))
        config["lora_alpha"] = isStabilized ? .number(alpha * 2.0.squareRoot()) : config["lora_alpha"]?.intValue.map { .integer(Int64($0) * 2) } ?? .number(alpha * 2)
        config["init_lora_weights"] = .bool(true)
        let start = try AdapterFiles.open(path: path, budget: engine.budget).tensors
        let before = Dictionary(start.all.map { (AdapterKeys.full($0.name), $0.tensor) }) { first, _ in first }
        return (
            config,
            try tensors.map { (item) throws(PEFTError) in
                let isA = item.name.hasSuffix(".lora_A.weight") || item.name.hasSuffix(".lora_embedding_A")
                guard isA || item.name.hasSuffix(".lora_B.weight") || item.name.hasSuffix(".lora_embedding_B") else { return item }
                guard let old = before[item.name], old.shape == item.tensor.shape, old.dtype.isWeightFormat else {
                    throw PEFTError(.mismatch, "\(start.origin): '\(item.name)' is \(before[item.name].map { "\($0.shape)" } ?? "not there"); \(item.tensor.shape) is needed, as the adapter is now")
                }
                let first = try old.converted(to: .f32, engine, .scratch)
                // A's rows and B's columns are the ranks; kernels of convolutions lie behind.
                let (rank, shape) = (isA ? item.tensor.shape[0] : item.tensor.shape[1], item.tensor.shape)
                let rows = isA ? 2 * rank : shape[0]
                let joined = try Tensor.zeros(engine, [rows, item.tensor.count * 2 / max(rows, 1)], .f32, .scratch)
                if isA {
                    engine.axpby(1, try item.tensor.reshaped([rank, joined.columns]), 0, into: try joined.rows(0..<rank))
                    engine.axpby(1, try first.reshaped([rank, joined.columns]), 0, into: try joined.rows(rank..<2 * rank))
                } else {
                    joined.copyColumns(of: try item.tensor.reshaped([shape[0], joined.columns / 2]), at: 0)
                    joined.copyColumns(of: try first.reshaped([shape[0], joined.columns / 2]), at: joined.columns / 2, scale: -1)
                }
                return (item.name, try joined.reshaped((isA ? [2 * rank, shape[1]] : [shape[0], 2 * rank]) + shape.dropFirst(2)))
            }
        )
    }

    // MARK: Other names

    /// Each tensor with its module's name and what it is there.
    /// - Throws: `.unsupported` naming what belongs to no module.
    private func parts(_ name: String, _ tensors: [(name: String, tensor: Tensor)], _ format: String) throws(PEFTError) -> [(module: any AdapterModule, part: String, tensor: Tensor)] {
        let modules = try adapter(name).modules
        return try tensors.map { (item) throws(PEFTError) in
            let module = modules.first { item.name.hasPrefix("\(Adapter.prefix)\($0.layer.name).") && ($0.saved.contains { $0.key == item.name } || $0.replacements.contains { $0.key == item.name }) }
            guard let module else { throw PEFTError(.unsupported, "'\(item.name)' is part of '\(name)', and files of the format '\(format)' have no place for it") }
            return (module, String(item.name.dropFirst(Adapter.prefix.count + module.layer.name.count + 1)), item.tensor)
        }
    }

    private func kohya(_ name: String, _ tensors: [(name: String, tensor: Tensor)], _ prefix: String) throws(PEFTError) -> [NamedTensor] {
        let renamed = ["lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight", "lora_magnitude_vector": "dora_scale"]
        var written: [NamedTensor] = []
        var ranks: [Int: Int] = [:]
        var parts: [(module: any AdapterModule, part: String, tensor: Tensor)] = []
        for (module, part, tensor) in try self.parts(name, tensors, "kohya") {
            parts += try asLyCORIS(module, part, tensor).map { (module, $0.part, $0.tensor) }
        }
        for (module, part, tensor) in parts {
            let ending = renamed[part] ?? part
            guard renamed[part] != nil || ["hada_", "lokr_"].contains(where: { part.hasPrefix($0) }) || AdapterDialect.ownParts.contains(part) else {
                throw PEFTError(.unsupported, "'\(name)' has '\(part)' at '\(module.layer.name)', for which there is no name in the format 'kohya'")
            }
            if ["lora_A.weight", "hada_w1_b", "lokr_w2_b", "a2.weight"].contains(part) || part == "lokr_w1_b" && ranks[module.layer.index] == nil { ranks[module.layer.index] = tensor.shape[0] }
            let value = part == "lora_magnitude_vector" ? try tensor.reshaped([tensor.count] + Array(repeating: 1, count: max(tensor.shape.count - 1, 1))) : tensor
            written.append(NamedTensor("\(prefix)\(AdapterDialect.underscored(module.layer.name)).\(ending)", value))
        }
        var seen: Set<Int> = []
        for (module, _, _) in parts where seen.insert(module.layer.index).inserted {
            if let rotation = module as? LyCORISRotation {
                written.append(NamedTensor("\(prefix)\(AdapterDialect.underscored(module.layer.name)).alpha", try Tensor(engine, [rotation.constraint], shape: [])))
            }
            guard let scaling = module.scaling else { continue }
            // Without a rank (LoKr of two whole factors) readers scale nothing, but want to see an alpha.
            let rank = ranks[module.layer.index]
            guard rank != nil || scaling == 1 else {
                throw PEFTError(.unsupported, "'\(name)' scales whole factors by \(scaling) at '\(module.layer.name)'; in the format 'kohya' they act as they are")
            }
            let alpha = try Tensor(engine, [Float(scaling * Double(rank ?? 1))], shape: [])
            written.append(NamedTensor("\(prefix)\(AdapterDialect.underscored(module.layer.name)).alpha", alpha))
        }
        return written
    }

    /// (IA)³ and norms are differences there.
    private func asLyCORIS(_ module: any AdapterModule, _ part: String, _ tensor: Tensor) throws(PEFTError) -> [(part: String, tensor: Tensor)] {
        if let module = module as? IA3Module {
            try AdapterDialect.checkBias(module.target, isFeedforward: module.isFeedforward, "the format 'kohya'")
            let values = try tensor.floats(engine).map { $0 - 1 }
            return [
                ("weight", try Tensor(engine, values, shape: module.target.kernel.isEmpty ? [values.count] : tensor.shape)),
                ("on_input", try Tensor(engine, [module.isFeedforward ? 1 : 0] as [Float], shape: [])),
            ]
        }
        guard let name = part.hasPrefix("ln_tuning_layers.") ? String(part.dropFirst(17)) : nil, let ending = AdapterDialect.normParts[name],
            let base = module.layer.tensor(name), module.layer.kind.hasSuffix("Norm")
        else { return [(part, tensor)] }
        let change = try tensor.converted(to: .f32, engine, .adapters)
        engine.axpby(-1, try base.converted(to: .f32, engine, .scratch), 1, into: change)
        return [(ending, change)]
    }

    private func diffusers(_ name: String, _ tensors: [(name: String, tensor: Tensor)], _ config: JSONObject, _ prefix: String, _ path: String) throws(PEFTError) {
        guard config["peft_type"] == .string(LoRA.peftType), AdapterDialect.components.contains(prefix) else {
            throw PEFTError(.unsupported, "the format 'diffusers' is LoRA's, behind \(AdapterDialect.components.joined(separator: ", ")); this is \(config["peft_type"]?.stringValue ?? "") behind '\(prefix)'")
        }
        let written = try parts(name, tensors, "diffusers").map { (module, part, tensor) throws(PEFTError) in
            guard ["lora_A.weight", "lora_B.weight"].contains(part) else {
                throw PEFTError(.unsupported, "'\(name)' has '\(part)' at '\(module.layer.name)'; files of the format 'diffusers' have A and B")
            }
            return NamedTensor("\(prefix).\(module.layer.name).\(part)", tensor)
        }
        var own = JSONObject()
        for key in ["alpha_pattern", "lora_alpha", "r", "rank_pattern", "target_modules", "use_rslora"] { own["\(prefix).\(key)"] = config[key] ?? .null }
        var metadata = Safetensors.pytorchMetadata
        metadata["lora_adapter_metadata"] = JSONValue.object(own).text(indent: 2, sortKeys: true)
        try Safetensors.write(written, metadata: metadata, to: path)
    }
}
