internal import Platform

extension TemplateEvaluator {
    mutating func value(of expression: TemplateExpression) throws(PEFTError) -> TemplateValue {
        let line = expression.line
        try enter(line)
        defer { depth -= 1 }
        switch expression.kind {
        case .literal(let literal): return TemplateValue(literal)
        case .name(let name): return variable(name) ?? global(name)
        case .list(let elements): return try checked(.list(try values(of: elements)), line)
        case .dictionary(let pairs):
            var dictionary = TemplateDictionary()
            for pair in pairs { dictionary.set(try value(of: pair.key), try value(of: pair.value)) }
            return try checked(.dictionary(dictionary), line)
        case .attribute(let object, let name): return try member(name, of: try value(of: object), line)
        case .item(let object, let index): return try item(try value(of: index), of: try value(of: object), line)
        case .slice(let object, let start, let stop, let step):
            return try slice(try value(of: object), start, stop, step, line)
        case .call(let function, let arguments): return try call(function, try evaluated(arguments), line)
        case .filter(let input, let name, let arguments):
            // An undefined variable may be given to `default`, so the input is not judged here.
            return try apply(filter: name, to: try value(of: input), try evaluated(arguments), line)
        case .test(let input, let name, let arguments):
            return .bool(try passes(test: name, try value(of: input), try evaluated(arguments), line))
        case .not(let operand): return .bool(!(try value(of: operand).isTrue))
        case .and(let left, let right):
            let first = try value(of: left)
            return first.isTrue ? try value(of: right) : first
        case .or(let left, let right):
            let first = try value(of: left)
            return first.isTrue ? first : try value(of: right)
        case .negate(let operand):
            switch try value(of: operand) {
            case .integer(let value) where value != .min: return .integer(-value)
            case .number(let value): return .number(-value)
            case let other: throw TemplateEvaluator.failure(line, "cannot negate a \(other.typeName)")
            }
        case .binary(let operation, let left, let right):
            return try combine(operation, try value(of: left), try value(of: right), line)
        case .compare(let first, let others):
            var left = try value(of: first)
            for (comparison, expression) in others {
                let right = try value(of: expression)
                guard try compare(comparison, left, right, line) else { return .bool(false) }
                left = right
            }
            return .bool(true)
        case .conditional(let then, let condition, let other):
            if try value(of: condition).isTrue { return try value(of: then) }
            guard let other else { return .undefined("the missing else of a condition") }
            return try value(of: other)
        }
    }

    private mutating func values(of expressions: [TemplateExpression]) throws(PEFTError) -> [TemplateValue] {
        var values: [TemplateValue] = []
        for expression in expressions { values.append(try value(of: expression)) }
        return values
    }

    mutating func evaluated(_ arguments: TemplateExpression.Arguments) throws(PEFTError) -> TemplateArguments {
        var found = TemplateArguments(positional: try values(of: arguments.positional))
        for (name, expression) in arguments.named { found.named[name] = try value(of: expression) }
        return found
    }

    private func global(_ name: String) -> TemplateValue {
        switch name {
        case "range", "namespace", "dict", "raise_exception": .function(name)
        case "strftime_now" where date != nil: .function(name)
        default: .undefined(name)
        }
    }

    /// A loop can wrap a list in a list again and again. What is made stays small enough to be compared, written and freed.
    func checked(_ value: TemplateValue, _ line: Int) throws(PEFTError) -> TemplateValue {
        var total = 0
        let fits = value.measure(&total, depth: 160, limit: 1_000_000)
        try step(line, total)
        guard fits else {
            throw TemplateEvaluator.failure(
                line, "a list or dictionary nested deeper than 160 or of more than 1000000 parts")
        }
        return value
    }

    // MARK: Members

    func member(_ name: String, of object: TemplateValue, _ line: Int) throws(PEFTError) -> TemplateValue {
        switch object {
        case .undefined(let what):
            throw TemplateEvaluator.failure(line, "\"\(what)\" is undefined, so it has no \"\(name)\"", .argument)
        case .dictionary(let dictionary): return dictionary[.string(name)] ?? .undefined(name)
        case .namespace(let namespace): return namespace.members[name] ?? .undefined(name)
        case .loop(let loop): return loop.member(name) ?? .undefined("loop.\(name)")
        default: return .undefined(name)
        }
    }

