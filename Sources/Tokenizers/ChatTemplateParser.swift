internal import Platform

/// Builds statements from tokens by recursive descent; expressions are in `ChatTemplateParser+Expressions.swift`.
struct TemplateParser {
    private let tokens: [TemplateToken]
    private var index = 0
    /// Nesting of blocks and expressions; bounded, because each level takes stack.
    private var depth = 0
    private static let maximumDepth = 48
    /// Links of `a + b + c…`, `a.b.c…`, `a | b | c…`: each is one level more for the evaluator.
    private static let maximumLinks = 64

    static func parse(_ template: String) throws(PEFTError) -> [TemplateStatement] {
        guard template.utf8.count <= 1 << 20 else {
            throw PEFTError(.format, "chat template: \(template.utf8.count) bytes; at most \(1 << 20) are read")
        }
        var parser = TemplateParser(tokens: try TemplateLexer.tokens(of: template))
        let (statements, end) = try parser.statements(until: [])
        if let end { throw parser.failure("\"\(end)\" without its beginning") }
        return statements
    }

    private init(tokens: [TemplateToken]) { self.tokens = tokens }

    // MARK: Tokens

    var current: TemplateToken.Kind { tokens[index].kind }
    var line: Int { tokens[index].line }

    mutating func advance() { index = min(index + 1, tokens.count - 1) }  // the last token is `.end`

    mutating func takes(_ kind: TemplateToken.Kind) -> Bool {
        guard current == kind else { return false }
        advance()
        return true
    }

    mutating func takes(symbol: String) -> Bool { takes(.symbol(symbol)) }
    mutating func takes(name: String) -> Bool { takes(.name(name)) }

    mutating func expect(_ kind: TemplateToken.Kind, _ what: String) throws(PEFTError) {
        guard takes(kind) else { throw failure("expected \(what), found \(TemplateParser.description(current))") }
    }

    mutating func expect(symbol: String) throws(PEFTError) { try expect(.symbol(symbol), "\"\(symbol)\"") }

    mutating func name(_ what: String) throws(PEFTError) -> String {
        guard case .name(let name) = current else {
            throw failure("expected \(what), found \(TemplateParser.description(current))")
        }
        advance()
        return name
    }

    func failure(_ message: String, _ kind: PEFTError.Kind = .format) -> PEFTError {
        PEFTError(kind, "chat template line \(line): \(message)", detail: Int64(line))
    }

    private static func description(_ kind: TemplateToken.Kind) -> String {
        switch kind {
        case .text: "text"
        case .outputStart, .outputEnd, .blockStart, .blockEnd: "the end or start of a tag"
        case .name(let name), .symbol(let name): "\"\(name)\""
        case .string(let text): "the string \"\(text)\""
        case .integer(let number): "\(number)"
        case .number(let number): "\(number)"
        case .end: "the end of the template"
        }
    }

    mutating func enter() throws(PEFTError) {
        depth += 1
        guard depth <= TemplateParser.maximumDepth else {
            throw failure("nested deeper than \(TemplateParser.maximumDepth)")
        }
    }

    mutating func leave() { depth -= 1 }

    func link(_ count: inout Int) throws(PEFTError) {
        count += 1
        guard count <= TemplateParser.maximumLinks else {
            throw failure("an expression of more than \(TemplateParser.maximumLinks) parts in a row")
        }
    }

    // MARK: Statements

    /// Statements up to a block that begins with one of `ends` (whose name is read and returned) or the end.
    private mutating func statements(until ends: Set<String>) throws(PEFTError) -> ([TemplateStatement], String?) {
        try enter()
        defer { leave() }
        var found: [TemplateStatement] = []
        while true {
            let line = line
            switch current {
            case .text(let text):
                advance()
                found.append(TemplateStatement(kind: .text(text), line: line))
            case .outputStart:
                advance()
                found.append(TemplateStatement(kind: .output(try expressionOrTuple()), line: line))
                try expect(.outputEnd, "\"}}\"")
            case .blockStart:
                advance()
                let keyword = try name("the name of a statement")
                if ends.contains(keyword) { return (found, keyword) }
                if keyword.hasPrefix("end") || keyword == "else" || keyword == "elif" { return (found, keyword) }
                found.append(TemplateStatement(kind: try statement(keyword), line: line))
            case .end: return (found, nil)
            default: throw failure("unexpected \(TemplateParser.description(current))")
            }
        }
    }

