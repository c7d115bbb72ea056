package import Platform

extension ChatTemplate {
    /// The text of a conversation and the UTF-8 byte range of each assistant's turn in it: the words and what ends the
    /// turn. A model that is trained on these bytes only learns to answer and to stop, not to ask.
    ///
    /// A template that marks its `generation` blocks says so itself. For the others the texts of growing beginnings of
    /// the conversation are compared: what message i adds after "…the assistant begins" is its turn. Some templates write a
    /// turn differently once others follow; there the message's content is looked for in the text.
    ///
    /// Errors: `.unsupported` if neither way finds a turn; as `render`.
    package func renderWithAssistantSpans(_ messages: [JSONValue], _ variables: Variables = Variables())
        throws(PEFTError) -> (text: String, spans: [Range<Int>])
    {
        let (text, generated) = try evaluate(messages, variables)
        if !generated.isEmpty { return (text, generated) }
        let whole = Array(text.utf8)
        var spans: [Range<Int>] = []
        for (index, message) in messages.enumerated() where message["role"]?.stringValue == "assistant" {
            let from = spans.last?.upperBound ?? 0
            guard
                let span = turn(index, of: messages, variables, in: whole, from: from)
                    ?? content(of: message, in: whole, from: from)
            else {
                throw PEFTError(
                    .unsupported,
                    "chat template: cannot tell where the assistant's words of message \(index) are in the text")
            }
            spans.append(span)
        }
        return (text, spans)
    }

    /// Where message `index` lies, if the beginnings of the conversation are beginnings of its text.
    private func turn(
        _ index: Int, of messages: [JSONValue], _ variables: Variables, in whole: [UInt8], from start: Int
    ) -> Range<Int>? {
        var (before, after) = (variables, variables)
        before.addsGenerationPrompt = true
        after.addsGenerationPrompt = false
        // A template may refuse a beginning (no message, roles out of order): then the other way is tried.
        guard let prompt = try? render(Array(messages[..<index]), before),
            let answered = try? render(Array(messages[...index]), after)
        else { return nil }
        let (low, high) = (prompt.utf8.count, answered.utf8.count)
        guard low >= start, low < high, high <= whole.count, whole.starts(with: answered.utf8),
            answered.utf8.starts(with: prompt.utf8)
        else { return nil }
        return low..<high
    }

    /// The content where it stands in the text, and a marker that ends the turn directly behind it.
    private func content(of message: JSONValue, in whole: [UInt8], from start: Int) -> Range<Int>? {
        guard let content = message["content"]?.stringValue.map({ $0.stripped() }), !content.isEmpty,
            let low = whole.firstPlace(of: Array(content.utf8), from: start)
        else { return nil }
        var high = low + content.utf8.count
        for marker in SpecialTokens.endOfTurnNames + ["</s>"] + [specialTokens["eos_token"] ?? ""] where !marker.isEmpty
        {
            let rest = whole[high...].drop { $0 == 0x20 }
            if rest.starts(with: marker.utf8) {
                high = rest.startIndex + marker.utf8.count
                break
            }
        }
        return low..<high
    }
}
