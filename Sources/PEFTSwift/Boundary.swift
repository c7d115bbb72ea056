internal import CPEFTSwift
internal import Glibc
internal import Platform

// What every function of the C interface does on its way in and out.

/// Runs `body` and turns what it throws into the header's convention.
func guarded(_ error: UnsafeMutablePointer<peft_error>?, _ body: () throws(PEFTError) -> Int32) -> Int32 {
    do throws(PEFTError) {
        return try body()
    } catch let failure {
        unsafe report(failure, to: error)
        return failure.kind.rawValue
    }
}

/// As above for bodies that end in PEFT_OK.
func guarded(_ error: UnsafeMutablePointer<peft_error>?, _ body: () throws(PEFTError) -> Void) -> Int32 {
    unsafe guarded(error) { () throws(PEFTError) -> Int32 in
        try body()
        return PEFT_OK
    }
}

private func report(_ failure: PEFTError, to error: UnsafeMutablePointer<peft_error>?) {
    guard let error = unsafe error, unsafe Int(error.pointee.struct_size) >= MemoryLayout<peft_error>.size else { return }
    unsafe error.pointee.code = failure.kind.rawValue
    unsafe error.pointee.detail = failure.detail
    unsafe withUnsafeMutableBytes(of: &error.pointee.message) { room in
        _ = unsafe copy(failure.message, into: room.baseAddress?.assumingMemoryBound(to: CChar.self), capacity: room.count, cutting: true)
    }
}

/// Writes text and a NUL. When it does not fit: nothing, or (`cutting`) as many whole characters as do.
private func copy(_ text: String, into buffer: UnsafeMutablePointer<CChar>?, capacity: Int, cutting: Bool) -> Int {
    var text = text
    return text.withUTF8 { utf8 in
        guard let buffer = unsafe buffer, capacity > 0, cutting || utf8.count < capacity else { return utf8.count }
        var size = min(utf8.count, capacity - 1)
        // Step back from the middle of a character.
        while size > 0, size < utf8.count, unsafe utf8[size] & 0xc0 == 0x80 { size -= 1 }
        if let source = utf8.baseAddress { unsafe memcpy(buffer, source, size) }
        unsafe buffer[size] = 0
        return utf8.count
    }
}

/// The header's two-call form for text.
func give(_ text: String, _ buffer: UnsafeMutablePointer<CChar>?, _ capacity: Int, _ needed: UnsafeMutablePointer<Int>?) {
    let size = unsafe copy(text, into: buffer, capacity: capacity, cutting: false)
    unsafe needed?.pointee = size
}

/// The header's two-call form for ids.
func give(_ ids: [Int32], _ buffer: UnsafeMutablePointer<Int32>?, _ capacity: Int, _ needed: UnsafeMutablePointer<Int>?) {
    unsafe needed?.pointee = ids.count
    guard let buffer = unsafe buffer, ids.count <= capacity else { return }
    for (index, id) in ids.enumerated() { unsafe buffer[index] = id }
}

/// A NUL-terminated argument that must be there.
func text(_ pointer: UnsafePointer<CChar>?, _ what: String) throws(PEFTError) -> String {
    guard let pointer = unsafe pointer else { throw PEFTError(.argument, "\(what) is NULL") }
    guard let text = unsafe String(validatingCString: pointer) else { throw PEFTError(.argument, "\(what) is not UTF-8") }
    return text
}

/// Bytes given as pointer and size, size SIZE_MAX meaning "up to the NUL".
func bytes(_ pointer: UnsafePointer<CChar>?, _ size: Int, _ what: String) throws(PEFTError) -> [UInt8] {
    guard let pointer = unsafe pointer else {
        guard size == 0 else { throw PEFTError(.argument, "\(what) is NULL") }
        return []
    }
    // SIZE_MAX arrives as −1.
    let count = size == -1 ? unsafe strlen(pointer) : size
    guard count >= 0 else { throw PEFTError(.argument, "\(what): size \(UInt(bitPattern: size)) is larger than memory") }
    return unsafe Array(UnsafeRawBufferPointer(start: pointer, count: count))
}

/// A JSON object argument; NULL is {}.
func options(_ pointer: UnsafePointer<CChar>?, _ what: String, allowing keys: Set<String>) throws(PEFTError) -> JSONObject {
    guard unsafe pointer != nil else { return JSONObject() }
    let json: JSONValue
    do throws(PEFTError) { json = try JSONValue(parsing: unsafe text(pointer, what)) } catch { throw error.asArgument(what) }
    guard let object = json.objectValue else { throw PEFTError(.argument, "\(what) is \(json.kindName), not a JSON object") }
    for key in object.keys where !keys.contains(key) {
        throw PEFTError(.argument, "\(what): unknown key \"\(key)\"; known are \(keys.sorted().joined(separator: ", "))")
    }
    return object
}

/// An array of names; count 0 is an empty list.
func names(_ pointer: UnsafePointer<UnsafePointer<CChar>?>?, _ count: Int64, _ what: String) throws(PEFTError) -> [String] {
    guard count > 0 else {
        guard count == 0 else { throw PEFTError(.argument, "\(what): count is \(count)") }
        return []
    }
    guard let pointer = unsafe pointer else { throw PEFTError(.argument, "\(what) is NULL") }
    guard count <= 4096 else { throw PEFTError(.argument, "\(what): \(count) names, at most 4096 are accepted") }
    var names: [String] = []
    for index in 0..<Int(count) { unsafe names.append(try text(unsafe pointer[index], "\(what)[\(index)]")) }
    return names
}

/// An out-parameter that must be there; it is set to NULL first, so that it is NULL after a failure.
func out(_ pointer: UnsafeMutablePointer<OpaquePointer?>?, _ what: String) throws(PEFTError) -> UnsafeMutablePointer<OpaquePointer?> {
    guard let pointer = unsafe pointer else { throw PEFTError(.argument, "\(what) (where the handle goes) is NULL") }
    unsafe pointer.pointee = nil
    return unsafe pointer
}

extension PEFTError {
    /// A text that the host passed and that does not parse is an argument error.
    func asArgument(_ what: String) -> PEFTError {
        PEFTError(kind == .format ? .argument : kind, "\(what): \(message)", detail: detail)
    }
}
