import Platform
import Testing
import Tokenizers

/// Chat templates against what transformers renders.
@Suite struct ChatTemplateTests {
    static let tokens = ["bos_token": "<s>", "eos_token": "</s>"]
    /// The moment at which the fixtures were rendered, as far as templates are concerned.
    static let date = TemplateDate(year: 2026, month: 3, day: 7, hour: 14, minute: 5, second: 9)

    private func variables(_ one: JSONValue) -> ChatTemplate.Variables {
        var variables = ChatTemplate.Variables()
        variables.addsGenerationPrompt = one["add_generation_prompt"]?.boolValue ?? false
        variables.tools = one["tools"] ?? .null
        variables.date = ChatTemplateTests.date
        if let thinking = one["enable_thinking"] { variables.others["enable_thinking"] = thinking }
        return variables
    }

    @Test func publishedTemplates() throws {
        for model in try Fixtures.json("templates.json")["published"]?.arrayValue ?? [] {
            let name = model["name"]?.stringValue ?? ""
            let template = try ChatTemplate(
                model["template"]?.stringValue ?? "", specialTokens: ChatTemplateTests.tokens)
            for (index, one) in (model["cases"]?.arrayValue ?? []).enumerated() {
                let messages = one["messages"]?.arrayValue ?? []
                if let expected = one["text"]?.stringValue {
                    let text = try template.render(messages, variables(one))
                    #expect(text == expected, "\(name), case \(index)")
                } else {
                    #expect(throws: PEFTError.self, "\(name), case \(index): \(one["error"]?.stringValue ?? "")") {
                        try template.render(messages, variables(one))
                    }
                }
            }
        }
    }

    @Test func constructs() throws {
        let fixture = try Fixtures.json("templates.json")
        let conversation = fixture["conversation"]?.arrayValue ?? []
        for one in fixture["constructs"]?.arrayValue ?? [] {
            let source = one["template"]?.stringValue ?? ""
            func rendered() throws -> String {
                try ChatTemplate(source, specialTokens: ChatTemplateTests.tokens).render(conversation, variables(.null))
            }
            if let expected = one["text"]?.stringValue {
                let text = Result { try rendered() }
                #expect(
                    (try? text.get()).map { Array($0.utf8) } == Array(expected.utf8),
                    "\(source): \(text) is not \(expected)")
            } else {
                #expect(throws: PEFTError.self, "\(source)") { try rendered() }
            }
        }
    }

    /// The spans of each published template hold the assistant's words and nothing of the others'.
    @Test func assistantSpans() throws {
        let fixture = try Fixtures.json("templates.json")
        for model in fixture["published"]?.arrayValue ?? [] {
            let name = model["name"]?.stringValue ?? ""
            let template = try ChatTemplate(
                model["template"]?.stringValue ?? "", specialTokens: ChatTemplateTests.tokens)
            let messages = model["cases"]?.arrayValue?[2]["messages"]?.arrayValue ?? []
            let (text, spans) = try template.renderWithAssistantSpans(messages, variables(.null))
            #expect(text == (try template.render(messages, variables(.null))))
            try #require(spans.count == 2, "\(name)")
            let words = spans.map { String(decoding: Array(text.utf8)[$0], as: UTF8.self) }
            for (word, content) in zip(words, ["I am a blacksmith.", "Steel is honest — naïve 😀."]) {
                #expect(word.contains(content), "\(name): \(word)")
                #expect(
                    !word.contains("steel") && !word.contains("assistant") && !word.contains("user"), "\(name): \(word)"
                )
                #expect(
                    ["<|im_end|>", "<|eot_id|>", "</s>", "<end_of_turn>", "<|end|>", "</A>"].contains {
                        word.contains($0)
                    }, "\(name): \(word) does not end its turn")
            }
        }
    }

    /// From messages to the tokens that a model learns: the answers with their ends, and nothing else.
    @Test func tokensToLearn() throws {
        let published = try Fixtures.json("templates.json")["published"]?.arrayValue ?? []
        for (name, kind, answers) in [
            ("chatml", "smollm", [" I am a blacksmith. <|im_end|>\n", "Steel is honest — naïve 😀.<|im_end|>\n"]),
            ("llama3", "llama3", ["I am a blacksmith.<|eot_id|>", "Steel is honest — naïve 😀.<|eot_id|>"]),
            ("llama2", "llama2", [" I am a blacksmith. </s>", " Steel is honest — naïve 😀. </s>"]),
        ] {
            let model = published.first { $0["name"]?.stringValue == name }
            let template = try ChatTemplate(
                model?["template"]?.stringValue ?? "", specialTokens: ChatTemplateTests.tokens)
            let messages = model?["cases"]?.arrayValue?[2]["messages"]?.arrayValue ?? []
            let (text, spans) = try template.renderWithAssistantSpans(messages)
            let tokenizer = try Fixtures.tokenizer(kind)
            let encoding = try tokenizer.encodeWithRanges(text, addSpecialTokens: false)
            let learned = zip(encoding.ids, encoding.beginsWithin(spans)).filter(\.1).map(\.0)
            let found = try tokenizer.decode(learned, skipSpecialTokens: false)
            // SentencePiece's decoder takes the very first space.
            #expect(found == answers.joined() || " " + found == answers.joined(), "\(name): \(found.debugDescription)")
        }
    }

    /// What is beyond the interpreter is named, with its line.
    @Test(arguments: [
        ("a\n{% include 'x' %}", "line 2", "include"), ("{{ x | urlize }}", "line 1", "urlize"),
        ("{{ x is escaped }}", "line 1", "escaped"),
        ("{% for a in b recursive %}{% endfor %}", "line 1", "recursive"),
        ("\n\n{{ 'a'.encode() }}", "line 3", "encode"), ("{{ '%s' % 'a' }}", "line 1", "%"),
        ("{{ f(*a) }}", "line 1", "unpacking"),
        ("{% call f() %}{% endcall %}", "line 1", "call"), ("{% raw %}x{% endraw %}", "line 1", "raw"),
        ("{{ lipsum() }}", "line 1", "lipsum"),
    ]) func unsupported(source: String, line: String, construct: String) {
        let error = #expect(throws: PEFTError.self) { try ChatTemplate(source).render([.null]) }
        #expect(error?.kind == .unsupported)
        #expect(
            error?.message.contains(line) == true && error?.message.contains(construct) == true,
            "\(error?.message ?? "")")
    }

    @Test(arguments: [
        "{% if %}", "{{", "{{ a", "{% for x in y %}", "{% endif %}", "{{ 'a }}", "{# a", "{{ (1 }}", "{{ 1 2 }}",
        "{{ a.1b }}", "{% set = 1 %}", "{{ [1:2] }}", "{{ a[1:2:3:4] }}", "{% else %}", "{{ \"\\u12\" }}",
        "{{ \"\\ud800\" }}", "{{ 99999999999999999999 }}",
        "{{ 9223372036854775807 + 1 }}", "{{ -9223372036854775808 }}", "{{ 1 // 0 }}", "{{ 1 % 0 }}", "{{ 10 ** 30 }}",
        "{{ 'a' * 100000000 }}", "{{ range(100000000) }}", "{{ {}[{}].x }}", "{% set messages.x = 1 %}", "{{ \u{1} }}",
        "{{ ''.split('') }}", "{{ messages() }}", "{{ 'x'[::0] }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% set ns = namespace(s='ab') %}{% for i in range(100) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(x=1) %}{% for i in range(100000) %}{% set ns.x = [ns.x] %}{% endfor %}",
        "{% set ns = namespace(x=1) %}{% for i in range(100) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        "{% for i in range(1000) %}{% for j in range(1000) %}{{ 1 in range(100000) | list }}{% endfor %}{% endfor %}",
        "{% for i in range(1000000) %}{{ 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' * 10 }}{% endfor %}",
        "{{ range(100000) | map('string') | unique | list | length }}",
    ]) func badTemplatesEndInErrors(source: String) {
        #expect(throws: PEFTError.self) { try ChatTemplate(source).render([.object(["role": .string("user")])]) }
    }

    @Test func deepNestingIsRefused() {
        for (open, close) in [("(", ")"), ("[", "]"), ("{1:", "}"), ("-", ""), ("not ", ""), ("+", "")] {
            let source =
                "{{ " + String(repeating: open, count: 100_000) + "1" + String(repeating: close, count: 100_000) + " }}"
            #expect(throws: PEFTError.self) { try ChatTemplate(source) }
        }
        for (start, link) in [
            ("1", " + 1"), ("a", ".a"), ("a", "[0]"), ("a", " | list"), ("a", " or a"), ("a", " is defined"),
            ("a", " ~ a"), ("a", " if a else a"),
        ] {
            #expect(throws: PEFTError.self) {
                try ChatTemplate("{{ " + start + String(repeating: link, count: 50_000) + " }}")
            }
        }
        #expect(throws: PEFTError.self) { try ChatTemplate(String(repeating: "{% if a %}", count: 50_000)) }
    }

    /// Every beginning of a published template is either a template or an error.
    @Test func truncatedTemplates() throws {
        let template = try Fixtures.json("templates.json")["published"]?.arrayValue?[4]["template"]?.stringValue ?? ""
        let scalars = Array(template.unicodeScalars)
        for count in stride(from: 0, to: scalars.count, by: 7) {
            let part = String(String.UnicodeScalarView(scalars[..<count]))
            _ = try? ChatTemplate(part).render([.object(["role": .string("user"), "content": .string("x")])])
        }
    }

    @Test func templateOfATokenizer() throws {
        let configuration = try JSONValue(
            parsing:
                #"{"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": [{"name": "tool", "template": "t"}, {"name": "default", "template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"}]}"#
        )
        let tokenizer = try Tokenizer(definition: Fixtures.definition("llama2"), configuration: configuration)
        #expect(try tokenizer.makeChatTemplate().render([.object(["content": .string("x")])]) == "<s>x</s>")
        #expect(
            tokenizer.specialTokens.beginning == 1 && tokenizer.specialTokens.end == 2
                && tokenizer.specialTokens.endOfTurn == [2])
        #expect(throws: PEFTError.self) { try Fixtures.tokenizer("gemma").makeChatTemplate() }
    }
}
