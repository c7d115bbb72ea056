internal import Glibc

/// A JSON document as a value. Objects keep the order of the text: PEFT's pattern tables are matched in order.
package indirect enum JSONValue: Sendable, Equatable {
    case null
    case bool(Bool)
    case integer(Int64)
    case number(Double)
    case string(String)
    case array([JSONValue])
    case object(JSONObject)
}

/// An ordered JSON object: unique keys, look-up by name, iteration in the order of the text.
package struct JSONObject: Sendable, Equatable {
    package private(set) var keys: [String] = []
    private var values: [ExactKey: JSONValue] = [:]

    package init() {}

    package init(_ pairs: KeyValuePairs<String, JSONValue>) {
        for (key, value) in pairs { self[key] = value }
    }

    package subscript(key: String) -> JSONValue? {
        get { values[ExactKey(key)] }
        set {
            if let newValue {
                if values.updateValue(newValue, forKey: ExactKey(key)) == nil { keys.append(key) }
            } else if values.removeValue(forKey: ExactKey(key)) != nil {
                keys.removeAll { ExactKey($0) == ExactKey(key) }
            }
        }
    }

    package var isEmpty: Bool { keys.isEmpty }
    package var count: Int { keys.count }

    package var pairs: [(key: String, value: JSONValue)] {
        keys.map { ($0, values[ExactKey($0)] ?? .null) }
    }

    package static func == (a: JSONObject, b: JSONObject) -> Bool { a.values == b.values }
}

/// A key compared by its bytes. Swift's `==` on strings is canonical equivalence, under which "é" in one scalar and in
/// two are the same key; JSON keeps them apart, and vocabularies hold both.
private struct ExactKey: Hashable, Sendable {
    let text: String

    init(_ text: String) { self.text = text }

    static func == (a: ExactKey, b: ExactKey) -> Bool {
        guard a.text.utf8.count == b.text.utf8.count else { return false }
        var (a, b) = (a.text, b.text)
        return a.withUTF8 { a in
            b.withUTF8 { b in
                guard let first = a.baseAddress, let second = b.baseAddress else { return a.count == b.count }
                return unsafe memcmp(first, second, a.count) == 0
            }
        }
    }

    func hash(into hasher: inout Hasher) {
        var text = text
        text.withUTF8 { bytes in unsafe hasher.combine(bytes: UnsafeRawBufferPointer(bytes)) }
    }
}

extension JSONValue {
    package var stringValue: String? {
        if case .string(let s) = self { s } else { nil }
    }

    package var boolValue: Bool? {
        if case .bool(let b) = self { b } else { nil }
    }

    /// An integer; a number without a fraction counts as one.
    package var intValue: Int? {
        switch self {
        case .integer(let i): Int(exactly: i)
        case .number(let d): Int(exactly: d)
        default: nil
        }
    }

    package var doubleValue: Double? {
        switch self {
        case .integer(let i): Double(i)
        case .number(let d): d
        default: nil
        }
    }

    package var arrayValue: [JSONValue]? {
        if case .array(let a) = self { a } else { nil }
    }

    package var objectValue: JSONObject? {
        if case .object(let o) = self { o } else { nil }
    }

    package var isNull: Bool { self == .null }

    /// Member of an object; nil for anything else.
    package subscript(key: String) -> JSONValue? { objectValue?[key] }

    /// For messages: "a string", "an array".
    package var kindName: String {
        switch self {
        case .null: "null"
        case .bool: "a boolean"
        case .integer: "an integer"
        case .number: "a number"
        case .string: "a string"
        case .array: "an array"
        case .object: "an object"
        }
    }
}

extension JSONObject: ExpressibleByDictionaryLiteral {
    package init(dictionaryLiteral pairs: (String, JSONValue)...) {
        for (key, value) in pairs { self[key] = value }
    }
}
