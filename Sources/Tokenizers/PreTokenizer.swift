internal import Platform

/// What becomes of the matches when text is cut at them. Names are those of tokenizer.json.
enum SplitBehavior: String, Sendable {
    case removed = "Removed"
    case isolated = "Isolated"
    case mergedWithPrevious = "MergedWithPrevious"
    case mergedWithNext = "MergedWithNext"
    case contiguous = "Contiguous"
}

/// A normalized text cut into pieces; pieces are never empty.
struct PreTokenized {
    var text: AlignedText
    var pieces: [Range<Int>]
    /// Whether the text stands at the very start of the caller's text.
    let startsInput: Bool

    init(_ text: AlignedText, startsInput: Bool) {
        self.text = text
        self.startsInput = startsInput
        pieces = text.bytes.isEmpty ? [] : [0..<text.bytes.count]
    }
}

/// A step that cuts text into the pieces within which tokens are looked for.
indirect enum PreTokenizer: Sendable {
    /// Pieces are read as bytes from here on; GPT-2's pattern cuts them if `pattern` is there.
    case byteLevel(addsPrefixSpace: Bool, pattern: Pattern?)
    case split(TextMatcher, SplitBehavior, inverted: Bool)
    case digits(individual: Bool)
    case punctuation(SplitBehavior)
    /// Runs of word characters and runs of other characters; white space goes.
    case whitespace
    case whitespaceSplit
    case bert
    case metaspace(replacement: [UInt8], prepend: PrependScheme, splits: Bool)
    case sequence([PreTokenizer])

    enum PrependScheme: String, Sendable { case always, first, never }

    func apply(to text: inout PreTokenized) throws(PEFTError) {
        switch self {
        case .byteLevel(let addsPrefixSpace, let pattern):
            if addsPrefixSpace { text.prefixPieces(with: [0x20]) { _ in true } }
            if let pattern { try text.split(.pattern(pattern), .isolated, inverted: false) }
        case .split(let matcher, let behavior, let inverted): try text.split(matcher, behavior, inverted: inverted)
        case .digits(let individual): text.split(individual ? .isolated : .contiguous) { $0.isNumber }
        case .punctuation(let behavior): text.split(behavior) { $0.isPunctuation }
        case .whitespaceSplit: text.split(.removed) { $0.properties.isWhitespace }
        case .whitespace:
            text.split(.removed) { $0.properties.isWhitespace }
            text.split(.contiguous) { $0.isWord }
        case .bert:
            text.split(.removed) { $0.properties.isWhitespace }
            text.split(.isolated) { $0.isPunctuation }
        case .metaspace(let replacement, let prepend, let splits):
            text.replaceSpaces(with: replacement)
            let startsInput = text.startsInput
            if prepend != .never {
                text.prefixPieces(with: replacement) { prepend == .always || startsInput && $0 == 0 }
            }
            if splits { try text.split(.text(replacement), .mergedWithNext, inverted: false) }
        case .sequence(let steps): for step in steps { try step.apply(to: &text) }
        }
    }
}

extension PreTokenized {
    /// Puts `prefix` in front of the pieces that do not begin with it and for whose start `condition` holds.
    fileprivate mutating func prefixPieces(with prefix: [UInt8], where condition: (Int) -> Bool) {
        let chosen = pieces.map { condition($0.lowerBound) && !text.bytes[$0].starts(with: prefix) }
        guard chosen.contains(true) else { return }
        var new = AlignedText.Rewriter(text)
        var grown = 0
        for index in pieces.indices {
            let piece = pieces[index]
            if chosen[index] { new.replace(piece.lowerBound..<piece.lowerBound, with: prefix) }
            new.copy(piece)
            let count = piece.count + (chosen[index] ? prefix.count : 0)
            pieces[index] = grown..<grown + count
            grown += count
        }
        text = new.finish()
    }

    fileprivate mutating func replaceSpaces(with replacement: [UInt8]) {
        guard text.bytes.contains(0x20) else { return }
        var new = AlignedText.Rewriter(text)
        var grown = 0
        for index in pieces.indices {
            let start = grown
            var done = pieces[index].lowerBound
            for space in pieces[index] where text.bytes[space] == 0x20 {
                new.copy(done..<space)
                new.replace(space..<space + 1, with: replacement)
                grown += space - done + replacement.count
                done = space + 1
            }
            new.copy(done..<pieces[index].upperBound)
            grown += pieces[index].upperBound - done
            pieces[index] = start..<grown
        }
        text = new.finish()
    }

    fileprivate mutating func split(_ matcher: TextMatcher, _ behavior: SplitBehavior, inverted: Bool) throws(PEFTError)
    {
        var new: [Range<Int>] = []
        for piece in pieces {
            var cutter = PieceCutter(behavior)
            var done = piece.lowerBound
            for match in try matcher.ranges(in: text.bytes, part: piece) {
                cutter.add(done..<match.lowerBound, isMatch: inverted)
                cutter.add(match, isMatch: !inverted)
                done = match.upperBound
            }
            cutter.add(done..<piece.upperBound, isMatch: inverted)
            new += cutter.finish()
        }
        pieces = new
    }

    /// Cuts at the characters for which `isMatch` holds, each of them a match of its own.
    fileprivate mutating func split(_ behavior: SplitBehavior, at isMatch: (Unicode.Scalar) -> Bool) {
        var new: [Range<Int>] = []
        for piece in pieces {
            var cutter = PieceCutter(behavior)
            var done = piece.lowerBound
            forEachScalar(in: text.bytes[piece]) { scalar, range in
                guard isMatch(scalar) else { return }
                cutter.add(done..<range.lowerBound, isMatch: false)
                cutter.add(range, isMatch: true)
                done = range.upperBound
            }
            cutter.add(done..<piece.upperBound, isMatch: false)
            new += cutter.finish()
        }
        pieces = new
    }
}

/// Collects the pieces between and at matches that come from left to right.
private struct PieceCutter {
    private let behavior: SplitBehavior
    private var pieces: [Range<Int>] = []
    private var previousIsMatch = false

    init(_ behavior: SplitBehavior) { self.behavior = behavior }

    mutating func add(_ range: Range<Int>, isMatch: Bool) {
        if range.isEmpty { return }
        let joins: Bool
        switch behavior {
        case .removed:
            if !isMatch { pieces.append(range) }
            return
        case .isolated: joins = false
        case .mergedWithPrevious: joins = isMatch && !previousIsMatch
        case .mergedWithNext: joins = !isMatch && previousIsMatch
        case .contiguous: joins = isMatch == previousIsMatch
        }
        if joins, let last = pieces.last {
            pieces[pieces.count - 1] = last.lowerBound..<range.upperBound
        } else {
            pieces.append(range)
        }
        previousIsMatch = isMatch
    }

    consuming func finish() -> [Range<Int>] { pieces }
}
