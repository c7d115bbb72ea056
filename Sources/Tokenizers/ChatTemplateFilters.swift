internal import Platform

extension TemplateEvaluator {
    /// `input | name(arguments)`
    func apply(filter name: String, to input: TemplateValue, _ arguments: TemplateArguments, _ line: Int)
        throws(PEFTError) -> TemplateValue
    {
        try step(line, 1 + input.size)
        switch name {
        case "default", "d":
            let standard = arguments.value(0, "default_value") ?? .string("")
            if case .undefined = input { return standard }
            return arguments.value(1, "boolean")?.isTrue == true && !input.isTrue ? standard : input
        case "trim", "upper", "lower", "title", "capitalize", "replace", "string", "safe", "indent", "int", "float":
            return try applyToText(name, input, arguments, line)
        case "length", "count":
            guard let elements = input.elements else {
                throw TemplateEvaluator.failure(line, "a \(input.typeName) has no length")
            }
            return .integer(Int64(elements.count))
        case "tojson":
            guard let json = input.json else {
                throw TemplateEvaluator.failure(line, "a \(input.typeName) cannot be written as JSON")
            }
            for option in arguments.named.keys where !["indent", "ensure_ascii", "sort_keys"].contains(option) {
                throw TemplateEvaluator.failure(line, "tojson: \"\(option)\" is not supported", .unsupported)
            }
            if arguments.named["ensure_ascii"]?.isTrue == true {
                throw TemplateEvaluator.failure(line, "tojson: ensure_ascii is not supported", .unsupported)
            }
            // transformers' own tojson takes ensure_ascii first and indent second.
            let indent = arguments.value(1, "indent")?.integerValue.map { Int(max(0, min($0, 16))) }
            return .string(json.text(indent: indent, sortKeys: arguments.named["sort_keys"]?.isTrue ?? false))
        case "abs":
            if let value = input.integerValue, value != .min { return .integer(abs(value)) }
            if let value = input.numberValue { return .number(abs(value)) }
            throw TemplateEvaluator.failure(line, "abs needs a number, got a \(input.typeName)")
        case "round":
            guard let value = input.numberValue, arguments.positional.isEmpty, arguments.named.isEmpty else {
                throw TemplateEvaluator.failure(
                    line, "round is only supported for a number and without arguments", .unsupported)
            }
            return .number(value.rounded(.toNearestOrEven))
        case "items":
            if case .undefined = input { return .list([]) }
            guard case .dictionary(let dictionary) = input else {
                throw TemplateEvaluator.failure(line, "items needs a dict, got a \(input.typeName)")
            }
            return .list(dictionary.pairs.map { .list([$0.key, $0.value]) })
        case "dictsort":
            guard case .dictionary(let dictionary) = input else {
                throw TemplateEvaluator.failure(line, "dictsort needs a dict, got a \(input.typeName)")
            }
            let pairs = dictionary.pairs.sorted {
                $0.key.text.lowercased().unicodeScalars.lexicographicallyPrecedes(
                    $1.key.text.lowercased().unicodeScalars)
            }
            return .list(pairs.map { .list([$0.key, $0.value]) })
        default: return try applyToList(name, input, arguments, line)
        }
    }

    private func applyToText(_ name: String, _ input: TemplateValue, _ arguments: TemplateArguments, _ line: Int)
        throws(PEFTError) -> TemplateValue
    {
        let text = input.text
        switch name {
        case "trim": return .string(text.stripped(of: arguments.value(0, "chars")?.text))
        case "upper": return .string(text.uppercased())
        case "lower": return .string(text.lowercased())
        case "title": return .string(text.titled)
        case "capitalize": return .string(text.capitalized)
        case "replace":
            guard let old = arguments.value(0, "old"), let new = arguments.value(1, "new") else {
                throw TemplateEvaluator.failure(line, "replace needs two texts")
            }
            return .string(try replaced(text, old.text, new.text, arguments.value(2, "count"), line))
        case "indent":
            let width = arguments.value(0, "width")
            let indent =
                width?.integerValue.map { String(repeating: " ", count: Int(max(0, min($0, 1000)))) } ?? width?.text
                ?? "    "
            let indentsFirst = arguments.value(1, "first")?.isTrue ?? false
            let indentsBlank = arguments.value(2, "blank")?.isTrue ?? false
            let lines = text.parts(separatedBy: "\n", atMost: .max)
            try checkSize(text.utf8.count + lines.count * indent.utf8.count, line)
            return .string(
                lines.enumerated().map { ($0 == 0 ? indentsFirst : indentsBlank || !$1.isEmpty) ? indent + $1 : $1 }
                    .joined(separator: "\n"))
        case "int":
            if let value = input.integerValue { return .integer(value) }
            if let value = input.numberValue ?? Double(text.stripped()) {
                return Int64(exactly: value.rounded(.towardZero)).map { .integer($0) } ?? .integer(0)
            }
            return arguments.value(0, "default") ?? .integer(0)
        case "float":
            return (input.numberValue ?? Double(text.stripped())).map { .number($0) } ?? arguments.value(0, "default")
                ?? .number(0)
        default: return .string(text)  // string, safe: nothing is escaped
        }
    }

