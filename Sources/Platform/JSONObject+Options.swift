/// Typed reading of option sets: nil when the key is absent or null, an error that names key, value and type when it is
/// something else.
extension JSONObject {
    package func integer(_ key: String) throws(PEFTError) -> Int? {
        guard let value = self[key], !value.isNull else { return nil }
        guard let result = value.intValue else { throw wrong(key, value, "an integer") }
        return result
    }

    package func double(_ key: String) throws(PEFTError) -> Double? {
        guard let value = self[key], !value.isNull else { return nil }
        guard let result = value.doubleValue else { throw wrong(key, value, "a number") }
        return result
    }

    package func float(_ key: String) throws(PEFTError) -> Float? {
        try double(key).map { Float($0) }
    }

    package func boolean(_ key: String) throws(PEFTError) -> Bool? {
        guard let value = self[key], !value.isNull else { return nil }
        guard let result = value.boolValue else { throw wrong(key, value, "true or false") }
        return result
    }

    package func text(_ key: String) throws(PEFTError) -> String? {
        guard let value = self[key], !value.isNull else { return nil }
        guard let result = value.stringValue else { throw wrong(key, value, "a string") }
        return result
    }

    /// A list of strings; a single string counts as a list of one.
    package func strings(_ key: String) throws(PEFTError) -> [String]? {
        guard let value = self[key], !value.isNull else { return nil }
        if let single = value.stringValue { return [single] }
        guard let list = value.arrayValue else { throw wrong(key, value, "a list of strings") }
        var result: [String] = []
        for element in list {
            guard let text = element.stringValue else { throw wrong(key, value, "a list of strings") }
            result.append(text)
        }
        return result
    }

    package func list(_ key: String) throws(PEFTError) -> [JSONValue]? {
        guard let value = self[key], !value.isNull else { return nil }
        guard let result = value.arrayValue else { throw wrong(key, value, "a list") }
        return result
    }

    /// - Throws: `.argument` for a key that is not among those known.
    package func check(_ known: [String], _ what: String) throws(PEFTError) {
        for key in keys where !known.contains(key) {
            throw PEFTError(.argument, "\(what): unknown key \"\(key)\"; known are \(known.sorted().joined(separator: ", "))")
        }
    }

    package func object(_ key: String) throws(PEFTError) -> JSONObject? {
        guard let value = self[key], !value.isNull else { return nil }
        guard let result = value.objectValue else { throw wrong(key, value, "an object") }
        return result
    }

    private func wrong(_ key: String, _ value: JSONValue, _ right: String) -> PEFTError {
        PEFTError(.argument, "\"\(key)\" is \(value.text()), which is \(value.kindName); \(right) is expected")
    }
}
