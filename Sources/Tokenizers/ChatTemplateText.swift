// Python's text functions, on code points: Swift's own work on grapheme clusters, in which "\r\n" is one character.

extension String {
    /// Byte offset of the first `part` at or after `start`.
    func firstPlace(of part: String, from start: Int = 0) -> Int? {
        let (bytes, needle) = (Array(utf8), Array(part.utf8))
        return bytes.firstPlace(of: needle, from: start)
    }

    /// `str.replace`
    func replacing(_ old: String, with new: String, atMost limit: Int) -> String {
        let (bytes, needle) = (Array(utf8), Array(old.utf8))
        var out: [UInt8] = []
        var (done, count) = (0, 0)
        if needle.isEmpty {
            for scalar in unicodeScalars {
                if count < limit { out += new.utf8; count += 1 }
                out += String(scalar).utf8
            }
            if count < limit { out += new.utf8 }
            return String(decoding: out, as: UTF8.self)
        }
        while count < limit, let place = bytes.firstPlace(of: needle, from: done) {
            out += bytes[done..<place]
            out += new.utf8
            done = place + needle.count
            count += 1
        }
        return String(decoding: out + bytes[done...], as: UTF8.self)
    }

    /// `str.split`: at `separator`, or at runs of white space.
    func parts(separatedBy separator: String?, atMost limit: Int) -> [String] {
        guard let separator else { return words(atMost: limit) }
        let (bytes, needle) = (Array(utf8), Array(separator.utf8))
        var parts: [String] = []
        var done = 0
        while parts.count < limit, let place = bytes.firstPlace(of: needle, from: done) {
            parts.append(String(decoding: bytes[done..<place], as: UTF8.self))
            done = place + needle.count
        }
        return parts + [String(decoding: bytes[done...], as: UTF8.self)]
    }

    private func words(atMost limit: Int) -> [String] {
        var parts: [String] = []
        var rest = unicodeScalars[...]
        while true {
            rest = rest.drop { $0.isPythonSpace }
            if rest.isEmpty { return parts }
            if parts.count == limit { return parts + [String(rest).stripped(left: false)] }
            let word = rest.prefix { !$0.isPythonSpace }
            parts.append(String(word))
            rest = rest[word.endIndex...]
        }
    }

    /// `str.strip`, `lstrip`, `rstrip`: of white space or of the characters of `set`.
    func stripped(of set: String? = nil, left: Bool = true, right: Bool = true) -> String {
        let unwanted = set.map { Array($0.unicodeScalars) }
        func goes(_ scalar: Unicode.Scalar) -> Bool { unwanted?.contains(scalar) ?? scalar.isPythonSpace }
        var rest = unicodeScalars[...]
        if left { rest = rest.drop(while: goes) }
        if right { while let last = rest.last, goes(last) { rest.removeLast() } }
        return String(rest)
    }

    /// `str.title`
    var titled: String {
        var out = ""
        var isInWord = false
        for scalar in unicodeScalars {
            out += isInWord ? scalar.properties.lowercaseMapping : scalar.properties.titlecaseMapping
            isInWord = scalar.properties.isCased
        }
        return out
    }

    /// `str.capitalize`
    var capitalized: String {
        guard let first = unicodeScalars.first else { return "" }
        return first.properties.titlecaseMapping + String(unicodeScalars.dropFirst()).lowercased()
    }
}

extension [UInt8] {
    func firstPlace(of needle: [UInt8], from start: Int) -> Int? {
        guard let first = needle.first else { return start <= count ? start : nil }
        var place = start
        while place + needle.count <= count {
            if self[place] == first, self[place..<place + needle.count].elementsEqual(needle) { return place }
            place += 1
        }
        return nil
    }
}

extension Unicode.Scalar {
    /// `str.isspace`: white space and the four information separators.
    var isPythonSpace: Bool { properties.isWhitespace || (0x1C...0x1F).contains(value) }
}
