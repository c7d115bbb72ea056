internal import Checkpoints
package import Platform
package import Tensors
package import Tokenizers

extension Tokenizer {
    /// Opens tokenizer.json, the folder it is in, or a GGUF file.
    /// - Throws: `.notFound` when there is no tokenizer; what reading it throws.
    package static func open(path: String, budget: MemoryBudget) throws(PEFTError) -> Tokenizer {
        switch try Files.kind(of: path) {
        case .folder:
            guard let tokenizer = try Tokenizer(folder: path) else { throw PEFTError(.notFound, "'\(path)' has no tokenizer.json") }
            return tokenizer
        case .file:
            if path.hasSuffix(".json") { return try Tokenizer(definition: try Files.json(at: path, maximumBytes: 256 << 20)) }
            guard let tokenizer = try Tokenizer(GGUF(path: path, budget: budget)) else { throw PEFTError(.notFound, "'\(path)' has no tokenizer in it") }
            return tokenizer
        default: throw PEFTError(.notFound, "there is no tokenizer at '\(path)': neither a file nor a folder")
        }
    }

    /// Of a Hugging Face folder; nil when it has no tokenizer.json.
    convenience init?(folder: String) throws(PEFTError) {
        func optional(_ name: String) throws(PEFTError) -> JSONValue? {
            let path = Files.join(folder, name)
            return Files.isFile(path) ? try Files.json(at: path, maximumBytes: 256 << 20) : nil
        }
        guard let definition = try optional("tokenizer.json") else { return nil }
        let template = Files.join(folder, "chat_template.jinja")
        try self.init(
            definition: definition, configuration: try optional("tokenizer_config.json"), specialTokensMap: try optional("special_tokens_map.json"),
            chatTemplate: Files.isFile(template) ? try Files.text(at: template) : nil)
    }

    /// Of a GGUF file's metadata; nil when there is none.
    convenience init?(_ gguf: GGUF) throws(PEFTError) {
        guard let model = gguf["tokenizer.ggml.model"]?.stringValue else { return nil }
        func bytes(_ key: String) -> [ArraySlice<UInt8>] { gguf["tokenizer.ggml.\(key)"]?.stringsValue?.slices() ?? [] }
        func integer(_ key: String) -> Int? { gguf["tokenizer.ggml.\(key)"]?.intValue }
        var vocabulary = GGUFVocabulary(model: model, pre: gguf["tokenizer.ggml.pre"]?.stringValue, tokens: bytes("tokens"))
        vocabulary.tokenTypes = gguf["tokenizer.ggml.token_type"]?.numbersValue?.integers()?.map { Int32(clamping: $0) } ?? []
        vocabulary.scores = gguf["tokenizer.ggml.scores"]?.numbersValue?.floats() ?? []
        vocabulary.merges = bytes("merges")
        vocabulary.beginningID = integer("bos_token_id")
        vocabulary.endID = integer("eos_token_id")
        vocabulary.paddingID = integer("padding_token_id")
        vocabulary.unknownID = integer("unknown_token_id")
        vocabulary.endOfTurnID = integer("eot_token_id")
        vocabulary.addsBeginning = gguf["tokenizer.ggml.add_bos_token"]?.boolValue
        vocabulary.addsEnd = gguf["tokenizer.ggml.add_eos_token"]?.boolValue
        vocabulary.addsSpacePrefix = gguf["tokenizer.ggml.add_space_prefix"]?.boolValue
        vocabulary.chatTemplate = gguf["tokenizer.chat_template"]?.stringValue
        try self.init(vocabulary)
    }
}
