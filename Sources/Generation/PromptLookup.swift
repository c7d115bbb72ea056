/// Prompt lookup decoding (Saxena 2023, "prompt_lookup_num_tokens" in transformers): text repeats itself, so what followed the
/// last tokens where they stood before is a guess at what follows now. A guess is read together with the token it follows, for
/// little more than that token alone costs, and is kept only if the sampler then chooses it: the text is the same as without.
package enum PromptLookup {
    /// Rows of one pass that are computed exactly as if alone (kernels: attention_few.c, matmul_gemv.c), less the certain one.
    package static let mostTokens = 7
    /// Tokens that must have stood before: fewer are found everywhere, and what follows them is not to be believed.
    private static let match = 3

    /// At most `count` tokens that followed where the last ones of `tokens` stood before; the latest such place.
    static func guess(after tokens: [Int32], count: Int) -> ArraySlice<Int32> {
        guard count > 0, tokens.count > match else { return [] }
        let last = tokens.count - match
        var start = last - 1
        while start >= 0 {
            if (0..<match).allSatisfy({ tokens[start + $0] == tokens[last + $0] }) {
                return tokens[(start + match)...].prefix(count)
            }
            start -= 1
        }
        return []
    }
}
