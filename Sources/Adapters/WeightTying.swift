internal import Models
internal import Platform
internal import Tensors

/// `ensure_weight_tying`: what an adapter does to an embedding, it does to the head that shares its matrix.
enum WeightTying {
    private static let names = ["embed_tokens", "lm_head"]

    /// Heads that multiply by the embedding's table.
    static func heads(of embedding: Embedding, _ model: Model) -> [Linear] {
        model.layers.compactMap { $0 as? Linear }.filter { $0.tiedEmbedding?.index == embedding.index }
    }

    /// Puts the embedding in the place of its heads, in whichever of `modules_to_save` and `target_modules` names one of them.
    static func prepare(_ configuration: inout AdapterConfiguration, _ model: Model) throws(PEFTError) {
        let isAsked = try configuration.flag("ensure_weight_tying")
        let saved = try configuration.values.strings("modules_to_save") ?? []
        let isSaved = saved.contains { isOne($0) }
        let isTarget = try isTarget(configuration.values["target_modules"])
        guard
            let embedding = model.layers.compactMap({ $0 as? Embedding }).first(where: { !heads(of: $0, model).isEmpty }
            )
        else {
            if isAsked { model.engine.warn("ensure_weight_tying: embedding and head of this model are not tied") }
            return
        }
        guard isAsked else {
            if isSaved || isTarget {
                model.engine.warn(
                    "embedding and head of this model are one matrix, and the adapter is for one of them; with ensure_weight_tying they stay one"
                )
            }
            return
        }
        let tied = heads(of: embedding, model).map(\.name)
        if isSaved {
            configuration.values["modules_to_save"] = .array(
                try replaced(saved, embedding.name, tied).map { .string($0) })
        } else if isTarget {
            configuration.tiedNames = Set(tied)
            switch configuration.values["target_modules"] {
            case .string(let pattern):
                configuration.values["target_modules"] = .string(
                    "(?:\(pattern)|^\(embedding.name.split(separator: ".").joined(separator: "\\."))$)")
            case .array(let list):
                configuration.values["target_modules"] = .array(
                    try replaced(list.compactMap(\.stringValue), embedding.name, tied).map { .string($0) })
            default: break
            }
        } else {
            model.engine.warn("ensure_weight_tying: neither modules_to_save nor target_modules names embedding or head")
        }
    }

    private static func isOne(_ name: String) -> Bool { names.contains { name.isNamed($0) } }

    private static func isTarget(_ value: JSONValue?) throws(PEFTError) -> Bool {
        switch value {
        case .array(let list): return list.contains { isOne($0.stringValue ?? "") }
        case .string(let pattern) where pattern.lowercased() != "all-linear":
            let pattern = try Pattern.configured(pattern, "target_modules")
            for name in names where try pattern.matchesWhole(name) { return true }
            return false
        default: return false
        }
    }

    /// With the embedding, without what names its heads.
    private static func replaced(_ entries: [String], _ embedding: String, _ heads: [String]) throws(PEFTError)
        -> [String]
    {
        var result = entries.contains(embedding) ? entries : entries + [embedding]
        for head in heads {
            for (place, entry) in result.enumerated()
            where try Pattern.configured("(?:.*\\.)?(?:\(entry))(?:\\..*)?", "modules_to_save").matchesWhole(head) {
                result.remove(at: place)
                break
            }
        }
        return result
    }
}
