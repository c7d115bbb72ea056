internal import Platform

/// A value while a template is rendered: Python's, as far as templates use them.
indirect enum TemplateValue {
    /// A name or member that does not exist; the text says which.
    case undefined(String)
    case none
    case bool(Bool)
    case integer(Int64)
    case number(Double)
    case string(String)
    case list([TemplateValue])
    case dictionary(TemplateDictionary)
    case namespace(TemplateNamespace)
    case function(String)
    case macro(TemplateStatement.Macro)
    case loop(TemplateLoop)

    init(_ json: JSONValue) {
        switch json {
        case .null: self = .none
        case .bool(let value): self = .bool(value)
        case .integer(let value): self = .integer(value)
        case .number(let value): self = .number(value)
        case .string(let value): self = .string(value)
        case .array(let elements): self = .list(elements.map { TemplateValue($0) })
        case .object(let object):
            self = .dictionary(
                TemplateDictionary(pairs: object.pairs.map { (.string($0.key), TemplateValue($0.value)) }))
        }
    }

    init(_ literal: TemplateExpression.Literal) {
        switch literal {
        case .none: self = .none
        case .bool(let value): self = .bool(value)
        case .integer(let value): self = .integer(value)
        case .number(let value): self = .number(value)
        case .string(let value): self = .string(value)
        }
    }
}

/// Keys keep their order. Look-up is linear: the dictionaries of messages have a handful of keys.
struct TemplateDictionary {
    var pairs: [(key: TemplateValue, value: TemplateValue)] = []

    subscript(key: TemplateValue) -> TemplateValue? { pairs.first { $0.key.equals(key) }?.value }

    mutating func set(_ key: TemplateValue, _ value: TemplateValue) {
        if let index = pairs.firstIndex(where: { $0.key.equals(key) }) {
            pairs[index].value = value
        } else {
            pairs.append((key, value))
        }
    }
}

/// The one mutable thing of a template.
final class TemplateNamespace {
    var members: [String: TemplateValue] = [:]
}

/// The variable `loop`.
final class TemplateLoop {
    let values: [TemplateValue]
    var index = 0
    let depth: Int

    init(_ values: [TemplateValue], depth: Int) {
        self.values = values
        self.depth = depth
    }

    func member(_ name: String) -> TemplateValue? {
        switch name {
        case "index": .integer(Int64(index + 1))
        case "index0": .integer(Int64(index))
        case "revindex": .integer(Int64(values.count - index))
        case "revindex0": .integer(Int64(values.count - index - 1))
        case "first": .bool(index == 0)
        case "last": .bool(index == values.count - 1)
        case "length": .integer(Int64(values.count))
        case "depth": .integer(Int64(depth))
        case "depth0": .integer(Int64(depth - 1))
        case "previtem": index > 0 ? values[index - 1] : .undefined("loop.previtem")
        case "nextitem": index + 1 < values.count ? values[index + 1] : .undefined("loop.nextitem")
        default: nil
        }
    }
}

// MARK: Python's ways

extension TemplateValue {
    var isTrue: Bool {
        switch self {
        case .undefined, .none: false
        case .bool(let value): value
        case .integer(let value): value != 0
        case .number(let value): value != 0
        case .string(let value): !value.isEmpty
        case .list(let elements): !elements.isEmpty
        case .dictionary(let dictionary): !dictionary.pairs.isEmpty
        case .namespace, .function, .macro, .loop: true
        }
    }

    /// For messages: Python's name of the type.
    var typeName: String {
        switch self {
        case .undefined: "undefined"
        case .none: "None"
        case .bool: "bool"
        case .integer: "int"
        case .number: "float"
        case .string: "str"
        case .list: "list"
        case .dictionary: "dict"
        case .namespace: "namespace"
        case .function, .macro: "function"
        case .loop: "loop"
        }
    }

    /// The work of looking through it once, in steps of the evaluator.
    var size: Int {
        switch self {
        case .string(let text): text.utf8.count / 64
        case .list(let elements): elements.count
        case .dictionary(let dictionary): dictionary.pairs.count
        default: 0
        }
    }

    /// Adds the size of everything within to `total`; false once it nests deeper than `depth` or `total` passes `limit`.
    /// A list may hold another one many times over, so what is small in memory can be endless to walk through.
    func measure(_ total: inout Int, depth: Int, limit: Int) -> Bool {
        total += 1 + size
        guard total <= limit, depth > 0 else { return false }
        switch self {
        case .list(let elements): return elements.allSatisfy { $0.measure(&total, depth: depth - 1, limit: limit) }
        case .dictionary(let dictionary):
            return dictionary.pairs.allSatisfy { $0.value.measure(&total, depth: depth - 1, limit: limit) }
        default: return true
        }
    }

