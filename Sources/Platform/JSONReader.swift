internal import CJansson
internal import Glibc

extension JSONValue {
    /// Nesting beyond this is refused: no document of this field is deeper, and recursion must not exhaust a host's stack.
    private static let maximumDepth = 128

    /// Parses UTF-8 JSON. Duplicate keys, invalid UTF-8, trailing text and numbers out of range are errors. With an integer beyond 64 bits (what
    /// tokenizers write for "no limit") all numbers are read as doubles; whole ones become integers again.
    package init(parsing bytes: UnsafeRawBufferPointer) throws(PEFTError) {
        let flags = Int(JSON_REJECT_DUPLICATES | JSON_DECODE_ANY | JSON_ALLOW_NUL)
        var failure = json_error_t()
        let text = unsafe bytes.baseAddress?.assumingMemoryBound(to: CChar.self)
        var root = unsafe text.flatMap { unsafe json_loadb($0, bytes.count, flags, &failure) }
        var reason: String { unsafe bytes.isEmpty ? "the text is empty" : withUnsafeBytes(of: &failure.text) { unsafe String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) } }
        let isTooBig = unsafe root == nil && reason.hasPrefix("too big")
        if isTooBig {
            unsafe root = text.flatMap { unsafe json_loadb($0, bytes.count, flags | Int(JSON_DECODE_INT_AS_REAL), &failure) }
        }
        guard let root = unsafe root else {
            throw PEFTError(.format, "JSON line \(failure.line) column \(failure.column): \(reason)", detail: Int64(failure.position))
        }
        defer { unsafe json_decref(root) }
        self = unsafe try JSONValue.convert(root, depth: 0, wholeAreIntegers: isTooBig)
    }

    package init(parsing text: String) throws(PEFTError) {
        var text = text
        let result: Result<JSONValue, PEFTError> = text.withUTF8 { utf8 in
            do throws(PEFTError) {
                return unsafe .success(try JSONValue(parsing: UnsafeRawBufferPointer(utf8)))
            } catch {
                return .failure(error)
            }
        }
        self = try result.get()
    }

    private static func convert(_ json: UnsafeMutablePointer<json_t>, depth: Int, wholeAreIntegers: Bool) throws(PEFTError) -> JSONValue {
        guard depth < maximumDepth else { throw PEFTError(.format, "JSON: nested deeper than \(maximumDepth)") }
        switch unsafe json.pointee.type {
        case JSON_OBJECT:
            var object = JSONObject()
            var iterator = unsafe json_object_iter(json)
            while let current = unsafe iterator {
                if let key = unsafe json_object_iter_key(current), let value = unsafe json_object_iter_value(current) {
                    object[unsafe String(cString: key)] = unsafe try convert(value, depth: depth + 1, wholeAreIntegers: wholeAreIntegers)
                }
                unsafe iterator = unsafe json_object_iter_next(json, current)
            }
            return .object(object)
        case JSON_ARRAY:
            let count = unsafe json_array_size(json)
            var array: [JSONValue] = []
            array.reserveCapacity(count)
            for index in 0..<count {
                if let element = unsafe json_array_get(json, index) { array.append(unsafe try convert(element, depth: depth + 1, wholeAreIntegers: wholeAreIntegers)) }
            }
            return .array(array)
        case JSON_STRING:
            guard let text = unsafe json_string_value(json) else { return .string("") }
            let bytes = unsafe UnsafeRawBufferPointer(start: text, count: json_string_length(json))
            return .string(unsafe String(decoding: bytes, as: UTF8.self))
        case JSON_INTEGER: return .integer(unsafe Int64(json_integer_value(json)))
        case JSON_REAL:
            let value = unsafe json_real_value(json)
            return wholeAreIntegers ? Int64(exactly: value).map(JSONValue.integer) ?? .number(value) : .number(value)
        case JSON_TRUE: return .bool(true)
        case JSON_FALSE: return .bool(false)
        default: return .null
        }
    }
}

/// jansson's header defines it inline over a macro that Swift does not import.
private func json_decref(_ json: UnsafeMutablePointer<json_t>) {
    guard unsafe json.pointee.refcount != Int.max else { return }
    unsafe json.pointee.refcount -= 1
    if unsafe json.pointee.refcount == 0 { unsafe json_delete(json) }
}
