package import Platform

/// A model's chat template: messages to the text the model was trained on.
///
/// A template is a program in Jinja. This is an interpreter for the part of it that published chat templates use, set up
/// as transformers does (`trim_blocks`, `lstrip_blocks`, immutable values). Whatever is beyond it is an error that names
/// the construct and its line. Immutable, so any number of threads may render at the same time.
package struct ChatTemplate: Sendable {
    /// What a template is given besides the messages.
    package struct Variables: Sendable {
        /// Ends the text with the beginning of the assistant's next answer.
        package var addsGenerationPrompt = false
        /// Functions the model may call, as JSON schemas.
        package var tools: JSONValue = .null
        package var documents: JSONValue = .null
        /// For `strftime_now`; without it a template sees no such function and uses its own date.
        package var date: TemplateDate?
        /// Anything else by name, such as `enable_thinking`.
        package var others = JSONObject()

        package init() {}
    }

    private let statements: [TemplateStatement]
    /// `bos_token`, `eos_token`…
    let specialTokens: [String: String]

    /// Errors: `.format` for text that is no template, `.unsupported` naming the statement.
    package init(_ source: String, specialTokens: [String: String] = [:]) throws(PEFTError) {
        statements = try TemplateParser.parse(source)
        self.specialTokens = specialTokens
    }

    /// The text of a conversation. `messages` are objects with `role` and `content`, as the template wants them.
    ///
    /// Errors: `.argument` with the template's own words when it refuses the messages, `.unsupported` naming a
    /// construct, `.format` for what goes wrong while rendering.
    package func render(_ messages: [JSONValue], _ variables: Variables = Variables()) throws(PEFTError) -> String {
        try evaluate(messages, variables).text
    }

    /// The text and the UTF-8 ranges of `generation` blocks in it.
    func evaluate(_ messages: [JSONValue], _ variables: Variables) throws(PEFTError) -> (
        text: String, generated: [Range<Int>]
    ) {
        var names: [String: TemplateValue] = [:]
        for (name, token) in specialTokens { names[name] = .string(token) }
        for (name, value) in variables.others.pairs { names[name] = TemplateValue(value) }
        names["messages"] = .list(messages.map { TemplateValue($0) })
        names["tools"] = TemplateValue(variables.tools)
        names["documents"] = TemplateValue(variables.documents)
        names["add_generation_prompt"] = .bool(variables.addsGenerationPrompt)
        var evaluator = TemplateEvaluator(variables: names, date: variables.date)
        let text = try evaluator.render(statements)
        return (text, evaluator.generated)
    }
}

extension Tokenizer {
    /// The model's chat template (or `source`) with the model's special tokens.
    ///
    /// Errors: `.state` if there is none; as `ChatTemplate.init`.
    package func makeChatTemplate(_ source: String? = nil) throws(PEFTError) -> ChatTemplate {
        guard let source = source ?? chatTemplate else {
            throw PEFTError(.state, "the model has no chat template; give one")
        }
        var names: [String: String] = [:]
        let roles = [
            ("bos_token", specialTokens.beginning), ("eos_token", specialTokens.end),
            ("pad_token", specialTokens.padding), ("unk_token", specialTokens.unknown),
        ]
        for (name, id) in roles { names[name] = id.flatMap { token(of: $0) } }
        return try ChatTemplate(source, specialTokens: names)
    }
}
