import Checkpoints
import Glibc
import Platform
import Testing
import Tokenizers

@testable import Training

/// With the real SmolLM2-135M-Instruct; only where PEFTSWIFT_TEST_MODEL is the path of its GGUF file.
@Suite(.enabled(if: getenv("PEFTSWIFT_TEST_MODEL") != nil))
struct RealModelTests {
    static func tokenizer() throws -> Tokenizer {
        let gguf = try GGUF(path: String(cString: getenv("PEFTSWIFT_TEST_MODEL")), budget: .init())
        func bytes(_ key: String) throws -> [ArraySlice<UInt8>] { try gguf.strings(key).slices() }
        var vocabulary = GGUFVocabulary(model: try gguf.string("tokenizer.ggml.model"), pre: gguf["tokenizer.ggml.pre"]?.stringValue, tokens: try bytes("tokenizer.ggml.tokens"))
        vocabulary.tokenTypes = gguf["tokenizer.ggml.token_type"]?.numbersValue?.integers()?.map { Int32($0) } ?? []
        vocabulary.merges = try bytes("tokenizer.ggml.merges")
        vocabulary.beginningID = gguf["tokenizer.ggml.bos_token_id"]?.intValue
        vocabulary.endID = gguf["tokenizer.ggml.eos_token_id"]?.intValue
        vocabulary.paddingID = gguf["tokenizer.ggml.padding_token_id"]?.intValue
        vocabulary.addsBeginning = gguf["tokenizer.ggml.add_bos_token"]?.boolValue
        vocabulary.chatTemplate = gguf["tokenizer.chat_template"]?.stringValue
        return try Tokenizer(vocabulary)
    }

    @Test func onlyTheAssistantsWordsAreLearned() throws {
        let tokenizer = try RealModelTests.tokenizer()
        let line = #"""
            {"messages": [{"role": "system", "content": "You are a blacksmith."}, {"role": "user", "content": "What do you sell?"}, \#
            {"role": "assistant", "content": "Swords — and näils."}, {"role": "user", "content": "Swords?"}, {"role": "assistant", "content": "Aye."}]}
            """#
        var options = DataSetOptions()
        options.format = .jsonLines
        let set = try DataSet(MemoryBytes(Array(line.utf8), name: "m"), try TokenizerEncoder(tokenizer), options)
        let sample = try #require(try set.samples(0).first)
        let learned = zip(sample.ids, sample.labels).filter { $1 != Sample.ignored }.map(\.0)
        #expect(try tokenizer.decode(learned, skipSpecialTokens: false) == "Swords — and näils.<|im_end|>\nAye.<|im_end|>\n")
        let whole = try tokenizer.decode(sample.ids, skipSpecialTokens: false)
        #expect(whole.hasPrefix("<|im_start|>system\nYou are a blacksmith.<|im_end|>\n<|im_start|>user\nWhat do you sell?<|im_end|>\n<|im_start|>assistant\nSwords"), "\(whole)")

        let completion = try DataSet(MemoryBytes(Array(#"{"prompt": "One two", "completion": " three four"}"#.utf8), name: "m"), try TokenizerEncoder(tokenizer), options)
        let second = try #require(try completion.samples(0).first)
        #expect(try tokenizer.decode(zip(second.ids, second.labels).filter { $1 != Sample.ignored }.map(\.0), skipSpecialTokens: false) == " three four<|im_end|>")
    }
}
