package import Platform
package import Tokenizers

/// A model's tokenizer and chat template as a data set uses them.
package struct TokenizerEncoder: TextEncoder {
    private let tokenizer: Tokenizer
    /// nil: the model has none; conversations are then an error.
    private let template: ChatTemplate?

    /// - Parameter template: Jinja, instead of the model's own.
    /// - Throws: `.unsupported` or `.format` naming the construct of a template that cannot be read.
    package init(_ tokenizer: Tokenizer, template source: String? = nil) throws(PEFTError) {
        self.tokenizer = tokenizer
        template = source == nil && tokenizer.chatTemplate == nil ? nil : try tokenizer.makeChatTemplate(source)
    }

    package var paddingID: Int32 { tokenizer.specialTokens.padding ?? tokenizer.specialTokens.end ?? 0 }
    package var endOfText: Int32? { tokenizer.specialTokens.end }

    package func ids(_ text: String, isStart: Bool) throws(PEFTError) -> [Int32] {
        let ids = try tokenizer.encode(text, addSpecialTokens: isStart)
        // The beginning is wanted, not an end that the tokenizer may add: the data set ends samples itself.
        guard isStart, let end = endOfText, ids.last == end, !text.isEmpty else { return ids }
        return ids.dropLast()
    }

    package func conversation(_ messages: [JSONValue], learnedFrom first: Int) throws(PEFTError) -> (ids: [Int32], isAssistant: [Bool]) {
        guard let template else { throw PEFTError(.unsupported, "the model has no chat template for 'messages'; give one (chat_template)") }
        let (text, spans) = try template.renderWithAssistantSpans(messages)
        // The template writes the special tokens itself.
        let encoding = try tokenizer.encodeWithRanges(text, addSpecialTokens: false)
        return (encoding.ids, encoding.beginsWithin(try TokenizerEncoder.learned(spans, messages, first)))
    }

    /// The spans of messages from index `first` on.
    private static func learned(_ spans: [Range<Int>], _ messages: [JSONValue], _ first: Int) throws(PEFTError) -> [Range<Int>] {
        guard first > 0 else { return spans }
        let isAssistant = messages.map { $0["role"]?.stringValue == "assistant" }
        guard spans.count == isAssistant.count(where: { $0 }) else {
            throw PEFTError(.unsupported, "the chat template marks \(spans.count) parts as the assistant's in \(messages.count) messages: they cannot be told apart")
        }
        return Array(spans.dropFirst(isAssistant[..<min(first, isAssistant.count)].count { $0 }))
    }
}
