import Testing

@testable import Platform

@Suite struct JSONTests {
    @Test("an integer beyond 64 bits is a number; the others stay integers")
    func bigIntegers() throws {
        // What transformers writes for a tokenizer without a limit.
        let value = try JSONValue(parsing: #"{"model_max_length": 1000000000000000019884624838656, "a": 7, "b": [-3, 0.5], "c": 9007199254740992}"#)
        #expect(value["model_max_length"] == .number(1e30))
        #expect(value["a"] == .integer(7))
        #expect(value["b"] == .array([.integer(-3), .number(0.5)]))
        #expect(value["c"] == .integer(9_007_199_254_740_992))
        #expect(try JSONValue(parsing: "[-1e3, -100000000000000000000]") == .array([.integer(-1000), .number(-1e20)]))
    }

    @Test("numbers without such an integer are what they are written as")
    func numbers() throws {
        #expect(try JSONValue(parsing: "[16.0, 9223372036854775807]") == .array([.number(16), .integer(.max)]))
    }

    @Test(
        "what is refused",
        arguments: ["", "{", "[1,]", #"{"a": 1, "a": 2}"#, "1e999", "[100000000000000000000, 1e999]", "1 2", "\"\u{1}\"", String(repeating: "[", count: 200) + String(repeating: "]", count: 200)])
    func refused(_ text: String) {
        #expect(throws: PEFTError.self) { try JSONValue(parsing: text) }
    }
}
