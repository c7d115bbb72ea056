package import Platform
internal import Quantization
internal import Synchronization
package import Tensors

/// Which weights become what: {"scheme", "block_size", "double_quant", "skip", "rules": [{"modules", "scheme", …}, …]}.
///
/// The first rule that matches a layer counts ("scheme": null: it stays as it is). What no rule matches gets the scheme, if it is a
/// linear layer that is not skipped; output heads are by default, as in transformers. Embeddings change by a rule only.
package struct QuantizationRules: Sendable {
    private struct Rule {
        let modules: ModuleSelection
        let format: WeightFormat?
    }

    private let format: WeightFormat?
    private let skip: ModuleSelection
    private let rules: [Rule]

    package static let keys = WeightFormat.keys + ["skip", "rules"]
    private static let heads = ["lm_head", "score", "classifier", "qa_outputs"]

    package init(_ options: JSONObject) throws(PEFTError) {
        try options.check(QuantizationRules.keys, "quantization")
        let list = try options.list("rules") ?? []
        rules = try list.map { (item) throws(PEFTError) in
            guard let rule = item.objectValue, let modules = rule["modules"], !modules.isNull else {
                throw PEFTError(.argument, "\"rules\" has \(item.text()); each is an object with \"modules\" and \"scheme\"")
            }
            try rule.check(WeightFormat.keys + ["modules"], "a rule of quantization")
            return Rule(modules: try ModuleSelection(modules, "modules"), format: try QuantizationRules.format(rule))
        }
        format = try QuantizationRules.format(options)
        guard format != nil || !rules.isEmpty else {
            throw PEFTError(.argument, "quantization has neither a \"scheme\" nor \"rules\"")
        }
        let skipped = options["skip"] ?? .null
        skip = try ModuleSelection(skipped.isNull ? .array(QuantizationRules.heads.map { .string($0) }) : skipped, "skip")
    }

    private static func format(_ options: JSONObject) throws(PEFTError) -> WeightFormat? {
        guard let scheme = options["scheme"], !scheme.isNull else { return nil }
        return try WeightFormat(options)
    }

    /// What a layer's weight becomes; nil: it stays.
    private func format(for layer: any Layer) throws(PEFTError) -> WeightFormat? {
        guard let weight = layer.tensor("weight"), weight.shape.count == 2, weight.dtype.isWeightFormat else { return nil }
        for rule in rules where try rule.modules.contains(layer.name) { return rule.format }
        guard let linear = layer as? Linear, linear.tiedEmbedding == nil, try !skip.contains(layer.name) else { return nil }
        return format
    }

    /// New weights for layers, one after the other; nothing of them has changed yet.
    /// - Returns: the report, as `peft_model_quantize` gives it.
    /// - Throws: `.argument` naming a layer whose rows do not fit the format; `.numeric` naming one with NaN; `.cancelled`.
    package func changes(
        for layers: [any Layer], _ engine: Engine, followsCPU: Bool, _ progress: LoadProgress?
    ) throws(PEFTError) -> (changes: [(layer: any Layer, weight: Tensor)], report: JSONObject) {
        var chosen: [(layer: any Layer, before: Tensor, format: WeightFormat)] = []
        for layer in layers {
            guard let format = try format(for: layer), let before = layer.tensor("weight"), format != WeightFormat(of: before) else { continue }
            chosen.append((layer, before, format))
        }
        let total = chosen.reduce(Int64(0)) { $0 + Int64($1.before.byteCount) }
        var (changes, lines, done, after): ([(layer: any Layer, weight: Tensor)], [JSONValue], Int64, Int) = ([], [], 0, 0)
        let short = chosen.filter { $0.format.dtype.isCoded && $0.format.scaling.following(followsCPU).sharesFirst(columns: $0.before.columns) }
        if let first = short.first {
            engine.warn(
                "\(short.count) layers, such as '\(first.layer.name)', have rows shorter than a block, which all get the first block's scale, as bitsandbytes reads them on a processor; a block_size of \(first.before.columns) or less, or bitsandbytes_cpu false, keeps more of them"
            )
        }
        for (layer, before, format) in chosen {
            if let progress, !progress(done, total) { throw PEFTError(.cancelled, "quantising was cancelled at '\(layer.name)'; nothing has changed") }
            let stored: Tensor, loss: EncodingReport
            do throws(PEFTError) {
                stored = try before.encoded(as: format.dtype, scaling: format.scaling.following(followsCPU), engine)
                loss = try EncodingReport(of: before, stored: stored, engine)
            } catch {
                guard error.kind == .format else { throw error.within("'\(layer.name)'") }
                throw PEFTError(.argument, "'\(layer.name)' \(before.shape) cannot be \(format.dtype.name), whose blocks have \(format.dtype.blockValues) values; skip it or give it a rule of its own")
            }
            guard loss.maximum.isFinite else { throw PEFTError(.numeric, "'\(layer.name)' has values that are not finite in \(format.dtype.name)") }
            changes.append((layer, stored))
            after += stored.byteCount
            done += Int64(before.byteCount)
            var line: JSONObject = ["name": .string(layer.name)]
            for (key, value) in format.json.pairs { line[key] = value }
            line["bytes_before"] = .integer(Int64(before.byteCount))
            line["bytes"] = .integer(Int64(stored.byteCount))
            line["rms"] = .number(loss.rootMeanSquare)
            line["max"] = .number(loss.maximum)
            line["relative"] = .number(loss.relative)
            lines.append(.object(line))
        }
        if let progress, !progress(total, total) { throw PEFTError(.cancelled, "quantising was cancelled; nothing has changed") }
        return (changes, ["layers": .array(lines), "bytes_before": .integer(total), "bytes": .integer(Int64(after))])
    }
}

extension Model {
    /// Gives weights other formats, in place. The caller sees to it that no adapter is there, which was made for those that were.
    package func quantize(_ rules: QuantizationRules, progress: LoadProgress? = nil) throws(PEFTError) -> JSONObject {
        let (changes, report) = try rules.changes(for: layers, engine, followsCPU: followsCPU, progress)
        try lock.write { () throws(PEFTError) in
            for (layer, weight) in changes { try layer.setTensor("weight", weight) }
        }
        quantization.withLock { $0 = report }
        return report
    }
}