    private func item(_ index: TemplateValue, of object: TemplateValue, _ line: Int) throws(PEFTError) -> TemplateValue
    {
        if case .string(let name) = index { return try member(name, of: object, line) }
        switch object {
        case .undefined(let what):
            throw TemplateEvaluator.failure(
                line, "\"\(what)\" is undefined, so it has no member \(index.representation)", .argument)
        case .dictionary(let dictionary): return dictionary[index] ?? .undefined(index.text)
        case .list, .string:
            guard let place = index.integerValue, let elements = object.elements else { return .undefined(index.text) }
            let offset = place < 0 ? Int64(elements.count) + place : place
            return offset >= 0 && offset < Int64(elements.count)
                ? elements[Int(offset)] : .undefined("element \(place)")
        default: return .undefined(index.text)
        }
    }

    /// Python's `object[start:stop:step]`.
    private mutating func slice(
        _ object: TemplateValue, _ start: TemplateExpression?, _ stop: TemplateExpression?, _ step: TemplateExpression?,
        _ line: Int
    ) throws(PEFTError) -> TemplateValue {
        func bound(_ expression: TemplateExpression?, _ evaluator: inout TemplateEvaluator) throws(PEFTError) -> Int? {
            guard let expression else { return nil }
            let value = try evaluator.value(of: expression)
            if case .none = value { return nil }
            guard let integer = value.integerValue else {
                throw TemplateEvaluator.failure(
                    line, "the bounds of a slice must be integers, one is a \(value.typeName)")
            }
            return Int(max(-1 << 40, min(1 << 40, integer)))
        }
        let (first, last, stride) = (try bound(start, &self), try bound(stop, &self), try bound(step, &self) ?? 1)
        guard let elements = object.elements, stride != 0 else {
            throw TemplateEvaluator.failure(line, "cannot take a slice of a \(object.typeName), or its step is 0")
        }
        if case .dictionary = object { throw TemplateEvaluator.failure(line, "cannot take a slice of a dict") }
        let count = elements.count
        try self.step(line, count)
        func clamped(_ bound: Int?, _ standard: Int) -> Int {
            guard let bound else { return standard }
            let place = bound < 0 ? bound + count : bound
            return stride > 0 ? min(max(place, 0), count) : min(max(place, -1), count - 1)
        }
        let from = clamped(first, stride > 0 ? 0 : count - 1)
        let to = clamped(last, stride > 0 ? count : -1)
        let chosen = Swift.stride(from: from, to: to, by: stride).map { elements[$0] }
        if case .string = object { return .string(chosen.map(\.text).joined()) }
        return .list(chosen)
    }

    // MARK: Operators

    private func combine(
        _ operation: TemplateExpression.Binary, _ left: TemplateValue, _ right: TemplateValue, _ line: Int
    ) throws(PEFTError) -> TemplateValue {
        if operation == .concatenate || operation == .add, case .undefined(let what) = left, operation == .add {
            throw undefined(what, line)
        }
        switch (operation, left, right) {
        case (.concatenate, _, _): return try joined(left.text, right.text, line)
        case (.add, .string(let a), .string(let b)): return try joined(a, b, line)
        case (.add, .list(let a), .list(let b)):
            return try checked(.list(a + b), line)
        case (.multiply, .string(let text), .integer(let count)), (.multiply, .integer(let count), .string(let text)):
            let times = Int(max(0, min(count, 1 << 32)))
            try checkSize(text.utf8.count * times, line)  // Safe: a text has at most 2^24 bytes
            try step(line, text.utf8.count * times / 64)
            return .string(String(repeating: text, count: times))
        default: break
        }
        if case .undefined(let what) = left { throw undefined(what, line) }
        if case .undefined(let what) = right { throw undefined(what, line) }
        if operation == .modulo, case .string = left {
            throw TemplateEvaluator.failure(line, "formatting with % is not supported", .unsupported)
        }
        guard let a = left.numberValue, let b = right.numberValue else {
            throw TemplateEvaluator.failure(
                line, "\(operation.rawValue) between a \(left.typeName) and a \(right.typeName)")
        }
        if operation != .divide, let x = left.integerValue, let y = right.integerValue,
            let result = try integers(operation, x, y, line)
        {
            return .integer(result)
        }
        if b == 0, [.divide, .floorDivide, .modulo].contains(operation) {
            throw TemplateEvaluator.failure(line, "division by zero")
        }
        switch operation {
        case .add: return .number(a + b)
        case .subtract: return .number(a - b)
        case .multiply: return .number(a * b)
        case .divide: return .number(a / b)
        case .floorDivide: return .number((a / b).rounded(.down))
        case .modulo: return .number(a - b * (a / b).rounded(.down))
        case .power, .concatenate:
            throw TemplateEvaluator.failure(line, "** is only supported for integers", .unsupported)
        }
    }

