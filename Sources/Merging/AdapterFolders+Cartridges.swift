internal import Adapters
internal import Checkpoints
internal import Platform
internal import Tensors

// Cartridges, one behind the other: texts that were learned apart, read together (PEFT's `compose_cartridge_adapters`).
extension AdapterFolders {
    static func isCartridge(_ files: AdapterFiles) -> Bool { files.config["peft_type"] == .string(Cartridge.peftType) }

    /// Writes the rows of all, in their order; of the first those that are frozen stay so.
    func compose(_ adapters: [(path: String, weight: Double, files: AdapterFiles)], to path: String, _ options: JSONObject) throws(PEFTError) -> JSONObject {
        if let other = options.pairs.first(where: { $0.key != "combination_type" || $0.value != .string("cat") }) {
            throw PEFTError(.argument, "\(other.key) \(other.value.text()): cartridges can only stand one behind the other (\"cat\")")
        }
        guard let first = adapters.first, adapters.count > 1 else { throw PEFTError(.argument, "one cartridge; at least two are needed") }
        var rows: [Tensor] = []
        for item in adapters {
            guard AdapterFolders.isCartridge(item.files) else { throw PEFTError(.mismatch, "'\(item.path)' is \(item.files.config["peft_type"]?.text() ?? "none"), and '\(first.path)' a CARTRIDGE") }
            guard item.weight == 1 else { throw PEFTError(.argument, "'\(item.path)' with a weight of \(item.weight): a cartridge has none") }
            for key in ["task_type", "token_dim", "num_layers", "num_attention_heads", "num_transformer_submodules"] where item.files.config[key] != first.files.config[key] {
                throw PEFTError(.mismatch, "\(key) is \(item.files.config[key]?.text() ?? "missing") in '\(item.path)' and \(first.files.config[key]?.text() ?? "missing") in '\(first.path)'")
            }
            guard let own = item.files.tensors.all.first(where: { $0.name == "prompt_embeddings" })?.tensor, own.shape.count == 2, own.dtype.isWeightFormat,
                own.columns == rows.first?.columns ?? own.columns
            else { throw PEFTError(.mismatch, "'\(item.path)' has no prompt_embeddings [tokens, \(rows.first.map { String($0.columns) } ?? "width")] of numbers") }
            rows.append(try own.converted(to: .f32, engine, .scratch))
        }
        let count = rows.reduce(0) { $0 + $1.rows }
        let all = try Tensor(engine, [count, rows[0].columns], .f32, .scratch)
        var start = 0
        for part in rows {
            engine.axpby(1, part, 0, into: try all.rows(start..<start + part.rows))
            start += part.rows
        }
        var config = first.files.config
        config["num_virtual_tokens"] = .integer(Int64(count))
        try write(config, [NamedTensor("prompt_embeddings", all)], to: path)
        return ["virtual_tokens": .integer(Int64(count))]
    }
}
