internal import Platform

// From the loosest binding to the tightest: … if … else …, or, and, not, comparisons, + -, ~, * / // %, **, unary, postfix.
extension TemplateParser {
    /// `a, b` without brackets is a list.
    mutating func expressionOrTuple() throws(PEFTError) -> TemplateExpression {
        let line = line
        let first = try expression()
        guard current == .symbol(",") else { return first }
        var elements = [first]
        while takes(symbol: ",") {
            if current == .blockEnd || current == .outputEnd { break }
            elements.append(try expression())
        }
        return TemplateExpression(kind: .list(elements), line: line)
    }

    mutating func expression(allowsConditional: Bool = true) throws(PEFTError) -> TemplateExpression {
        try enter()
        defer { leave() }
        var value = try disjunction()
        var links = 0
        while allowsConditional, current == .name("if") {
            let line = line
            try link(&links)
            advance()
            let condition = try disjunction()
            let other = takes(name: "else") ? try expression() : nil
            value = TemplateExpression(kind: .conditional(value, condition: condition, other: other), line: line)
        }
        return value
    }

    private mutating func disjunction() throws(PEFTError) -> TemplateExpression {
        var left = try conjunction()
        var links = 0
        while current == .name("or") {
            let line = line
            try link(&links)
            advance()
            left = TemplateExpression(kind: .or(left, try conjunction()), line: line)
        }
        return left
    }

    private mutating func conjunction() throws(PEFTError) -> TemplateExpression {
        var left = try negation()
        var links = 0
        while current == .name("and") {
            let line = line
            try link(&links)
            advance()
            left = TemplateExpression(kind: .and(left, try negation()), line: line)
        }
        return left
    }

    private mutating func negation() throws(PEFTError) -> TemplateExpression {
        let line = line
        guard takes(name: "not") else { return try comparison() }
        try enter()
        defer { leave() }
        return TemplateExpression(kind: .not(try negation()), line: line)
    }

    private mutating func comparison() throws(PEFTError) -> TemplateExpression {
        let line = line
        let left = try sum()
        var others: [(TemplateExpression.Comparison, TemplateExpression)] = []
        while true {
            if case .symbol(let symbol) = current, let comparison = TemplateExpression.Comparison(rawValue: symbol) {
                advance()
                others.append((comparison, try sum()))
            } else if takes(name: "in") {
                others.append((.isIn, try sum()))
            } else if current == .name("not") {
                advance()
                guard takes(name: "in") else { throw failure("expected \"in\" after \"not\"") }
                others.append((.isNotIn, try sum()))
            } else {
                return others.isEmpty ? left : TemplateExpression(kind: .compare(left, others), line: line)
            }
        }
    }

    private mutating func binary(
        _ symbols: Set<String>, _ operand: (inout TemplateParser) throws(PEFTError) -> TemplateExpression
    ) throws(PEFTError) -> TemplateExpression {
        var left = try operand(&self)
        var links = 0
        while case .symbol(let symbol) = current, symbols.contains(symbol),
            let operation = TemplateExpression.Binary(rawValue: symbol)
        {
            let line = line
            try link(&links)
            advance()
            left = TemplateExpression(kind: .binary(operation, left, try operand(&self)), line: line)
        }
        return left
    }

    private mutating func sum() throws(PEFTError) -> TemplateExpression {
        try binary(["+", "-"]) { (parser) throws(PEFTError) in try parser.concatenation() }
    }

    private mutating func concatenation() throws(PEFTError) -> TemplateExpression {
        try binary(["~"]) { (parser) throws(PEFTError) in try parser.product() }
    }

    private mutating func product() throws(PEFTError) -> TemplateExpression {
        try binary(["*", "/", "//", "%"]) { (parser) throws(PEFTError) in try parser.power() }
    }

    private mutating func power() throws(PEFTError) -> TemplateExpression {
        try binary(["**"]) { (parser) throws(PEFTError) in try parser.unary(withFilters: true) }
    }

    private mutating func unary(withFilters: Bool) throws(PEFTError) -> TemplateExpression {
        let line = line
        var value: TemplateExpression
        if takes(symbol: "-") {
            try enter()
            defer { leave() }
            value = TemplateExpression(kind: .negate(try unary(withFilters: false)), line: line)
        } else if takes(symbol: "+") {
            try enter()
            defer { leave() }
            value = try unary(withFilters: false)
        } else {
            value = try postfix(try primary())
        }
        return withFilters ? try filtersAndTests(value) : value
    }

