internal import Platform

/// A step that changes text before it is cut into pieces. Names are those of tokenizer.json.
indirect enum Normalizer: Sendable {
    case form(UnicodeForm)
    case lowercase
    case stripAccents
    case strip(left: Bool, right: Bool)
    case prepend([UInt8])
    case replace(TextMatcher, with: [UInt8])
    case bert(BertNormalizer)
    case precompiled(CharacterMap)
    case sequence([Normalizer])

    func apply(to text: AlignedText) throws(PEFTError) -> AlignedText {
        switch self {
        case .form(let form): return try Normalizer.normalize(text, form)
        case .lowercase: return Normalizer.mapScalars(text) { $0.properties.lowercaseMapping }
        case .stripAccents:
            return Normalizer.mapScalars(text) { $0.isMark ? "" : nil }
        case .strip(let left, let right):
            let start = left ? leadingWhitespace(text.bytes[...]) : 0
            let end = right ? text.bytes.count - trailingWhitespace(text.bytes[start...]) : text.bytes.count
            return text.slice(start..<max(start, end))
        case .prepend(let prefix):
            if text.bytes.isEmpty { return text }
            var new = AlignedText.Rewriter(text)
            new.replace(0..<0, with: prefix)
            new.copy(0..<text.bytes.count)
            return new.finish()
        case .replace(let matcher, let replacement):
            let ranges = try matcher.ranges(in: text.bytes, part: 0..<text.bytes.count)
            if ranges.isEmpty { return text }
            var new = AlignedText.Rewriter(text)
            var done = 0
            for range in ranges {
                new.copy(done..<range.lowerBound)
                new.replace(range, with: replacement)
                done = range.upperBound
            }
            new.copy(done..<text.bytes.count)
            return new.finish()
        case .bert(let options): return try options.apply(to: text)
        case .precompiled(let map): return map.apply(to: text)
        case .sequence(let steps):
            var text = text
            for step in steps { text = try step.apply(to: text) }
            return text
        }
    }

    /// Without positions the whole text at once; with positions from ASCII character to ASCII character, which never
    /// interact with what stands before them. Only runs that change lose the exact place of their parts.
    static func normalize(_ text: AlignedText, _ form: UnicodeForm) throws(PEFTError) -> AlignedText {
        let whole = try normalized(text.bytes, form)
        if whole == text.bytes { return text }
        var new = AlignedText.Rewriter(text)
        if text.origins == nil {
            new.replace(0..<text.bytes.count, with: whole)
            return new.finish()
        }
        var start = 0
        while start < text.bytes.count {
            var end = start + 1
            while end < text.bytes.count, text.bytes[end] >= 0x80 { end += 1 }
            new.replace(start..<end, with: try normalized(Array(text.bytes[start..<end]), form))
            start = end
        }
        return new.finish()
    }

    /// Replaces each scalar by what `map` gives for it; nil leaves it.
    static func mapScalars(_ text: AlignedText, _ map: (Unicode.Scalar) -> String?) -> AlignedText {
        var new = AlignedText.Rewriter(text)
        forEachScalar(in: text.bytes[...]) { scalar, range in
            if let replacement = map(scalar) { new.replace(range, with: replacement.utf8) } else { new.copy(range) }
        }
        return new.finish()
    }
}

/// A fixed text or a regular expression to look for.
enum TextMatcher: Sendable {
    case text([UInt8])
    case pattern(Pattern)

    /// Byte ranges of the matches within `part`, from left to right.
    func ranges(in bytes: [UInt8], part: Range<Int>) throws(PEFTError) -> [Range<Int>] {
        switch self {
        case .pattern(let pattern): return try pattern.ranges(in: bytes, part: part)
        case .text(let needle):
            guard let first = needle.first, needle.count <= part.count else { return [] }
            var found: [Range<Int>] = []
            var start = part.lowerBound
            while start <= part.upperBound - needle.count {
                if bytes[start] == first, bytes[start..<start + needle.count].elementsEqual(needle) {
                    found.append(start..<start + needle.count)
                    start += needle.count
                } else {
                    start += 1
                }
            }
            return found
        }
    }
}
