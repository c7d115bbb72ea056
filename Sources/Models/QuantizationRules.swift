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
    /// What outputs are compared on.
    package let calibrationText: String?

    package static let keys = WeightFormat.keys + ["skip", "rules", "calibration_text"]
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
        calibrationText = try options.text("calibration_text")
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

    /// Layers that change, with what their weights become.
    func chosen(of layers: [any Layer]) throws(PEFTError) -> [(layer: any Layer, format: WeightFormat)] {
        var chosen: [(layer: any Layer, format: WeightFormat)] = []
        for layer in layers {
            guard let format = try format(for: layer), let before = layer.tensor("weight"), format != WeightFormat(of: before) else { continue }
            chosen.append((layer, format))
        }
        return chosen
    }

    /// Gives layers new weights, one after the other: of old and new ones together those of one layer are held. What cannot be is
    /// found before the first of them changes.
    ///
    /// - Parameters:
    ///   - outputErrors: what is known of a layer's outputs, for the report.
    ///   - replace: gives a layer its new weight.
    /// - Returns: the report, as `peft_model_quantize` gives it.
    /// - Throws: `.argument` naming a layer whose rows do not fit the format; `.numeric` naming one with values that are not finite in
    ///   it: nothing has changed. `.cancelled`, `.memory`: layers that were done stay so.
    package func apply(
        to layers: [any Layer], _ engine: Engine, followsCPU: Bool, outputErrors: [String: Double] = [:], _ progress: LoadProgress?,
        replace: (_ layer: any Layer, _ weight: Tensor) throws(PEFTError) -> Void
    ) throws(PEFTError) -> JSONObject {
        let chosen = try chosen(of: layers)
        var (total, short): (Int64, [any Layer]) = (0, [])
        for (layer, format) in chosen {
            guard let before = layer.tensor("weight") else { continue }
            try QuantizationRules.check(layer, before, format, engine, followsCPU)
            total += Int64(before.byteCount)
            if format.dtype.isCoded, format.scaling.following(followsCPU).sharesFirst(columns: before.columns) { short.append(layer) }
        }
        if let first = short.first {
            engine.warn(
                "\(short.count) layers, such as '\(first.name)', have rows shorter than a block, which all get the first block's scale, as bitsandbytes reads them on a processor; a block_size of \(first.tensor("weight")?.columns ?? 0) or less, or bitsandbytes_cpu false, keeps more of them"
            )
        }
        var (lines, done, after): ([JSONValue], Int64, Int) = ([], 0, 0)
        for (number, (layer, format)) in chosen.enumerated() {
            if let progress, !progress(done, total) {
                throw PEFTError(.cancelled, "quantising was cancelled at '\(layer.name)'; \(number) of \(chosen.count) layers have their new format")
            }
            guard let before = layer.tensor("weight") else { continue }
            let (stored, loss) = try QuantizationRules.encode(layer, before, format, engine, followsCPU)
            try replace(layer, stored)
            after += stored.byteCount
            done += Int64(before.byteCount)
            var line: JSONObject = ["name": .string(layer.name)]
            for (key, value) in format.json.pairs { line[key] = value }
            line["bytes_before"] = .integer(Int64(before.byteCount))
            line["bytes"] = .integer(Int64(stored.byteCount))
            line["rms"] = .number(loss.rootMeanSquare)
            line["max"] = .number(loss.maximum)
            line["relative"] = .number(loss.relative)
            if let error = outputErrors[layer.name] { line["output"] = .number(error) }
            lines.append(.object(line))
        }
        _ = progress?(total, total)
        return ["layers": .array(lines), "bytes_before": .integer(total), "bytes": .integer(Int64(after))]
    }

    /// Magnitudes below this fit every format.
    private static let safe: Float = 256

    private static func check(_ layer: any Layer, _ before: Tensor, _ format: WeightFormat, _ engine: Engine, _ followsCPU: Bool) throws(PEFTError) {
        guard before.columns % format.dtype.blockValues == 0 else {
            throw PEFTError(.argument, "'\(layer.name)' \(before.shape) cannot be \(format.dtype.name), whose blocks have \(format.dtype.blockValues) values; skip it or give it a rule of its own")
        }
        if try before.largestMagnitude(engine) > safe { _ = try encode(layer, before, format, engine, followsCPU) }
    }

    private static func encode(
        _ layer: any Layer, _ before: Tensor, _ format: WeightFormat, _ engine: Engine, _ followsCPU: Bool
    ) throws(PEFTError) -> (stored: Tensor, loss: EncodingReport) {
        let stored: Tensor, loss: EncodingReport
        do throws(PEFTError) {
            stored = try before.encoded(as: format.dtype, scaling: format.scaling.following(followsCPU), engine)
            loss = try EncodingReport(of: before, stored: stored, engine)
        } catch { throw error.within("'\(layer.name)'") }
        guard loss.maximum.isFinite else { throw PEFTError(.numeric, "'\(layer.name)' has values that are not finite in \(format.dtype.name)") }
        return (stored, loss)
    }
}

extension Model {
    /// Gives weights other formats, in place, layer by layer. The caller sees to it that no adapter is there, which was made for those
    /// that were.
    /// - Parameter ids: a text on which outputs are compared first; empty: none.
    package func quantize(_ rules: QuantizationRules, comparingOn ids: [Int32] = [], progress: LoadProgress? = nil) throws(PEFTError) -> JSONObject {
        let errors = ids.isEmpty ? [:] : try outputErrors(try rules.chosen(of: layers), on: ids)
        let report = try rules.apply(to: layers, engine, followsCPU: followsCPU, outputErrors: errors, progress) { (layer, weight) throws(PEFTError) in
            try lock.write { () throws(PEFTError) in try layer.setTensor("weight", weight) }
        }
        quantization.withLock { $0 = report }
        return report
    }
}