    private func applyToList(_ name: String, _ input: TemplateValue, _ arguments: TemplateArguments, _ line: Int)
        throws(PEFTError) -> TemplateValue
    {
        guard
            [
                "first", "last", "list", "join", "reverse", "sort", "unique", "min", "max", "sum", "map", "select",
                "reject", "selectattr", "rejectattr",
            ].contains(name)
        else {
            throw TemplateEvaluator.failure(line, "the filter \"\(name)\" is not supported", .unsupported)
        }
        guard let elements = input.elements else {
            throw TemplateEvaluator.failure(line, "\(name) needs a list, got a \(input.typeName)")
        }
        switch name {
        case "first": return elements.first ?? .undefined("the first of nothing")
        case "last": return elements.last ?? .undefined("the last of nothing")
        case "list": return .list(elements)
        case "reverse":
            if case .string = input { return .string(elements.reversed().map(\.text).joined()) }
            return .list(elements.reversed())
        case "join":
            var texts: [String] = []
            for element in elements {
                texts.append(
                    try attribute(arguments.named["attribute"] ?? arguments.value(1, "attribute"), of: element, line)
                        .text)
            }
            let separator = arguments.value(0, "d")?.text ?? ""
            try checkSize(texts.reduce(texts.count * separator.utf8.count) { $0 + $1.utf8.count }, line)
            return .string(texts.joined(separator: separator))
        case "unique":
            var found: [TemplateValue] = []
            for element in elements {
                try step(line, found.count)
                if !found.contains(where: { $0.equals(element) }) { found.append(element) }
            }
            return .list(found)
        case "min", "max", "sort": return try sorted(name, elements, arguments, line)
        case "sum":
            var total = TemplateValue.integer(0)
            for element in elements {
                guard let a = total.numberValue, let b = element.numberValue else {
                    throw TemplateEvaluator.failure(line, "sum needs numbers, got a \(element.typeName)")
                }
                if let x = total.integerValue, let y = element.integerValue, !x.addingReportingOverflow(y).overflow {
                    total = .integer(x + y)
                } else {
                    total = .number(a + b)
                }
            }
            return total
        case "map":
            var mapped: [TemplateValue] = []
            for element in elements {
                if let attribute = arguments.named["attribute"] {
                    var value = try self.attribute(attribute, of: element, line)
                    if case .undefined = value, let standard = arguments.named["default"] { value = standard }
                    mapped.append(value)
                } else {
                    guard let filter = arguments.positional.first else {
                        throw TemplateEvaluator.failure(line, "map needs a filter or an attribute")
                    }
                    // A filter that maps with itself would never end.
                    guard filter.text != "map" else {
                        throw TemplateEvaluator.failure(line, "map of map is not supported", .unsupported)
                    }
                    mapped.append(
                        try apply(
                            filter: filter.text, to: element,
                            TemplateArguments(positional: Array(arguments.positional.dropFirst())), line))
                }
            }
            return .list(mapped)
        default: return try selected(name, elements, arguments, line)
        }
    }

    /// `a.b.0` of an element; the element itself without an attribute.
    private func attribute(_ path: TemplateValue?, of element: TemplateValue, _ line: Int) throws(PEFTError)
        -> TemplateValue
    {
        guard let path else { return element }
        var value = element
        for part in path.text.parts(separatedBy: ".", atMost: .max) {
            if let index = Int(part), case .list(let list) = value {
                value = list.indices.contains(index) ? list[index] : .undefined(part)
            } else {
                value = try member(part, of: value, line)
            }
        }
        return value
    }

    private func sorted(_ name: String, _ elements: [TemplateValue], _ arguments: TemplateArguments, _ line: Int)
        throws(PEFTError) -> TemplateValue
    {
        let isCaseSensitive = arguments.named["case_sensitive"]?.isTrue ?? false
        var keyed: [(key: TemplateValue, value: TemplateValue)] = []
        for element in elements {
            var key = try attribute(arguments.named["attribute"], of: element, line)
            if case .string(let text) = key, !isCaseSensitive { key = .string(text.lowercased()) }
            guard keyed.isEmpty || key.isLess(than: keyed[0].key) != nil else {
                throw TemplateEvaluator.failure(
                    line, "\(name): cannot order a \(key.typeName) and a \(keyed[0].key.typeName)")
            }
            keyed.append((key, element))
        }
        if name == "min" {
            return keyed.min { $0.key.isLess(than: $1.key) ?? false }?.value ?? .undefined("the least of nothing")
        }
        if name == "max" {
            return keyed.max { $0.key.isLess(than: $1.key) ?? false }?.value ?? .undefined("the largest of nothing")
        }
        let isReversed = arguments.value(0, "reverse")?.isTrue ?? false
        keyed.sort { isReversed ? $1.key.isLess(than: $0.key) ?? false : $0.key.isLess(than: $1.key) ?? false }
        return .list(keyed.map(\.value))
    }

    private func selected(_ name: String, _ elements: [TemplateValue], _ arguments: TemplateArguments, _ line: Int)
        throws(PEFTError) -> TemplateValue
    {
        let usesAttribute = name.hasSuffix("attr")
        let rest = Array(arguments.positional.dropFirst(usesAttribute ? 1 : 0))
        guard !usesAttribute || !arguments.positional.isEmpty else {
            throw TemplateEvaluator.failure(line, "\(name) needs an attribute")
        }
        var chosen: [TemplateValue] = []
        for element in elements {
            let value = try attribute(usesAttribute ? arguments.positional[0] : nil, of: element, line)
            let holds =
                try rest.isEmpty
                ? value.isTrue
                : passes(test: rest[0].text, value, TemplateArguments(positional: Array(rest.dropFirst())), line)
            if holds == name.hasPrefix("select") { chosen.append(element) }
        }
        return .list(chosen)
    }
}