    var numberValue: Double? {
        switch self {
        case .bool(let value): value ? 1 : 0
        case .integer(let value): Double(value)
        case .number(let value): value
        default: nil
        }
    }

    var integerValue: Int64? {
        switch self {
        case .bool(let value): value ? 1 : 0
        case .integer(let value): value
        default: nil
        }
    }

    /// Python's `==`: numbers by value, strings by code points.
    func equals(_ other: TemplateValue) -> Bool {
        if let a = integerValue, let b = other.integerValue { return a == b }
        if let a = numberValue, let b = other.numberValue { return a == b }
        switch (self, other) {
        case (.none, .none), (.undefined, .undefined): return true
        case (.string(let a), .string(let b)): return a.utf8.elementsEqual(b.utf8)
        case (.list(let a), .list(let b)): return a.count == b.count && zip(a, b).allSatisfy { $0.equals($1) }
        case (.dictionary(let a), .dictionary(let b)):
            return a.pairs.count == b.pairs.count
                && a.pairs.allSatisfy { pair in b[pair.key].map { $0.equals(pair.value) } ?? false }
        case (.namespace(let a), .namespace(let b)): return a === b
        default: return false
        }
    }

    /// Python's `<`; nil where it would be a TypeError.
    func isLess(than other: TemplateValue) -> Bool? {
        if let a = numberValue, let b = other.numberValue { return a < b }
        switch (self, other) {
        case (.string(let a), .string(let b)): return a.unicodeScalars.lexicographicallyPrecedes(b.unicodeScalars)
        case (.list(let a), .list(let b)):
            for (x, y) in zip(a, b) where !x.equals(y) { return x.isLess(than: y) }
            return a.count < b.count
        default: return nil
        }
    }

    /// Python's `str`.
    var text: String {
        switch self {
        case .undefined: ""
        case .string(let value): value
        default: representation
        }
    }

    /// Python's `repr`.
    var representation: String {
        switch self {
        case .undefined: "Undefined"
        case .none: "None"
        case .bool(let value): value ? "True" : "False"
        case .integer(let value): String(value)
        case .number(let value): value.description
        case .string(let value): TemplateValue.quoted(value)
        case .list(let elements): "[" + elements.map(\.representation).joined(separator: ", ") + "]"
        case .dictionary(let dictionary):
            "{"
                + dictionary.pairs.map { "\($0.key.representation): \($0.value.representation)" }.joined(
                    separator: ", ") + "}"
        case .namespace: "<Namespace>"
        case .function(let name): "<function \(name)>"
        case .macro(let macro): "<Macro '\(macro.name)'>"
        case .loop: "<LoopContext>"
        }
    }

    private static func quoted(_ text: String) -> String {
        let quote: Unicode.Scalar =
            text.unicodeScalars.contains("'") && !text.unicodeScalars.contains("\"") ? "\"" : "'"
        var out = String.UnicodeScalarView([quote])
        for scalar in text.unicodeScalars {
            switch scalar {
            case "\\", quote: out += ["\\", scalar]
            case "\n": out += ["\\", "n"]
            case "\r": out += ["\\", "r"]
            case "\t": out += ["\\", "t"]
            case _ where scalar.value < 0x20 || scalar.value == 0x7F:
                let hex = String(scalar.value, radix: 16)
                out += ((hex.count == 1 ? "\\x0" : "\\x") + hex).unicodeScalars
            default: out.append(scalar)
            }
        }
        out.append(quote)
        return String(out)
    }

    /// For `tojson`; nil for what JSON does not have.
    var json: JSONValue? {
        switch self {
        case .none: return .null
        case .bool(let value): return .bool(value)
        case .integer(let value): return .integer(value)
        case .number(let value): return .number(value)
        case .string(let value): return .string(value)
        case .list(let elements):
            let converted = elements.compactMap(\.json)
            return converted.count == elements.count ? .array(converted) : nil
        case .dictionary(let dictionary):
            var object = JSONObject()
            for (key, value) in dictionary.pairs {
                guard let value = value.json else { return nil }
                object[key.text] = value
            }
            return .object(object)
        default: return nil
        }
    }

    /// What a `for` goes through; nil if there is nothing to go through.
    var elements: [TemplateValue]? {
        switch self {
        case .undefined: []
        case .list(let elements): elements
        case .dictionary(let dictionary): dictionary.pairs.map(\.key)
        case .string(let text): text.unicodeScalars.map { .string(String($0)) }
        default: nil
        }
    }
}
