internal import Platform

/// The date that `strftime_now` writes; given by the caller, so that rendering depends on nothing else.
package struct TemplateDate: Sendable {
    package var year, month, day, hour, minute, second: Int

    /// `month` and `day` count from 1.
    package init(year: Int, month: Int, day: Int, hour: Int = 0, minute: Int = 0, second: Int = 0) {
        (self.year, self.month, self.day) = (year, month, day)
        (self.hour, self.minute, self.second) = (hour, minute, second)
    }

    private static let months = [
        "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
        "December",
    ]
    private static let days = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"]

    /// Python's `strftime` for the directives that templates use; nil for another one.
    func formatted(_ format: String) -> String? {
        guard (1...12).contains(month), (1...31).contains(day), (1...9999).contains(year) else { return nil }
        func two(_ number: Int) -> String { number < 10 ? "0\(number)" : "\(number)" }
        // Sakamoto's rule for the day of the week.
        let offsets = [0, 3, 2, 5, 0, 3, 5, 1, 4, 6, 2, 4]
        let y = month < 3 ? year - 1 : year
        let weekday = (y + y / 4 - y / 100 + y / 400 + offsets[month - 1] + day) % 7
        var out = ""
        var scalars = Array(format.unicodeScalars)[...]
        while let scalar = scalars.popFirst() {
            guard scalar == "%" else {
                out.unicodeScalars.append(scalar)
                continue
            }
            switch scalars.popFirst() {
            case "Y": out += String(year)
            case "y": out += two(year % 100)
            case "m": out += two(month)
            case "d": out += two(day)
            case "B": out += TemplateDate.months[month - 1]
            case "b": out += TemplateDate.months[month - 1].prefix(3)
            case "A": out += TemplateDate.days[weekday]
            case "a": out += TemplateDate.days[weekday].prefix(3)
            case "H": out += two(hour)
            case "M": out += two(minute)
            case "S": out += two(second)
            case "%": out += "%"
            default: return nil
            }
        }
        return out
    }
}

extension TemplateEvaluator {
    mutating func call(_ function: TemplateExpression, _ arguments: TemplateArguments, _ line: Int) throws(PEFTError)
        -> TemplateValue
    {
        // `object.name(…)`: a method, unless the object has a member of that name to call.
        if case .attribute(let receiver, let name) = function.kind {
            let object = try value(of: receiver)
            if let result = try callMethod(name, of: object, arguments, line) { return result }
            return try call(try member(name, of: object, line), named: name, arguments, line)
        }
        return try call(try value(of: function), named: "the value", arguments, line)
    }

    private mutating func call(
        _ function: TemplateValue, named name: String, _ arguments: TemplateArguments, _ line: Int
    ) throws(PEFTError) -> TemplateValue {
        switch function {
        case .macro(let macro): return try call(macro, arguments, line)
        case .function("raise_exception"):
            throw PEFTError(
                .argument, "the chat template refuses the messages: \(arguments.value(0, "message")?.text ?? "")",
                detail: Int64(line))
        case .function("namespace"), .function("dict"):
            var pairs: [(TemplateValue, TemplateValue)] = []
            if case .dictionary(let dictionary)? = arguments.positional.first { pairs = dictionary.pairs }
            pairs += arguments.named.sorted { $0.key < $1.key }.map { (.string($0.key), $0.value) }
            if case .function("dict") = function {
                var dictionary = TemplateDictionary()
                for (key, value) in pairs { dictionary.set(key, value) }
                return try checked(.dictionary(dictionary), line)
            }
            let namespace = TemplateNamespace()
            for (key, value) in pairs { namespace.members[key.text] = value }
            return .namespace(namespace)
        case .function("range"): return try range(arguments, line)
        case .function("strftime_now"):
            let format = arguments.value(0, "format")?.text ?? ""
            guard let text = date?.formatted(format) else {
                throw TemplateEvaluator.failure(
                    line, "strftime_now(\"\(format)\"): the format or the date is not supported", .unsupported)
            }
            return .string(text)
        case .undefined(let what):
            throw TemplateEvaluator.failure(line, "the function or method \"\(what)\" is not supported", .unsupported)
        default: throw TemplateEvaluator.failure(line, "\(name) is a \(function.typeName), which cannot be called")
        }
    }

    private mutating func range(_ arguments: TemplateArguments, _ line: Int) throws(PEFTError) -> TemplateValue {
        let bounds = arguments.positional.compactMap(\.integerValue)
        guard bounds.count == arguments.positional.count, (1...3).contains(bounds.count) else {
            throw TemplateEvaluator.failure(line, "range needs one to three integers")
        }
        let (start, stop, step) =
            bounds.count == 1 ? (0, bounds[0], 1) : (bounds[0], bounds[1], bounds.count == 3 ? bounds[2] : 1)
        guard step != 0, abs(Double(stop) - Double(start)) / abs(Double(step)) <= 1_000_000 else {
            throw TemplateEvaluator.failure(line, "range of more than 1000000 numbers, or its step is 0")
        }
        let values = stride(from: start, to: stop, by: Int(step)).map { TemplateValue.integer($0) }
        try self.step(line, values.count)
        return .list(values)
    }
}
