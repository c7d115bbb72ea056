internal import CPEFTSwift
internal import Glibc
internal import Platform

// What every function of the C interface does on its way in and out.

/// Runs `body` and turns what it throws into the header's convention.
func guarded(_ error: UnsafeMutablePointer<peft_error>?, _ body: () throws(PEFTError) -> Int32) -> Int32 {
    do throws(PEFTError) {
        let result = try body()
        unsafe report(result, 0, "", to: error)
        return result
    } catch let failure {
        unsafe report(failure.kind.rawValue, failure.detail, failure.message, to: error)
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

/// For functions that hand out a handle: it is NULL after a failure.
func guarded(
    _ result: UnsafeMutablePointer<OpaquePointer?>?, _ what: String, _ error: UnsafeMutablePointer<peft_error>?, _ body: () throws(PEFTError) -> OpaquePointer?
) -> Int32 {
    unsafe guarded(error) { () throws(PEFTError) -> Void in
        guard let result = unsafe result else { throw PEFTError(.argument, "\(what) (where the handle goes) is NULL") }
        unsafe result.pointee = nil
        unsafe result.pointee = try body()
    }
}

/// For functions that hand out text in the header's two-call form.
func guarded(
    _ buffer: UnsafeMutablePointer<CChar>?, _ capacity: Int, _ needed: UnsafeMutablePointer<Int>?, _ error: UnsafeMutablePointer<peft_error>?,
    _ body: () throws(PEFTError) -> String
) -> Int32 {
    unsafe guarded(error) { () throws(PEFTError) -> Void in
        unsafe needed?.pointee = 0
        let size = unsafe copy(try body(), into: buffer, capacity: capacity, cutting: false)
        unsafe needed?.pointee = size
    }
}

/// For functions that hand out ids in the header's two-call form.
func guarded(
    _ ids: UnsafeMutablePointer<Int32>?, _ capacity: Int, _ needed: UnsafeMutablePointer<Int>?, _ error: UnsafeMutablePointer<peft_error>?,
    _ body: () throws(PEFTError) -> [Int32]
) -> Int32 {
    unsafe guarded(error) { () throws(PEFTError) -> Void in
        unsafe needed?.pointee = 0
        let result = try body()
        unsafe needed?.pointee = result.count
        guard let ids = unsafe ids, capacity < 0 || result.count <= capacity else { return }
        for (index, id) in result.enumerated() { unsafe ids[index] = id }
    }
}

/// Fills the host's record, as far as the header it was compiled with has it.
private func report(_ code: Int32, _ detail: Int64, _ message: String, to error: UnsafeMutablePointer<peft_error>?) {
    guard let error = unsafe error, let start = MemoryLayout<peft_error>.offset(of: \.message) else { return }
    let room = min(Int(unsafe error.pointee.struct_size), MemoryLayout<peft_error>.size) - start
    guard room > 0 else { return }
    unsafe error.pointee.code = code
    unsafe error.pointee.detail = detail
    _ = unsafe copy(message, into: (UnsafeMutableRawPointer(error) + start).assumingMemoryBound(to: CChar.self), capacity: room, cutting: true)
}

/// Fills an out-struct of the host as far as the header it was compiled with has it; `struct_size` stays the host's.
func give<T>(_ value: T, to place: UnsafeMutablePointer<T>?, _ name: String) throws(PEFTError) {
    guard let place = unsafe place else { throw PEFTError(.argument, "the \(name) to be filled is NULL") }
    let size = unsafe try structSize(UnsafeRawPointer(place), name)
    unsafe withUnsafeBytes(of: value) { bytes in
        let part = unsafe UnsafeRawBufferPointer(rebasing: bytes[MemoryLayout<UInt32>.size..<min(size, bytes.count)])
        unsafe (UnsafeMutableRawPointer(place) + MemoryLayout<UInt32>.size).copyMemory(from: part.baseAddress ?? UnsafeRawPointer(place), byteCount: part.count)
    }
}

/// Copies as much of a host's option struct as both sides know; what the host's older header lacks stays zero (default).
func copyOptions<T>(_ given: UnsafePointer<T>, into options: inout T, _ name: String) throws(PEFTError) {
    let size = unsafe try structSize(UnsafeRawPointer(given), name)
    unsafe withUnsafeMutableBytes(of: &options) { unsafe $0.copyMemory(from: UnsafeRawBufferPointer(start: given, count: min(size, $0.count))) }
}

/// The leading struct_size.
private func structSize(_ place: UnsafeRawPointer, _ name: String) throws(PEFTError) -> Int {
    let size = Int(unsafe place.load(as: UInt32.self))
    guard size >= 8, size <= 4096 else {
        throw PEFTError(.argument, "\(name).struct_size is \(size); set it with the _INIT macro or the _init function")
    }
    return size
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

/// Ids given as pointer and count.
func tokenIDs(_ pointer: UnsafePointer<Int32>?, _ count: Int) throws(PEFTError) -> [Int32] {
    guard count >= 0, count <= 1 << 31 else { throw PEFTError(.argument, "\(UInt(bitPattern: count)) ids; at most \(1 << 31) are accepted") }
    guard count > 0 else { return [] }
    guard let pointer = unsafe pointer else { throw PEFTError(.argument, "ids is NULL, count is \(count)") }
    return unsafe Array(UnsafeBufferPointer(start: pointer, count: count))
}

/// A JSON argument that must be there.
func json(_ pointer: UnsafePointer<CChar>?, _ what: String) throws(PEFTError) -> JSONValue {
    let text = unsafe try text(pointer, what)
    do throws(PEFTError) { return try JSONValue(parsing: text) } catch { throw error.asArgument(what) }
}

/// A JSON object argument; NULL is {}.
/// - Parameter keys: the known ones; nil: any.
func options(_ pointer: UnsafePointer<CChar>?, _ what: String, allowing keys: Set<String>?) throws(PEFTError) -> JSONObject {
    guard unsafe pointer != nil else { return JSONObject() }
    let json = unsafe try json(pointer, what)
    guard let object = json.objectValue else { throw PEFTError(.argument, "\(what) is \(json.kindName), not a JSON object") }
    if let keys { try object.check(Array(keys), what) }
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

/// Names with weights; `weights` NULL: all 1.
func weighted(
    _ pointer: UnsafePointer<UnsafePointer<CChar>?>?, _ weights: UnsafePointer<Float>?, _ count: Int64
) throws(PEFTError) -> [(name: String, weight: Float)] {
    let names = unsafe try names(pointer, count, "names")
    let list = names.enumerated().map { index, name in (name: name, weight: unsafe weights.map { unsafe $0[index] } ?? 1) }
    if let wrong = list.first(where: { !$0.weight.isFinite }) { throw PEFTError(.argument, "the weight of \"\(wrong.name)\" is \(wrong.weight)") }
    return list
}

extension PEFTError {
    /// A text that the host passed and that does not parse is an argument error.
    func asArgument(_ what: String) -> PEFTError {
        PEFTError(kind == .format ? .argument : kind, "\(what): \(message)", detail: detail)
    }
}
