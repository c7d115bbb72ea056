extension JSONValue {
    /// JSON text as Python's `json.dumps(value, indent=indent, sort_keys=sortKeys, ensure_ascii=False)` writes it;
    /// `indent` nil gives one line with ", " and ": " between the parts.
    package func text(indent: Int? = nil, sortKeys: Bool = false) -> String {
        var out = ""
        write(to: &out, indent: indent, sortKeys: sortKeys, level: 0)
        return out
    }

    private func write(to out: inout String, indent: Int?, sortKeys: Bool, level: Int) {
        switch self {
        case .null: out += "null"
        case .bool(let b): out += b ? "true" : "false"
        case .integer(let i): out += String(i)
        case .number(let d): out += d.isFinite ? d.description : (d.isNaN ? "NaN" : (d < 0 ? "-Infinity" : "Infinity"))
        case .string(let s): JSONValue.quote(s, to: &out)
        case .array(let elements):
            JSONValue.list(elements, "[", "]", to: &out, indent: indent, level: level) { element, out in
                element.write(to: &out, indent: indent, sortKeys: sortKeys, level: level + 1)
            }
        case .object(let object):
            let keys = sortKeys ? object.keys.sorted { $0.unicodeScalars.lexicographicallyPrecedes($1.unicodeScalars) } : object.keys
            JSONValue.list(keys, "{", "}", to: &out, indent: indent, level: level) { key, out in
                JSONValue.quote(key, to: &out)
                out += ": "
                (object[key] ?? .null).write(to: &out, indent: indent, sortKeys: sortKeys, level: level + 1)
            }
        }
    }

    private static func list<T>(_ items: [T], _ open: String, _ close: String, to out: inout String, indent: Int?, level: Int, _ body: (T, inout String) -> Void) {
        out += open
        for (index, item) in items.enumerated() {
            if index > 0 { out += indent == nil ? ", " : "," }
            if let indent { out += "\n" + String(repeating: " ", count: indent * (level + 1)) }
            body(item, &out)
        }
        if let indent, !items.isEmpty { out += "\n" + String(repeating: " ", count: indent * level) }
        out += close
    }

    private static func quote(_ text: String, to out: inout String) {
        out += "\""
        for scalar in text.unicodeScalars {
            switch scalar {
            case "\"": out += "\\\""
            case "\\": out += "\\\\"
            case "\n": out += "\\n"
            case "\r": out += "\\r"
            case "\t": out += "\\t"
            case "\u{8}": out += "\\b"
            case "\u{c}": out += "\\f"
            case _ where scalar.value < 0x20:
                let hex = String(scalar.value, radix: 16)
                out += "\\u" + String(repeating: "0", count: 4 - hex.count) + hex
            default: out.unicodeScalars.append(scalar)
            }
        }
        out += "\""
    }
}
