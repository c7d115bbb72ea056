import Platform
import Testing
import Tokenizers

/// Broken files and texts end in an error that helps, or in something sensible.
@Suite struct BadInputTests {
    /// Kind "smollm" with one member changed.
    private func definition(_ kind: String = "smollm", _ change: (inout JSONObject) -> Void) throws -> JSONValue {
        var object = try #require(try Fixtures.definition(kind).objectValue)
        change(&object)
        return .object(object)
    }

    private func model(_ change: @escaping (inout JSONObject) -> Void) throws -> JSONValue {
        try definition { object in
            var model = object["model"]?.objectValue ?? JSONObject()
            change(&model)
            object["model"] = .object(model)
        }
    }

    private func message(_ body: () throws -> Tokenizer) -> String {
        do { _ = try body() } catch let error as PEFTError { return error.message } catch {}
        return ""
    }

    @Test func unknownComponentsAreNamed() throws {
        let alien = JSONValue.object(["type": .string("Alien")])
        for key in ["normalizer", "pre_tokenizer", "post_processor", "decoder"] {
            let text = message { try Tokenizer(definition: try definition { $0[key] = alien }) }
            #expect(text.contains(key) && text.contains("Alien"), "\(text)")
        }
        #expect(message { try Tokenizer(definition: try model { $0["type"] = .string("Alien") }) }.contains("Alien"))
    }

