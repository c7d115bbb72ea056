package import Models
package import Platform
internal import Tensors

/// An adapter_config.json: every key PEFT has for the method, with PEFT's default where the text has none.
///
/// What a key means is the business of whoever reads it (`TargetMatching`, `SavedModules`, the method). Here is only which
/// keys there are, what a new adapter writes for them, and how they are read.
package struct AdapterConfiguration: Sendable {
    package let method: any AdapterMethod.Type
    /// All keys, none missing. Methods and matching write back what they decided (PEFT saves the targets it found).
    package var values: JSONObject
    /// Layers that are no targets because they repeat what is put around another (`ensure_weight_tying`).
    var tiedNames: Set<String> = []
    /// Where its file is: paths in it are meant from there; nil: it is no file's.
    var folder: String?
    /// Of its file's tensors by whole key, for methods whose parts have sizes that no setting says; empty: it is no file's.
    var shapes: [String: [Int]] = [:]

    /// The version whose files these are: what `peft_version` says of a new adapter.
    static let peftVersion = "0.21.2"

    private static let baseDefaults: JSONObject = [
        "auto_mapping": .null, "base_model_name_or_path": .null, "inference_mode": .bool(false),
        "peft_version": .string(peftVersion), "revision": .null,
        "task_type": .null,
    ]

    private static let taskTypes = [
        "SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION",
    ]

    /// - Parameter warn: told of keys nobody knows, which are dropped as in PEFT.
    /// - Throws: `.unsupported` for a peft_type that is not there, `.argument` for a missing one or a wrong task_type.
    package init(_ json: JSONObject, warn: (String) -> Void) throws(PEFTError) {
        guard let type = try json.text("peft_type") else {
            throw PEFTError(.argument, "the adapter configuration has no \"peft_type\" (such as \"LORA\")")
        }
        method = try AdapterMethods.named(type)
        values = AdapterConfiguration.baseDefaults
        values["peft_type"] = .string(method.peftType)
        for (key, value) in method.defaults.pairs { values[key] = value }
        for (key, value) in json.pairs where key != "peft_type" {
            if values[key] != nil {
                values[key] = value
            } else {
                warn("adapter configuration: \(type) has no key \"\(key)\"; it is ignored")
            }
        }
        if let task = taskType, !AdapterConfiguration.taskTypes.contains(task) {
            throw PEFTError(
                .argument,
                "task_type is '\(task)'; it can be \(AdapterConfiguration.taskTypes.joined(separator: ", ")) or null")
        }
    }

    /// In front of the names of the base model's modules in saved keys: methods without modules wrap it once less.
    var keyPrefix: String { method is any PromptMethod.Type ? "base_model." : Adapter.prefix }

    package var taskType: String? { values["task_type"]?.stringValue }

    /// As PEFT's `save_pretrained` writes it.
    ///
    /// - Parameter baseName: for `base_model_name_or_path`, where the configuration itself has none.
    package func saved(for model: Model, baseName: String?) -> JSONObject {
        var json = values
        json["inference_mode"] = .bool(true)
        // PEFT has no such keys, and warns of those it does not know.
        let added = method == Bottleneck.self ? [] : ["weight_decompose", "dylora_block_size", "prompt_token_ids", "shared_gating", "use_gating"]
        for key in added where [.null, .bool(false)].contains(json[key] ?? .null) { json[key] = nil }
        if let baseName, (json["base_model_name_or_path"]?.stringValue ?? "").isEmpty {
            json["base_model_name_or_path"] = .string(baseName)
        }
        // Without a task, AutoPeftModel finds the class of the base model here.
        if taskType == nil, json["auto_mapping"] == .null,
            let name = model.configuration["architectures"]?.arrayValue?.first, name.stringValue != nil
        {
            let family = model.configuration["model_type"]?.stringValue ?? model.architecture
            json["auto_mapping"] = .object([
                "base_model_class": name, "parent_library": .string("transformers.models.\(family).modeling_\(family)"),
            ])
        }
        return json
    }

    // MARK: Reading

    package func flag(_ key: String) throws(PEFTError) -> Bool { try values.boolean(key) ?? false }

    package func integer(_ key: String) throws(PEFTError) -> Int {
        guard let value = try values.integer(key) else {
            throw PEFTError(.argument, "\"\(key)\" is null; an integer is expected")
        }
        return value
    }

    package func number(_ key: String) throws(PEFTError) -> Double {
        guard let value = try values.double(key) else {
            throw PEFTError(.argument, "\"\(key)\" is null; a number is expected")
        }
        return value
    }

    /// True where the value is one that switches something on: not null, false, an empty list or an empty object.
    package func isSet(_ key: String) -> Bool {
        switch values[key] {
        case nil, .null, .bool(false), .array([]): false
        case .object(let object): !object.isEmpty
        default: true
        }
    }
}
