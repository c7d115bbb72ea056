/// A token that is cut out of the text before the model sees it: "<|im_start|>", "<s>"…
struct AddedToken: Sendable {
    var content: [UInt8]
    var id: Int32
    /// Left out by decoding that skips special tokens.
    var isSpecial = true
    /// Only where no word character stands beside it.
    var isSingleWord = false
    /// Takes the white space on its left, on its right, with it.
    var stripsLeft = false
    var stripsRight = false
    /// Looked for after normalization.
    var isNormalized = false
}

/// Finds added tokens in a text: the longest at the leftmost place (a trie over bytes).
struct AddedTokenMatcher: Sendable {
    private struct Node: Sendable {
        var children: [(byte: UInt8, node: Int)] = []
        /// Index in `tokens` of the one that ends here, or -1.
        var token = -1
    }

    private let tokens: [AddedToken]
    private var nodes = [Node()]
    /// Whether any token begins with this byte.
    private var isFirst = [Bool](repeating: false, count: 256)

    /// A part of a text: an added token, or text in which there is none.
    struct Part {
        var range: Range<Int>
        var id: Int32?
    }

    init(_ tokens: [AddedToken]) {
        self.tokens = tokens
        for (index, token) in tokens.enumerated() where !token.content.isEmpty {
            var node = 0
            for byte in token.content {
                if let child = nodes[node].children.first(where: { $0.byte == byte }) {
                    node = child.node
                } else {
                    nodes[node].children.append((byte, nodes.count))
                    node = nodes.count
                    nodes.append(Node())
                }
            }
            if nodes[node].token < 0 { nodes[node].token = index }
            isFirst[Int(token.content[0])] = true
        }
    }

    /// Cuts the whole of `text` into parts, none of them empty.
    func split(_ text: [UInt8]) -> [Part] {
        var parts: [Part] = []
        var done = 0
        var position = 0
        while position < text.count {
            guard isFirst[Int(text[position])], let (token, end) = longestMatch(in: text, at: position) else {
                position += 1
                continue
            }
            // As in HF `tokenizers`, a match that is refused is passed over as a whole.
            let start = position
            position = end
            if token.isSingleWord, touchesWord(text, start..<end) { continue }
            var range = start..<end
            if token.stripsLeft { range = max(done, start - trailingWhitespace(text[..<start]))..<end }
            if token.stripsRight { range = range.lowerBound..<end + leadingWhitespace(text[end...]) }
            if start < done { continue }  // lies in white space that the token before took
            if done < range.lowerBound { parts.append(Part(range: done..<range.lowerBound)) }
            parts.append(Part(range: range, id: token.id))
            done = range.upperBound
        }
        if done < text.count { parts.append(Part(range: done..<text.count)) }
        return parts
    }

    private func longestMatch(in text: [UInt8], at start: Int) -> (AddedToken, Int)? {
        var node = 0
        var best: (AddedToken, Int)?
        for index in start..<text.count {
            guard let child = nodes[node].children.first(where: { $0.byte == text[index] }) else { break }
            node = child.node
            if nodes[node].token >= 0 { best = (tokens[nodes[node].token], index + 1) }
        }
        return best
    }

    private func touchesWord(_ text: [UInt8], _ range: Range<Int>) -> Bool {
        let before = range.lowerBound > 0 && scalar(before: range.lowerBound, in: text[...]).0.isWord
        let after = range.upperBound < text.count && scalar(at: range.upperBound, in: text[...]).0.isWord
        return before || after
    }
}
