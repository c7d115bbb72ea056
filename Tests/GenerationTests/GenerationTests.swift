import Adapters
import Glibc
import Models
import Platform
import Tensors
import Testing

@testable import Generation

/// With the real SmolLM2-135M-Instruct; only where PEFTSWIFT_TEST_MODEL is the path of its GGUF file.
@Suite(.enabled(if: getenv("PEFTSWIFT_TEST_MODEL") != nil)) struct RealModelTests {
    @Test func continues() throws {
        let clock = ContinuousClock()
        let start = clock.now
        let opened = try OpenedModel.open(path: String(cString: getenv("PEFTSWIFT_TEST_MODEL")), Engine(threads: 2), compute: .automatic)
        print("open", clock.now - start)
        let unadapted = opened.model.unadapted
        let session = try Session(opened.model, tokenizer: opened.tokenizer, options: SessionOptions()) { unadapted }
        try session.append(chat: [.object(["role": .string("user"), "content": .string("What is the capital of France?")])])
        print("first", clock.now - start)
        var text = ""
        let result = try session.generate(maxTokens: 48) { text += $0; return true }
        print(text, result.isEnd, session.statistics)
        #expect(text.contains("Paris"))
    }
}
