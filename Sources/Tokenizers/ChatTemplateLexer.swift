internal import Platform

/// A part of a template as the parser sees it.
struct TemplateToken {
    enum Kind: Equatable {
        case text(String)
        case outputStart, outputEnd, blockStart, blockEnd
        case name(String), string(String), integer(Int64), number(Double)
        case symbol(String)
        case end
    }

    let kind: Kind
    let line: Int
}

/// Cuts a template into tokens, with white space treated as transformers sets Jinja up: `trim_blocks` (the newline
/// after a block goes), `lstrip_blocks` (so does the indentation before one), one newline at the end of the text goes.
struct TemplateLexer {
    private let source: [Unicode.Scalar]
    private var position = 0
    private var line = 1
    private var tokens: [TemplateToken] = []
    /// Whether what was last read ended a line, so that spaces that follow are indentation.
    private var isAtLineStart = true

    static func tokens(of template: String) throws(PEFTError) -> [TemplateToken] {
        var lexer = TemplateLexer(template)
        return try lexer.run()
    }

    private init(_ template: String) {
        var scalars: [Unicode.Scalar] = []
        for scalar in template.unicodeScalars {
            if scalar == "\n", scalars.last == "\r" { scalars.removeLast() }
            scalars.append(scalar)
        }
        scalars = scalars.map { $0 == "\r" ? "\n" : $0 }
        if scalars.last == "\n" { scalars.removeLast() }
        source = scalars
    }

    private mutating func run() throws(PEFTError) -> [TemplateToken] {
        while position < source.count {
            let start = position
            while position < source.count, !isOpening(position) { position += 1 }
            let isEnd = position >= source.count
            emitText(start..<position, before: isEnd ? nil : source[position + 1])
            if isEnd { break }
            let opening = source[position + 1]
            position += 2
            if peek("-") || peek("+") { position += 1 }
            switch opening {
            case "#": try skipComment()
            case "%": try readTag(.blockStart, .blockEnd, closing: "%")
            default: try readTag(.outputStart, .outputEnd, closing: "}")
            }
        }
        tokens.append(TemplateToken(kind: .end, line: line))
        return tokens
    }

    private func isOpening(_ index: Int) -> Bool {
        source[index] == "{" && index + 1 < source.count
            && (source[index + 1] == "%" || source[index + 1] == "{" || source[index + 1] == "#")
    }

    private func peek(_ scalar: Unicode.Scalar, _ ahead: Int = 0) -> Bool {
        position + ahead < source.count && source[position + ahead] == scalar
    }

    private mutating func emitText(_ range: Range<Int>, before opening: Unicode.Scalar?) {
        var end = range.upperBound
        let sign = opening != nil && end + 2 < source.count ? source[end + 2] : nil
        if opening != nil, sign == "-" {
            while end > range.lowerBound, source[end - 1].properties.isWhitespace { end -= 1 }
        } else if let opening, opening != "{", sign != "+" {
            var indent = end
            while indent > range.lowerBound, source[indent - 1] == " " || source[indent - 1] == "\t" { indent -= 1 }
            if indent == range.lowerBound ? isAtLineStart : source[indent - 1] == "\n" { end = indent }
        }
        if end > range.lowerBound {
            var text = String.UnicodeScalarView()
            text.append(contentsOf: source[range.lowerBound..<end])
            tokens.append(TemplateToken(kind: .text(String(text)), line: line))
        }
        countLines(range)
        if !range.isEmpty { isAtLineStart = source[range.upperBound - 1] == "\n" }
    }

    private mutating func countLines(_ range: Range<Int>) {
        for index in range where source[index] == "\n" { line += 1 }
    }

    private mutating func skipComment() throws(PEFTError) {
        let start = position
        while !(peek("#") && peek("}", 1)) {
            guard position < source.count else {
                throw PEFTError(.format, "chat template line \(line): the comment does not end", detail: Int64(line))
            }
            position += 1
        }
        let strips = position > start && source[position - 1] == "-"
        countLines(start..<position)
        position += 2
        finishTag(strips: strips, trimsNewline: !(position - 3 >= start && source[position - 3] == "+"))
    }

    /// After the closing of a tag: white space that goes with it.
    private mutating func finishTag(strips: Bool, trimsNewline: Bool) {
        let start = position
        if strips {
            while position < source.count, source[position].properties.isWhitespace { position += 1 }
        } else if trimsNewline, peek("\n") {
            position += 1
        }
        countLines(start..<position)
        isAtLineStart = position > start && source[position - 1] == "\n"
    }