    /// nil for a power with a negative exponent, which is no integer.
    private func integers(_ operation: TemplateExpression.Binary, _ a: Int64, _ b: Int64, _ line: Int) throws(PEFTError)
        -> Int64?
    {
        var result: (partialValue: Int64, overflow: Bool) = (0, false)
        switch operation {
        case .add: result = a.addingReportingOverflow(b)
        case .subtract: result = a.subtractingReportingOverflow(b)
        case .multiply: result = a.multipliedReportingOverflow(by: b)
        case .floorDivide, .modulo:
            guard b != 0 else { throw TemplateEvaluator.failure(line, "division by zero") }
            let quotient = a.dividedReportingOverflow(by: b)
            guard !quotient.overflow else {
                throw TemplateEvaluator.failure(line, "an integer beyond 64 bits", .unsupported)
            }
            let remainder = a - quotient.partialValue * b
            let isOff = remainder != 0 && (remainder < 0) != (b < 0)  // Python rounds down
            return operation == .modulo
                ? (isOff ? remainder + b : remainder) : (isOff ? quotient.partialValue - 1 : quotient.partialValue)
        case .power:
            if b < 0 { return nil }
            result.partialValue = 1
            for _ in 0..<min(b, 64) where !result.overflow {
                result = result.partialValue.multipliedReportingOverflow(by: a)
            }
            if b > 64, abs(Double(a)) > 1 { result.overflow = true }
            if b > 64, a == -1 { result.partialValue = b % 2 == 0 ? 1 : -1 }
        case .divide, .concatenate: return nil
        }
        guard !result.overflow else { throw TemplateEvaluator.failure(line, "an integer beyond 64 bits", .unsupported) }
        return result.partialValue
    }

    private func joined(_ a: String, _ b: String, _ line: Int) throws(PEFTError) -> TemplateValue {
        try checkSize(a.utf8.count + b.utf8.count, line)
        try step(line, (a.utf8.count + b.utf8.count) / 64)
        return .string(a + b)
    }

    private func undefined(_ what: String, _ line: Int) -> PEFTError {
        TemplateEvaluator.failure(line, "\"\(what)\" is undefined", .argument)
    }

    func compare(
        _ comparison: TemplateExpression.Comparison, _ left: TemplateValue, _ right: TemplateValue, _ line: Int
    ) throws(PEFTError) -> Bool {
        try step(line, left.size + right.size)
        func ordered(_ a: TemplateValue, _ b: TemplateValue) throws(PEFTError) -> Bool {
            guard let isLess = a.isLess(than: b) else {
                throw TemplateEvaluator.failure(line, "cannot order a \(left.typeName) and a \(right.typeName)")
            }
            return isLess
        }
        switch comparison {
        case .equal: return left.equals(right)
        case .notEqual: return !left.equals(right)
        case .less: return try ordered(left, right)
        case .greater: return try ordered(right, left)
        case .lessOrEqual: return left.equals(right) ? true : try ordered(left, right)
        case .greaterOrEqual: return left.equals(right) ? true : try ordered(right, left)
        case .isIn: return try contains(right, left, line)
        case .isNotIn: return try !contains(right, left, line)
        }
    }

    private func contains(_ container: TemplateValue, _ element: TemplateValue, _ line: Int) throws(PEFTError) -> Bool {
        switch container {
        case .string(let text):
            guard case .string(let part) = element else {
                throw TemplateEvaluator.failure(line, "\"in\" a str needs a str, got a \(element.typeName)")
            }
            return part.isEmpty || text.firstPlace(of: part) != nil
        case .undefined: return false
        default:
            guard let elements = container.elements else {
                throw TemplateEvaluator.failure(line, "\"in\" needs a list, dict or str, got a \(container.typeName)")
            }
            return elements.contains { $0.equals(element) }
        }
    }
}
