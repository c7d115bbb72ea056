import Glibc
import Platform
import Tokenizers

/// Files of Tests/Fixtures/Tokenizers, made by the scripts that lie beside them.
enum Fixtures {
    static func json(_ name: String) throws -> JSONValue {
        try JSONValue(parsing: text(directory + name))
    }

    private static let directory =
        #filePath.split(separator: "/").dropLast(2).map { "/" + $0 }.joined() + "/Fixtures/Tokenizers/"

    static func text(_ path: String) throws -> String {
        guard let file = fopen(path, "rb") else { throw PEFTError(.notFound, path) }
        defer { fclose(file) }
        var bytes: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 1 << 16)
        while case let count = fread(&buffer, 1, buffer.count, file), count > 0 { bytes += buffer[..<count] }
        return String(decoding: bytes, as: UTF8.self)
    }

    /// tokenizer.json of a kind; the four SentencePiece kinds share one vocabulary file.
    static func definition(_ kind: String) throws -> JSONValue {
        guard var object = try json("\(kind).json").objectValue, var model = object["model"]?.objectValue else {
            throw PEFTError(.format, kind)
        }
        if model["vocab"] == nil {
            let shared = try json("sentencepiece.model.json")
            model["vocab"] = shared["vocab"]
            model["merges"] = shared["merges"]
            object["model"] = .object(model)
        }
        return .object(object)
    }

    static func tokenizer(_ kind: String) throws -> Tokenizer { try Tokenizer(definition: definition(kind)) }

    static func texts() throws -> [String] { (try json("texts.json").arrayValue ?? []).map { $0.stringValue ?? "" } }

    static func ids(_ value: JSONValue?) -> [Int32] { (value?.arrayValue ?? []).map { Int32($0.intValue ?? -1) } }
}

/// What a GGUF converter would write for a tokenizer.json of the kind "gpt2".
func ggufVocabulary(_ definition: JSONValue, pre: String) -> GGUFVocabulary {
    let vocabulary = definition["model"]?["vocab"]?.objectValue ?? JSONObject()
    let added = definition["added_tokens"]?.arrayValue ?? []
    let count =
        1
        + max(
            vocabulary.pairs.map { $0.value.intValue ?? 0 }.max() ?? 0, added.map { $0["id"]?.intValue ?? 0 }.max() ?? 0
        )
    var gguf = GGUFVocabulary(model: "gpt2", pre: pre, tokens: Array(repeating: [], count: count))
    gguf.tokenTypes = Array(repeating: 1, count: count)
    for (token, id) in vocabulary.pairs { gguf.tokens[id.intValue ?? 0] = Array(token.utf8)[...] }
    for token in added {
        guard let id = token["id"]?.intValue else { continue }
        gguf.tokens[id] = Array((token["content"]?.stringValue ?? "").utf8)[...]
        gguf.tokenTypes[id] = token["special"]?.boolValue == true ? 3 : 4
    }
    gguf.merges = (definition["model"]?["merges"]?.arrayValue ?? []).map { merge in
        Array((merge.stringValue ?? (merge.arrayValue ?? []).compactMap(\.stringValue).joined(separator: " ")).utf8)[...]
    }
    return gguf
}
