package import Platform
internal import Tensors

/// A model's config.json while an architecture reads it: typed, every mistake named with its key and value.
///
/// What an architecture does not do must not be passed over in silence: `require` and `refuse` say so.
package struct ModelConfiguration: Sendable {
    package let json: JSONObject
    /// For messages: the folder or file.
    package let origin: String

    package init(_ json: JSONObject, origin: String) {
        self.json = json
        self.origin = origin
    }

    package var modelType: String { json["model_type"]?.stringValue ?? "" }

    /// "LlamaForCausalLM": the first of `architectures`, if there is one.
    package var headClass: String? { json["architectures"]?.arrayValue?.first?.stringValue }

    private func value(_ key: String) -> JSONValue? {
        guard let value = json[key], !value.isNull else { return nil }
        return value
    }

    private func wrong(_ key: String, _ value: JSONValue?, _ right: String) -> PEFTError {
        PEFTError(.format, "\(origin): config \"\(key)\" is \(value?.text() ?? "missing"); \(right) is needed")
    }

    /// A count or size: 1 to `most`. Which of `keys` is there counts; `fallback` nil: one must be.
    package func size(_ keys: String..., or fallback: Int? = nil, most: Int = 1 << 31) throws(PEFTError) -> Int {
        let key = keys.first { value($0) != nil } ?? keys.first ?? ""
        guard let value = value(key) else {
            if let fallback { return fallback }
            throw wrong(key, nil, "a size")
        }
        guard let size = value.intValue, size > 0, size <= most else { throw wrong(key, value, "a size from 1 to \(most)") }
        return size
    }

    /// As `size`; nil when absent, null or 0.
    package func optionalSize(_ key: String) throws(PEFTError) -> Int? {
        guard let value = value(key), value.intValue != 0 else { return nil }
        return try size(key)
    }

    package func number(_ key: String, or fallback: Double? = nil) throws(PEFTError) -> Double {
        guard let value = value(key) else {
            if let fallback { return fallback }
            throw wrong(key, nil, "a number")
        }
        guard let number = value.doubleValue, number.isFinite else { throw wrong(key, value, "a number") }
        return number
    }

    package func flag(_ key: String, or fallback: Bool) throws(PEFTError) -> Bool {
        guard let value = value(key) else { return fallback }
        guard let flag = value.boolValue else { throw wrong(key, value, "true or false") }
        return flag
    }

    package func text(_ key: String, or fallback: String? = nil) throws(PEFTError) -> String {
        guard let value = value(key) else {
            if let fallback { return fallback }
            throw wrong(key, nil, "a text")
        }
        guard let text = value.stringValue else { throw wrong(key, value, "a text") }
        return text
    }

    package func texts(_ key: String) throws(PEFTError) -> [String]? {
        guard let value = value(key) else { return nil }
        let texts = value.arrayValue?.compactMap(\.stringValue)
        guard let texts, texts.count == value.arrayValue?.count else { throw wrong(key, value, "a list of texts") }
        return texts
    }

    package func object(_ key: String) throws(PEFTError) -> ModelConfiguration? {
        guard let value = value(key) else { return nil }
        guard let object = value.objectValue else { throw wrong(key, value, "an object") }
        return ModelConfiguration(object, origin: "\(origin): \(key)")
    }

    /// The same with another value for a key.
    func replacing(_ key: String, _ value: JSONValue) -> ModelConfiguration {
        var json = json
        json[key] = value
        return ModelConfiguration(json, origin: origin)
    }

    package func has(_ key: String) -> Bool { value(key) != nil }

    /// An error for a setting that this version does not have, with what it has.
    package func unsupported(_ key: String, _ known: String) -> PEFTError {
        PEFTError(.unsupported, "\(origin): config \"\(key)\" is \(json[key]?.text() ?? "missing"); this version has \(known)")
    }

    /// Dropout of attention probabilities would need them in memory; training goes without it and says so.
    package func warnOfAttentionDropout(_ key: String, _ build: LayerBuilder) throws(PEFTError) {
        let p = try number(key, or: 0)
        if p > 0 { build.engine.warn("\(origin): config \"\(key)\" is \(p); attention probabilities are not dropped in training") }
    }

    /// Classes of a classifier, as transformers counts them: the number of `id2label`, `num_labels`, or 2.
    package func labelCount() throws(PEFTError) -> Int {
        if let names = try object("id2label") { return max(names.json.count, 1) }
        return try size("num_labels", or: 2)
    }

    /// The setting must be absent, null, or this.
    package func require(_ key: String, _ only: JSONValue) throws(PEFTError) {
        if let value = value(key), value != only { throw unsupported(key, only.text()) }
    }
}