    private mutating func readTag(_ start: TemplateToken.Kind, _ end: TemplateToken.Kind, closing: Unicode.Scalar)
        throws(PEFTError)
    {
        tokens.append(TemplateToken(kind: start, line: line))
        var depth = 0  // of brackets: "}}" closes two dictionaries before it closes the tag
        while true {
            while position < source.count, source[position].properties.isWhitespace {
                if source[position] == "\n" { line += 1 }
                position += 1
            }
            guard position < source.count else {
                throw PEFTError(.format, "chat template line \(line): the tag does not end", detail: Int64(line))
            }
            let signed = peek("-") || peek("+") ? 1 : 0
            if depth == 0, peek(closing, signed), peek("}", signed + 1) {
                let sign = signed == 1 ? source[position] : nil
                tokens.append(TemplateToken(kind: end, line: line))
                position += signed + 2
                finishTag(strips: sign == "-", trimsNewline: end == .blockEnd && sign == nil)
                return
            }
            let kind = try readToken()
            if case .symbol(let symbol) = kind {
                if ["(", "[", "{"].contains(symbol) { depth += 1 }
                if [")", "]", "}"].contains(symbol) { depth = max(0, depth - 1) }
            }
            tokens.append(TemplateToken(kind: kind, line: line))
        }
    }

    private static let symbols = [
        "**", "//", "==", "!=", "<=", ">=", "+", "-", "*", "/", "%", "~", "<", ">", "=", "(", ")", "[", "]", "{", "}",
        ".", ",", ":", "|",
    ].map { Array($0.unicodeScalars) }

    private mutating func readToken() throws(PEFTError) -> TemplateToken.Kind {
        let first = source[position]
        if first == "'" || first == "\"" { return .string(try readString(quote: first)) }
        if first.properties.isAlphabetic || first == "_" {
            return .name(take { $0 == "_" || $0.properties.isAlphabetic || $0.properties.numericType != nil })
        }
        if isDigit(first) { return try readNumber() }
        for symbol in TemplateLexer.symbols where source[position...].starts(with: symbol) {
            position += symbol.count
            var text = String.UnicodeScalarView()
            text.append(contentsOf: symbol)
            return .symbol(String(text))
        }
        throw PEFTError(.format, "chat template line \(line): unexpected character \"\(first)\"", detail: Int64(line))
    }

    private mutating func take(_ belongs: (Unicode.Scalar) -> Bool) -> String {
        var text = String.UnicodeScalarView()
        while position < source.count, belongs(source[position]) {
            text.append(source[position])
            position += 1
        }
        return String(text)
    }

    private mutating func readNumber() throws(PEFTError) -> TemplateToken.Kind {
        var text = take { isDigit($0) || $0 == "_" }.filter { $0 != "_" }
        var isInteger = true
        if peek("."), position + 1 < source.count, isDigit(source[position + 1]) {
            position += 1
            isInteger = false
            text += "." + take { isDigit($0) }
        }
        let signed = position + 1 < source.count && (source[position + 1] == "-" || source[position + 1] == "+") ? 1 : 0
        if peek("e") || peek("E"), position + 1 + signed < source.count, isDigit(source[position + 1 + signed]) {
            isInteger = false
            text += "e" + (signed == 1 ? String(source[position + 1]) : "")
            position += 1 + signed
            text += take { isDigit($0) }
        }
        if !isInteger {
            guard let number = Double(text) else {
                throw PEFTError(.format, "chat template line \(line): bad number \(text)", detail: Int64(line))
            }
            return .number(number)
        }
        guard let number = Int64(text) else {
            throw PEFTError(.format, "chat template line \(line): the number \(text) is too large", detail: Int64(line))
        }
        return .integer(number)
    }

    private mutating func readString(quote: Unicode.Scalar) throws(PEFTError) -> String {
        var text = String.UnicodeScalarView()
        let startLine = line
        position += 1
        while position < source.count, source[position] != quote {
            var scalar = source[position]
            if scalar == "\n" { line += 1 }
            position += 1
            if scalar == "\\", position < source.count {
                let escaped = source[position]
                position += 1
                switch escaped {
                case "n": scalar = "\n"
                case "t": scalar = "\t"
                case "r": scalar = "\r"
                case "\\", "'", "\"": scalar = escaped
                case "x", "u", "U": scalar = try readEscape(digits: escaped == "x" ? 2 : escaped == "u" ? 4 : 8)
                case "\n": continue
                case "0", "a", "b", "f", "v", "N":
                    throw PEFTError(
                        .unsupported, "chat template line \(line): the escape \\\(escaped) is not supported",
                        detail: Int64(line))
                default: text.append("\\"); scalar = escaped
                }
            }
            text.append(scalar)
        }
        guard position < source.count else {
            throw PEFTError(
                .format, "chat template line \(startLine): the string does not end", detail: Int64(startLine))
        }
        position += 1
        return String(text)
    }

    private mutating func readEscape(digits: Int) throws(PEFTError) -> Unicode.Scalar {
        var value: UInt32? = 0
        for _ in 0..<digits {
            let digit = position < source.count ? Character(source[position]).hexDigitValue : nil
            value = digit.flatMap { digit in value.flatMap { $0 < 1 << 28 ? $0 << 4 | UInt32(digit) : nil } }
            position += 1
        }
        guard let scalar = value.flatMap(Unicode.Scalar.init) else {
            throw PEFTError(.format, "chat template line \(line): bad escape in a string", detail: Int64(line))
        }
        return scalar
    }
}

private func isDigit(_ scalar: Unicode.Scalar) -> Bool { ("0"..."9").contains(scalar) }