    private mutating func primary() throws(PEFTError) -> TemplateExpression {
        let line = line
        func literal(_ value: TemplateExpression.Literal) -> TemplateExpression {
            TemplateExpression(kind: .literal(value), line: line)
        }
        switch current {
        case .string(var text):
            advance()
            while case .string(let more) = current { text += more; advance() }
            return literal(.string(text))
        case .integer(let number):
            advance()
            return literal(.integer(number))
        case .number(let number):
            advance()
            return literal(.number(number))
        case .name(let name):
            advance()
            switch name {
            case "true", "True": return literal(.bool(true))
            case "false", "False": return literal(.bool(false))
            case "none", "None": return literal(.none)
            default: return TemplateExpression(kind: .name(name), line: line)
            }
        case .symbol("("):
            advance()
            if takes(symbol: ")") { return TemplateExpression(kind: .list([]), line: line) }
            let first = try expression()
            if takes(symbol: ")") { return first }
            try expect(symbol: ",")
            return TemplateExpression(kind: .list([first] + (try list(until: ")"))), line: line)
        case .symbol("["):
            advance()
            return TemplateExpression(kind: .list(try list(until: "]")), line: line)
        case .symbol("{"):
            advance()
            var pairs: [(key: TemplateExpression, value: TemplateExpression)] = []
            while !takes(symbol: "}") {
                if !pairs.isEmpty { try expect(symbol: ",") }
                if takes(symbol: "}") { break }
                let key = try expression()
                try expect(symbol: ":")
                pairs.append((key, try expression()))
            }
            return TemplateExpression(kind: .dictionary(pairs), line: line)
        default: throw failure("expected a value")
        }
    }

    private mutating func list(until end: String) throws(PEFTError) -> [TemplateExpression] {
        var elements: [TemplateExpression] = []
        while !takes(symbol: end) {
            if !elements.isEmpty { try expect(symbol: ",") }
            if takes(symbol: end) { break }
            elements.append(try expression())
        }
        return elements
    }

    private mutating func postfix(_ start: TemplateExpression) throws(PEFTError) -> TemplateExpression {
        var value = start
        var links = 0
        while true {
            let line = line
            try link(&links)
            if takes(symbol: ".") {
                if case .integer(let index) = current {
                    advance()
                    value = TemplateExpression(
                        kind: .item(value, TemplateExpression(kind: .literal(.integer(index)), line: line)), line: line)
                } else {
                    value = TemplateExpression(kind: .attribute(value, try name("a member")), line: line)
                }
            } else if takes(symbol: "[") {
                value = try subscripted(value, line)
            } else if takes(symbol: "(") {
                value = TemplateExpression(kind: .call(value, try arguments()), line: line)
            } else {
                return value
            }
        }
    }

    private mutating func subscripted(_ value: TemplateExpression, _ line: Int) throws(PEFTError) -> TemplateExpression
    {
        var parts: [TemplateExpression?] = [nil]
        while !takes(symbol: "]") {
            if takes(symbol: ":") {
                parts.append(nil)
            } else {
                guard parts[parts.count - 1] == nil else { throw failure("expected \"]\"") }
                parts[parts.count - 1] = try expression()
            }
        }
        if parts.count == 1, let index = parts[0] { return TemplateExpression(kind: .item(value, index), line: line) }
        guard (2...3).contains(parts.count) else {
            throw failure("expected an index or start:stop:step between [ and ]")
        }
        return TemplateExpression(
            kind: .slice(value, parts[0], parts[1], parts.count == 3 ? parts[2] : nil), line: line)
    }

    /// After the opening bracket.
    mutating func arguments() throws(PEFTError) -> TemplateExpression.Arguments {
        var found = TemplateExpression.Arguments()
        var isFirst = true
        while !takes(symbol: ")") {
            if !isFirst { try expect(symbol: ",") }
            isFirst = false
            if takes(symbol: ")") { break }
            if current == .symbol("*") || current == .symbol("**") {
                throw failure("unpacking of arguments is not supported", .unsupported)
            }
            let value = try expression()
            if case .name(let name) = value.kind, takes(symbol: "=") {
                found.named.append((name, try expression()))
            } else {
                guard found.named.isEmpty else { throw failure("a positional argument after a named one") }
                found.positional.append(value)
            }
        }
        return found
    }

    private mutating func filtersAndTests(_ start: TemplateExpression) throws(PEFTError) -> TemplateExpression {
        var value = start
        var links = 0
        while true {
            let line = line
            try link(&links)
            if takes(symbol: "|") {
                let filter = try name("a filter")
                value = TemplateExpression(
                    kind: .filter(value, filter, takes(symbol: "(") ? try arguments() : TemplateExpression.Arguments()),
                    line: line)
            } else if takes(name: "is") {
                let isNegated = takes(name: "not")
                let test = try name("a test")
                value = TemplateExpression(kind: .test(value, test, try testArguments()), line: line)
                if isNegated { value = TemplateExpression(kind: .not(value), line: line) }
            } else if takes(symbol: "(") {
                value = TemplateExpression(kind: .call(value, try arguments()), line: line)
            } else {
                return value
            }
        }
    }

    /// `is divisibleby 3` may leave out the brackets.
    private mutating func testArguments() throws(PEFTError) -> TemplateExpression.Arguments {
        if takes(symbol: "(") { return try arguments() }
        let isArgument =
            switch current {
            case .name(let name): !["else", "or", "and", "if", "is", "in", "not", "recursive"].contains(name)
            case .string, .integer, .number, .symbol("["), .symbol("{"): true
            default: false
            }
        return isArgument
            ? TemplateExpression.Arguments(positional: [try postfix(try primary())]) : TemplateExpression.Arguments()
    }
}
