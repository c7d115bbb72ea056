internal import Platform

/// Modules by name, as PEFT's target_modules choose them: a list of names or of their last parts, or one regular expression for
/// the whole name.
enum ModuleSelection: Sendable {
    case names([String])
    case pattern(Pattern)

    init(_ value: JSONValue, _ key: String) throws(PEFTError) {
        if let text = value.stringValue {
            self = .pattern(try Pattern(text))
            return
        }
        guard let list = value.arrayValue else {
            throw PEFTError(.argument, "\"\(key)\" is \(value.kindName); a list of module names or a regular expression is expected")
        }
        self = .names(
            try list.map { (item) throws(PEFTError) in
                guard let name = item.stringValue else { throw PEFTError(.argument, "\"\(key)\" has \(item.text()), which is no name") }
                return name
            })
    }

    func contains(_ name: String) throws(PEFTError) -> Bool {
        switch self {
        case .names(let names): names.contains { name == $0 || name.hasSuffix("." + $0) }
        case .pattern(let pattern): try pattern.matchesWhole(name)
        }
    }
}
