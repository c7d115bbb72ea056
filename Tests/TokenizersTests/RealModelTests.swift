import Glibc
import Platform
import Testing
import Tokenizers

/// The tokenizer of the real SmolLM2-135M-Instruct; only where PEFTSWIFT_TEST_MODEL is the path of its GGUF file.
@Suite(.enabled(if: getenv("PEFTSWIFT_TEST_MODEL") != nil)) struct RealModelTests {
    @Test func sameIDsAsTransformers() throws {
        let tokenizer = try Tokenizer(GGUFMetadata(path: String(cString: getenv("PEFTSWIFT_TEST_MODEL"))).vocabulary())
        let expected = try Fixtures.json("smollm2.expected.json")
        #expect(tokenizer.vocabularySize == 49152)
        for (text, ids) in zip(try Fixtures.texts(), expected["ids"]?.arrayValue ?? []) {
            let found = try tokenizer.encode(text, addSpecialTokens: false)
            #expect(found == Fixtures.ids(ids), "\(text.debugDescription)")
            // Every byte of the text is in its tokens.
            #expect(Array(try tokenizer.decode(found, skipSpecialTokens: false).utf8) == Array(text.utf8))
        }
        var variables = ChatTemplate.Variables()
        variables.addsGenerationPrompt = true
        let chat = try tokenizer.makeChatTemplate().render(
            [.object(["role": .string("user"), "content": .string("Hi")])], variables)
        #expect(chat == expected["chat"]?.stringValue)
        #expect(tokenizer.specialTokens.endOfTurn.first == tokenizer.tokenID(of: "<|im_end|>"))
    }
}

/// Just enough of GGUF to read a trusted file's metadata: this module's tests do not depend on the reader of the library.
private struct GGUFMetadata {
    private var bytes: [UInt8]
    private var position = 24
    private var numbers: [String: Int] = [:]
    private var texts: [String: [[UInt8]]] = [:]
    private var lists: [String: [Int32]] = [:]

    init(path: String) throws {
        guard let file = fopen(path, "rb") else { throw PEFTError(.notFound, path) }
        defer { fclose(file) }
        bytes = [UInt8](repeating: 0, count: 16 << 20)
        bytes.removeLast(bytes.count - fread(&bytes, 1, bytes.count, file))
        let count = bytes[16..<24].reversed().reduce(0) { $0 << 8 | Int($1) }
        for _ in 0..<count {
            let key = String(decoding: text(), as: UTF8.self)
            read(key, type: Int(integer(4)))
        }
    }

    private mutating func integer(_ size: Int) -> UInt64 {
        defer { position += size }
        return bytes[position..<position + size].reversed().reduce(0) { $0 << 8 | UInt64($1) }
    }

    private mutating func text() -> [UInt8] {
        let count = Int(integer(8))
        defer { position += count }
        return Array(bytes[position..<position + count])
    }

    private mutating func read(_ key: String, type: Int) {
        let sizes = [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8]
        switch type {
        case 8: texts[key, default: []].append(text())
        case 9:
            let (element, count) = (Int(integer(4)), Int(integer(8)))
            for _ in 0..<count {
                if element == 8 {
                    texts[key, default: []].append(text())
                } else {
                    lists[key, default: []].append(Int32(truncatingIfNeeded: integer(sizes[element])))
                }
            }
        default: numbers[key] = Int(integer(sizes[type]))
        }
    }

    func vocabulary() -> GGUFVocabulary {
        func string(_ key: String) -> String? {
            texts["tokenizer.\(key)"]?.first.map { String(decoding: $0, as: UTF8.self) }
        }
        var gguf = GGUFVocabulary(
            model: string("ggml.model") ?? "", pre: string("ggml.pre"), tokens: (texts["tokenizer.ggml.tokens"] ?? []).map { $0[...] })
        gguf.tokenTypes = lists["tokenizer.ggml.token_type"] ?? []
        gguf.merges = (texts["tokenizer.ggml.merges"] ?? []).map { $0[...] }
        gguf.beginningID = numbers["tokenizer.ggml.bos_token_id"]
        gguf.endID = numbers["tokenizer.ggml.eos_token_id"]
        gguf.paddingID = numbers["tokenizer.ggml.padding_token_id"]
        gguf.unknownID = numbers["tokenizer.ggml.unknown_token_id"]
        gguf.addsBeginning = numbers["tokenizer.ggml.add_bos_token"].map { $0 != 0 }
        gguf.chatTemplate = string("chat_template")
        return gguf
    }
}
