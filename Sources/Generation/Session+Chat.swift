package import Platform
internal import Tokenizers

extension Session {
    /// Reads text.
    /// - Throws: `.state` when the model came without a tokenizer.
    package func append(utf8: [UInt8], addSpecialTokens: Bool) throws(PEFTError) {
        guard let tokenizer else { throw PEFTError(.state, "the model came without a tokenizer; append token ids instead") }
        try append(try tokenizer.encode(utf8: utf8, addSpecialTokens: addSpecialTokens))
    }

    /// Reads a conversation up to the start of the assistant's next turn. Tokens the context already holds are not read
    /// again: a conversation that grew by a turn costs that turn.
    package func append(chat messages: [JSONValue]) throws(PEFTError) {
        guard let tokenizer else { throw PEFTError(.state, "the model came without a tokenizer; append token ids instead") }
        var variables = ChatTemplate.Variables()
        variables.addsGenerationPrompt = true
        let text = try tokenizer.makeChatTemplate().render(messages, variables)
        let ids = try tokenizer.encode(text, addSpecialTokens: false)
        // At least the last token is read, because its logits are wanted.
        let common = min(zip(ids, tokens).prefix { $0 == $1 }.count, max(ids.count - 1, 0))
        let before = tokens
        if common < tokens.count { try rewind(to: common) }
        do throws(PEFTError) {
            try append(Array(ids[common...]))
        } catch {
            // The turns that were cut off come back, so that a failed call changes nothing.
            if before.count > common { try append(Array(before[common...])) }
            throw error
        }
    }
}
