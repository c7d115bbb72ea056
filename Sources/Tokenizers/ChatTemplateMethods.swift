internal import Platform

extension TemplateEvaluator {
    /// A method of a text or a dictionary; nil if it has none of that name.
    mutating func callMethod(_ name: String, of object: TemplateValue, _ arguments: TemplateArguments, _ line: Int)
        throws(PEFTError) -> TemplateValue?
    {
        switch object {
        case .string(let text):
            try step(line, 1 + object.size)
            return try callMethod(name, of: text, arguments, line)
        case .dictionary(let dictionary):
            switch name {
            case "items": return .list(dictionary.pairs.map { .list([$0.key, $0.value]) })
            case "keys": return .list(dictionary.pairs.map(\.key))
            case "values": return .list(dictionary.pairs.map(\.value))
            case "get":
                guard let key = arguments.positional.first else {
                    throw TemplateEvaluator.failure(line, "get needs a key")
                }
                return dictionary[key] ?? arguments.value(1, "default") ?? TemplateValue.none
            default: return nil
            }
        case .loop(let loop) where name == "cycle":
            guard !arguments.positional.isEmpty else {
                throw TemplateEvaluator.failure(line, "loop.cycle needs values")
            }
            return arguments.positional[loop.index % arguments.positional.count]
        default: return nil
        }
    }

    private func callMethod(_ name: String, of text: String, _ arguments: TemplateArguments, _ line: Int)
        throws(PEFTError) -> TemplateValue?
    {
        func string(_ index: Int) throws(PEFTError) -> String? {
            guard index < arguments.positional.count else { return nil }
            if case .none = arguments.positional[index] { return nil }
            guard case .string(let value) = arguments.positional[index] else {
                throw TemplateEvaluator.failure(
                    line, "\(name) needs a str, got a \(arguments.positional[index].typeName)")
            }
            return value
        }
        func required(_ index: Int) throws(PEFTError) -> String {
            guard let value = try string(index) else {
                throw TemplateEvaluator.failure(line, "\(name) needs another argument")
            }
            return value
        }
        switch name {
        case "strip": return .string(text.stripped(of: try string(0)))
        case "lstrip": return .string(text.stripped(of: try string(0), right: false))
        case "rstrip": return .string(text.stripped(of: try string(0), left: false))
        case "upper": return .string(text.uppercased())
        case "lower": return .string(text.lowercased())
        case "title": return .string(text.titled)
        case "capitalize": return .string(text.capitalized)
        case "startswith", "endswith":
            let candidates: [TemplateValue]
            if case .list(let list)? = arguments.positional.first {
                candidates = list
            } else {
                candidates = [.string(try required(0))]
            }
            return .bool(
                candidates.contains {
                    name == "startswith"
                        ? text.utf8.starts(with: $0.text.utf8)
                        : text.utf8.reversed().starts(with: $0.text.utf8.reversed())
                })
        case "split":
            let separator = try string(0)
            if separator?.isEmpty == true {
                throw TemplateEvaluator.failure(line, "split needs a separator that is not empty")
            }
            let limit = arguments.value(1, "maxsplit")?.integerValue ?? -1
            return .list(text.parts(separatedBy: separator, atMost: limit < 0 ? .max : Int(limit)).map { .string($0) })
        case "splitlines":
            var lines = text.replacing("\r\n", with: "\n", atMost: .max).replacing("\r", with: "\n", atMost: .max)
                .parts(separatedBy: "\n", atMost: .max)
            if lines.last == "" { lines.removeLast() }
            return .list(lines.map { .string($0) })
        case "replace":
            return .string(try replaced(text, try required(0), try required(1), arguments.value(2, "count"), line))
        case "find":
            return .integer(
                text.firstPlace(of: try required(0)).map {
                    Int64(String(decoding: Array(text.utf8)[..<$0], as: UTF8.self).unicodeScalars.count)
                } ?? -1)
        case "count": return .integer(Int64(text.parts(separatedBy: try required(0), atMost: .max).count - 1))
        case "isdigit":
            return .bool(
                !text.isEmpty
                    && text.unicodeScalars.allSatisfy {
                        $0.properties.numericType == .decimal || $0.properties.numericType == .digit
                    })
        case "isspace": return .bool(!text.isEmpty && text.unicodeScalars.allSatisfy(\.isPythonSpace))
        case "removeprefix":
            let prefix = try required(0)
            return .string(
                text.utf8.starts(with: prefix.utf8)
                    ? String(decoding: text.utf8.dropFirst(prefix.utf8.count), as: UTF8.self) : text)
        case "removesuffix":
            let suffix = try required(0)
            return .string(
                text.utf8.reversed().starts(with: suffix.utf8.reversed())
                    ? String(decoding: text.utf8.dropLast(suffix.utf8.count), as: UTF8.self) : text)
        case "join":
            return try apply(
                filter: "join", to: arguments.positional.first ?? .list([]), .init(positional: [.string(text)]), line)
        default: return nil
        }
    }

    func replaced(_ text: String, _ old: String, _ new: String, _ count: TemplateValue?, _ line: Int) throws(PEFTError)
        -> String
    {
        let limit = count?.integerValue ?? -1
        let matches = old.isEmpty ? text.unicodeScalars.count + 1 : text.utf8.count / max(1, old.utf8.count)
        try checkSize(
            text.utf8.count
                + (new.utf8.count > old.utf8.count
                    ? matches.multipliedReportingOverflow(by: new.utf8.count).partialValue : 0),
            line)
        return text.replacing(old, with: new, atMost: limit < 0 ? .max : Int(limit))
    }
}
