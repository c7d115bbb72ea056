package import Platform
package import Tensors

/// A model folder as HF transformers writes it: `config.json`, weights in one or several safetensors files, tokenizer files.
package struct ModelFolder: Sendable {
    package let path: String
    /// `config.json`.
    package let config: JSONObject
    /// All weights, whatever shard they are in.
    package let tensors: TensorSource

    private static let singleFile = "model.safetensors"
    private static let indexFile = "model.safetensors.index.json"

    /// Opens a folder. Weights are views of mapped files.
    /// - Throws: `.notFound` for a missing file, `.mismatch` when the index and the shards disagree, with the names.
    package init(path: String, budget: MemoryBudget) throws(PEFTError) {
        guard try Files.kind(of: path) == .folder else { throw PEFTError(.notFound, "'\(path)' is not a folder with a model") }
        self.path = path
        let configPath = Files.join(path, "config.json")
        guard Files.isFile(configPath) else {
            if Files.isFile(Files.join(path, "adapter_config.json")) {
                throw PEFTError(.notFound, "'\(path)' is an adapter folder, not a model: open its base model and load the adapter into it")
            }
            throw PEFTError(.notFound, "'\(path)' has no config.json")
        }
        config = try Files.jsonObject(at: configPath)

        let single = Files.join(path, ModelFolder.singleFile)
        let index = Files.join(path, ModelFolder.indexFile)
        if Files.isFile(single) {
            tensors = try Safetensors.open(path: single, budget: budget)
        } else if Files.isFile(index) {
            tensors = try ModelFolder.openShards(of: path, index: index, budget: budget)
        } else {
            let pickled = try Files.names(in: path).first { $0.hasPrefix("pytorch_model") && $0.hasSuffix(".bin") }
            let hint = pickled.map { "; '\($0)' is a pickle, which can run code and is never read: convert it to safetensors" } ?? ""
            throw PEFTError(.notFound, "'\(path)' has neither \(ModelFolder.singleFile) nor \(ModelFolder.indexFile)\(hint)")
        }
    }

    // MARK: The small files, nil when absent

    /// `tokenizer.json`: path, because the tokenizer maps it by itself.
    package var tokenizerPath: String? { existing("tokenizer.json") }
    package var tokenizerConfigPath: String? { existing("tokenizer_config.json") }
    package var specialTokensMapPath: String? { existing("special_tokens_map.json") }
    package var generationConfigPath: String? { existing("generation_config.json") }
    /// Newer folders keep the template apart from `tokenizer_config.json`.
    package var chatTemplatePath: String? { existing("chat_template.jinja") }

    package func existing(_ name: String) -> String? {
        let file = Files.join(path, name)
        return Files.isFile(file) ? file : nil
    }

    // MARK: Shards

    /// `{"metadata": {…}, "weight_map": {"tensor": "model-00001-of-00002.safetensors", …}}`
    private static func openShards(of folder: String, index: String, budget: MemoryBudget) throws(PEFTError) -> TensorSource {
        guard let map = try Files.jsonObject(at: index)["weight_map"]?.objectValue else {
            throw PEFTError(.format, "\(index): no object \"weight_map\"")
        }
        var shardOf: [String: String] = [:]
        var namesOf: [String: [String]] = [:]
        for (name, value) in map.pairs {
            guard let shard = value.stringValue else { throw PEFTError(.format, "\(index): \(value.kindName) where the file of '\(name)' must be named") }
            // A name from a file must not lead out of the folder.
            guard !shard.contains("/"), !shard.hasPrefix("."), shard.hasSuffix(".safetensors") else {
                throw PEFTError(.format, "\(index): '\(shard)' is not the name of a safetensors file in this folder")
            }
            shardOf[name] = shard
            namesOf[shard, default: []].append(name)
        }

        let shards = namesOf.keys.sorted()
        let absent = shards.filter { !Files.isFile(Files.join(folder, $0)) }
        guard absent.isEmpty else {
            throw PEFTError(.notFound, "'\(folder)' lacks \(absent.count) of the \(shards.count) weight files its index names: \(TensorSource.list(absent))")
        }
        var tensors: [NamedTensor] = []
        var metadata: [String: String] = [:]
        for shard in shards {
            let source = try Safetensors.open(path: Files.join(folder, shard), budget: budget)
            let extra = source.names.filter { shardOf[$0] != shard }
            guard extra.isEmpty else { throw PEFTError(.mismatch, "'\(shard)' in '\(folder)' holds tensors that the index does not place there: \(TensorSource.list(extra))") }
            let missing = (namesOf[shard] ?? []).filter { !source.contains($0) }
            guard missing.isEmpty else { throw PEFTError(.mismatch, "'\(shard)' in '\(folder)' lacks tensors that the index places there: \(TensorSource.list(missing))") }
            tensors += source.all
            metadata.merge(source.metadata) { first, _ in first }
        }
        return try TensorSource(origin: folder, metadata: metadata, tensors)
    }
}