    @Test func brokenModels() throws {
        #expect(
            message { try Tokenizer(definition: try model { $0["merges"] = .array([.string("a qqqq")]) }) }.contains(
                "qqqq"))
        #expect(
            message { try Tokenizer(definition: try model { $0["merges"] = .array([.string("ab")]) }) }.contains(
                "merge 0"))
        #expect(
            message { try Tokenizer(definition: try model { $0["merges"] = .array([.integer(1)]) }) }.contains(
                "merge 0"))
        #expect(message { try Tokenizer(definition: try model { $0["merges"] = nil }) }.contains("merges"))
        #expect(
            message { try Tokenizer(definition: try model { $0["vocab"] = .object(["a": .integer(1 << 40)]) }) }
                .contains("1099511627776"))
        #expect(
            message { try Tokenizer(definition: try model { $0["vocab"] = .object(["a": .integer(-1)]) }) }.contains(
                "-1"))
        #expect(
            message {
                try Tokenizer(definition: try model { $0["vocab"] = .object(["a": .integer(0), "b": .integer(0)]) })
            }.contains("id 0"))
        #expect(
            message { try Tokenizer(definition: try model { $0["vocab"] = .object(["a": .string("x")]) }) }.contains(
                "\"a\""))
        #expect(message { try Tokenizer(definition: try model { $0["vocab"] = nil }) }.contains("vocab"))
        #expect(message { try Tokenizer(definition: try model { $0["unk_token"] = .string("?!") }) }.contains("?!"))
        #expect(message { try Tokenizer(definition: try model { $0["dropout"] = .number(0.1) }) }.contains("0.1"))
        for value: JSONValue in [.null, .array([]), .string("x"), .object(JSONObject())] {
            #expect(throws: PEFTError.self) { try Tokenizer(definition: value) }
        }
    }

    @Test func brokenComponents() throws {
        for (key, json) in [
            ("pre_tokenizer", #"{"type":"Split","pattern":{"Regex":"(a"},"behavior":"Isolated"}"#),
            ("pre_tokenizer", #"{"type":"Split","pattern":{},"behavior":"Isolated"}"#),
            ("pre_tokenizer", #"{"type":"Split","pattern":{"String":"a"},"behavior":"Sometimes"}"#),
            ("pre_tokenizer", #"{"type":"Split","pattern":{"Regex":"[a&&b]"},"behavior":"Isolated"}"#),
            ("pre_tokenizer", #"{"type":"Sequence"}"#),
            ("pre_tokenizer", #"{"type":"Sequence","pretokenizers":[{"type":"ByteLevel"},{"type":"Digits"}]}"#),
            ("pre_tokenizer", #"{"type":"Metaspace","replacement":"ab"}"#),
            ("pre_tokenizer", #"{"type":"Digits","individual_digits":3}"#),
            ("normalizer", #"{"type":"Prepend"}"#), ("normalizer", #"{"type":"Replace","pattern":"a","content":"b"}"#),
            ("decoder", #"{"type":"Strip","content":" ","start":-1,"stop":0}"#),
            ("decoder", #"{"type":"Sequence","decoders":[{"type":"Fuse"},{"type":"ByteFallback"}]}"#),
            ("post_processor", #"{"type":"TemplateProcessing","single":[]}"#),
            (
                "post_processor",
                #"{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"x"}}],"special_tokens":{}}"#
            ), ("post_processor", #"{"type":"BertProcessing"}"#),
            ("added_tokens", #"[{"id":-1,"content":"x"}]"#), ("added_tokens", #"[{"id":99999999999,"content":"x"}]"#),
            ("added_tokens", #"[{"id":3}]"#),
        ] {
            let value = try JSONValue(parsing: json)
            #expect(throws: PEFTError.self, "\(key): \(json)") {
                try Tokenizer(definition: try definition { $0[key] = value })
            }
        }
        var nested = JSONValue.object(["type": .string("NFC")])
        for _ in 0..<60 { nested = .object(["type": .string("Sequence"), "normalizers": .array([nested])]) }
        #expect(throws: PEFTError.self) { try Tokenizer(definition: try definition { $0["normalizer"] = nested }) }
    }

    /// Text with bytes flipped or cut off: JSON that does not parse, or a tokenizer that still works or is refused.
    @Test func garbledFiles() throws {
        let text = try Fixtures.definition("smollm").text()
        let bytes = Array(text.utf8)
        var state: UInt64 = 42
        func random(_ limit: Int) -> Int {
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return Int(state >> 33) % limit
        }
        for round in 0..<60 {
            var broken = bytes
            if round % 3 == 0 { broken.removeLast(random(bytes.count)) }
            for _ in 0..<1 + random(4) where !broken.isEmpty { broken[random(broken.count)] = UInt8(random(256)) }
            let json = try? broken.withUnsafeBytes { try JSONValue(parsing: $0) }
            guard let json, let tokenizer = try? Tokenizer(definition: json) else { continue }
            _ = try? tokenizer.encode("Hello <|im_end|> 123 é", addSpecialTokens: true)
            _ = try? tokenizer.decode((-5..<800).map { Int32($0) }, skipSpecialTokens: false)
        }
    }

    @Test func brokenGGUF() throws {
        let good = ggufVocabulary(try Fixtures.definition("smollm"), pre: "smollm")
        func broken(_ change: (inout GGUFVocabulary) -> Void) -> String {
            var gguf = good
            change(&gguf)
            return message { try Tokenizer(gguf) }
        }
        #expect(broken { $0.model = "t5" }.contains("t5"))
        #expect(broken { $0.pre = "klingon" }.contains("klingon"))
        #expect(broken { $0.tokenTypes.removeLast() }.contains("token types"))
        #expect(broken { $0.scores = [1] }.contains("scores"))
        #expect(broken { $0.merges = [] }.contains("merges"))
        #expect(broken { $0.merges[5] = Array("zzzz qqqq".utf8)[...] }.contains("merge 5"))
        #expect(broken { $0.merges[5] = [0x20, 0xFF, 0x20] }.contains("merge 5"))
        #expect(broken { $0.beginningID = 1 << 50 }.contains("bos_token_id"))
        #expect(broken { $0.endID = -1 }.contains("eos_token_id"))
        #expect(broken { $0.model = "llama" }.contains("scores"))
        #expect(
            broken {
                $0.model = "llama"; $0.scores = Array(repeating: .nan, count: $0.tokens.count)
            }.contains("finite"))
        #expect(
            broken {
                $0.tokens = []; $0.tokenTypes = []
            }.contains("merge 0"))
        // Tokens that are no text, and no tokens at all.
        var odd = GGUFVocabulary(model: "llama", tokens: [[], [0xFF], [0x61], [0x61, 0x61]])
        odd.scores = [0, 0, -1, -2]
        odd.tokenTypes = [2, 3, 1, 1]
        let tokenizer = try Tokenizer(odd)
        #expect(try tokenizer.encode("aaab", addSpecialTokens: false).isEmpty == false)
        #expect(try tokenizer.decode([1, 2, 99, -7], skipSpecialTokens: false) == "\u{FFFD}a")
    }

    @Test func idsOutOfRange() throws {
        let tokenizer = try Fixtures.tokenizer("smollm")
        #expect(
            try tokenizer.decode([.min, -1, .max, 40], skipSpecialTokens: false)
                == tokenizer.decode([40], skipSpecialTokens: false))
        #expect(
            tokenizer.token(of: -1) == nil && tokenizer.token(of: .max) == nil && !tokenizer.isSpecial(-1)
                && tokenizer.tokenID(of: "no such token") == nil)
    }

    /// Bytes that are not UTF-8 count as U+FFFD, as in Python's `errors="replace"`.
    @Test(arguments: EncodingTests.kinds) func invalidUTF8(kind: String) throws {
        let tokenizer = try Fixtures.tokenizer(kind)
        for bytes: [UInt8] in [
            [0xFF], [0x61, 0xE2, 0x82], [0xED, 0xA0, 0x80, 0x62], [0xC0, 0x80], Array(0...255), [0xF0, 0x9F, 0x98],
        ] {
            #expect(
                try tokenizer.encode(utf8: bytes, addSpecialTokens: false)
                    == tokenizer.encode(String(decoding: bytes, as: UTF8.self), addSpecialTokens: false))
        }
    }

    /// Nothing is quadratic: a line of 10 MB takes seconds (built for release).
    @Test func longLines() throws {
        for (kind, unit) in [
            ("smollm", "a"), ("llama2", "ab "), ("gemma", " "), ("llama3", "\n"), ("mistral", "😀"),
            ("gpt2", "<SINGLE>"),
        ] {
            let tokenizer = try Fixtures.tokenizer(kind)
            let text = String(repeating: unit, count: 100_000 / unit.utf8.count)
            let ids = try tokenizer.encode(text, addSpecialTokens: false)
            #expect(try tokenizer.decode(ids, skipSpecialTokens: false) == text)
        }
    }

    @Test func streamingNeverSplitsACharacter() throws {
        let tokenizer = try Fixtures.tokenizer("smollm")
        let ids = try tokenizer.encode("a👩🏽‍💻é日", addSpecialTokens: false)
        var stream = StreamingDecoder(tokenizer, skipSpecialTokens: true)
        var parts: [String] = []
        for id in ids { parts.append(try stream.push(id)) }
        #expect(parts.count > 8 && parts.contains(""))
        #expect(!parts.joined().unicodeScalars.contains("\u{FFFD}"))
        #expect(parts.joined() == "a👩🏽‍💻é日" && stream.flush() == "")
        // Cut within the last character: what is left comes as U+FFFD, and not before the end.
        var cut = StreamingDecoder(tokenizer, skipSpecialTokens: true)
        var text = ""
        for id in ids.dropLast() { text += try cut.push(id) }
        #expect(text == "a👩🏽‍💻é" && cut.flush() == "\u{FFFD}")
    }
}