    private mutating func body(of keyword: String, until ends: Set<String>) throws(PEFTError) -> (
        [TemplateStatement], String
    ) {
        let start = line
        let (statements, end) = try statements(until: ends)
        guard let end, ends.contains(end) else {
            throw failure(
                "\"\(keyword)\" of line \(start) is not closed; \(end.map { "found \"\($0)\"" } ?? "the template ends")"
            )
        }
        return (statements, end)
    }

    private mutating func endBlock() throws(PEFTError) { try expect(.blockEnd, "\"%}\"") }

    private mutating func statement(_ keyword: String) throws(PEFTError) -> TemplateStatement.Kind {
        switch keyword {
        case "if": return try branch()
        case "for": return .loop(try loop())
        case "set": return try assignment()
        case "macro": return .macro(try macro())
        case "generation":
            try endBlock()
            let (body, _) = try body(of: keyword, until: ["endgeneration"])
            try endBlock()
            return .generation(body)
        case "break":
            try endBlock()
            return .leaveLoop
        case "continue":
            try endBlock()
            return .nextIteration
        default: throw failure("the statement \"\(keyword)\" is not supported", .unsupported)
        }
    }

    private mutating func branch() throws(PEFTError) -> TemplateStatement.Kind {
        var branches: [(condition: TemplateExpression, body: [TemplateStatement])] = []
        var otherwise: [TemplateStatement] = []
        var keyword = "if"
        while keyword != "endif" {
            if keyword == "else" {
                try endBlock()
                (otherwise, keyword) = try body(of: "if", until: ["endif"])
            } else {
                let condition = try expressionOrTuple()
                try endBlock()
                let (statements, next) = try body(of: "if", until: ["elif", "else", "endif"])
                branches.append((condition, statements))
                keyword = next
            }
        }
        try endBlock()
        return .branch(branches, otherwise: otherwise)
    }

    private mutating func loop() throws(PEFTError) -> TemplateStatement.Loop {
        let targets = try targetNames()
        guard takes(name: "in") else { throw failure("expected \"in\"") }
        let values = try expression(allowsConditional: false)
        let condition = takes(name: "if") ? try expression() : nil
        if takes(name: "recursive") { throw failure("a recursive loop is not supported", .unsupported) }
        try endBlock()
        var (statements, end) = try body(of: "for", until: ["else", "endfor"])
        var otherwise: [TemplateStatement] = []
        if end == "else" {
            try endBlock()
            (otherwise, end) = try body(of: "for", until: ["endfor"])
        }
        try endBlock()
        return TemplateStatement.Loop(
            targets: targets, values: values, condition: condition, body: statements, otherwise: otherwise)
    }

    private mutating func targetNames() throws(PEFTError) -> [String] {
        let isBracketed = takes(symbol: "(")
        var names = [try name("a variable")]
        while takes(symbol: ",") { names.append(try name("a variable")) }
        if isBracketed { try expect(symbol: ")") }
        return names
    }

    private mutating func assignment() throws(PEFTError) -> TemplateStatement.Kind {
        let names = try targetNames()
        if names.count == 1, takes(symbol: ".") {
            let member = try name("a member")
            try expect(symbol: "=")
            let value = try expressionOrTuple()
            try endBlock()
            return .setMember(names[0], member, value)
        }
        if takes(symbol: "=") {
            let value = try expressionOrTuple()
            try endBlock()
            return .set(names, value)
        }
        guard names.count == 1 else { throw failure("expected \"=\"") }
        var filters: [(String, TemplateExpression.Arguments)] = []
        while takes(symbol: "|") {
            let filter = try name("a filter")
            filters.append((filter, takes(symbol: "(") ? try arguments() : TemplateExpression.Arguments()))
        }
        try endBlock()
        let (statements, _) = try body(of: "set", until: ["endset"])
        try endBlock()
        return .setBlock(names[0], statements, filters: filters)
    }

    private mutating func macro() throws(PEFTError) -> TemplateStatement.Macro {
        let macroName = try name("the name of the macro")
        try expect(symbol: "(")
        var parameters: [(name: String, standard: TemplateExpression?)] = []
        while !takes(symbol: ")") {
            if !parameters.isEmpty { try expect(symbol: ",") }
            let parameter = try name("a parameter")
            parameters.append((parameter, takes(symbol: "=") ? try expression() : nil))
        }
        try endBlock()
        let (statements, _) = try body(of: "macro", until: ["endmacro"])
        if case .name = current { advance() }
        try endBlock()
        return TemplateStatement.Macro(name: macroName, parameters: parameters, body: statements)
    }
}
