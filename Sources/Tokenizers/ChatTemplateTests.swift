internal import Platform

extension TemplateEvaluator {
    /// `value is name(arguments)`
    func passes(test name: String, _ value: TemplateValue, _ arguments: TemplateArguments, _ line: Int)
        throws(PEFTError) -> Bool
    {
        func argument() throws(PEFTError) -> TemplateValue {
            guard let argument = arguments.positional.first else {
                throw TemplateEvaluator.failure(line, "the test \"\(name)\" needs an argument")
            }
            return argument
        }
        func compared(_ comparison: TemplateExpression.Comparison) throws(PEFTError) -> Bool {
            try compare(comparison, value, try argument(), line)
        }
        switch (name, value) {
        case ("defined", .undefined): return false
        case ("defined", _): return true
        case ("undefined", .undefined): return true
        case ("none", .none): return true
        case ("string", .string): return true
        case ("mapping", .dictionary): return true
        case ("iterable", _): return value.elements != nil
        case ("sequence", _): return value.elements != nil
        case ("number", .integer), ("number", .number), ("number", .bool): return true
        case ("integer", .integer): return true
        case ("float", .number): return true
        case ("boolean", .bool): return true
        case ("true", .bool(let flag)): return flag
        case ("false", .bool(let flag)): return !flag
        case ("callable", .function), ("callable", .macro): return true
        case ("undefined", _), ("none", _), ("string", _), ("mapping", _), ("number", _), ("integer", _), ("float", _),
            ("boolean", _), ("true", _), ("false", _), ("callable", _):
            return false
        case ("odd", _), ("even", _):
            guard let integer = value.integerValue else {
                throw TemplateEvaluator.failure(line, "the test \"\(name)\" needs an integer, got a \(value.typeName)")
            }
            return (integer % 2 == 0) == (name == "even")
        case ("divisibleby", _):
            guard let integer = value.integerValue, let divisor = try argument().integerValue, divisor != 0,
                divisor != -1
            else { throw TemplateEvaluator.failure(line, "divisibleby needs integers") }
            return integer % divisor == 0
        case ("lower", _): return value.text == value.text.lowercased()
        case ("upper", _): return value.text == value.text.uppercased()
        case ("eq", _), ("equalto", _), ("sameas", _): return try compared(.equal)
        case ("ne", _): return try compared(.notEqual)
        case ("lt", _), ("lessthan", _): return try compared(.less)
        case ("le", _): return try compared(.lessOrEqual)
        case ("gt", _), ("greaterthan", _): return try compared(.greater)
        case ("ge", _): return try compared(.greaterOrEqual)
        case ("in", _): return try compared(.isIn)
        default:
            if let comparison = TemplateExpression.Comparison(rawValue: name), name.utf8.count <= 2 {
                return try compared(comparison)
            }
            throw TemplateEvaluator.failure(line, "the test \"\(name)\" is not supported", .unsupported)
        }
    }
}
