/// The tokens with a role, as far as the model names them.
package struct SpecialTokens: Sendable {
    package var beginning: Int32?
    package var end: Int32?
    package var padding: Int32?
    package var unknown: Int32?
    /// Each of these ends a generated answer: `end`, and the known end-of-turn tokens that the vocabulary has.
    package var endOfTurn: [Int32] = []

    /// End-of-turn tokens of the chat models, by name. A model whose `end` is the end of a document still ends its
    /// turn with one of these.
    static let endOfTurnNames = [
        "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "<|end_of_text|>",
        "<|eot|>",
    ]
}
