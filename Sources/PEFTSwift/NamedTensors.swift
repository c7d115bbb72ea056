public import CPEFTSwift
internal import Checkpoints
internal import Glibc
internal import Platform
internal import Synchronization
internal import Tensors

/// Behind a `peft_tensors`: named arrays in order.
final class TensorsObject: Sendable {
    private struct Entry {
        let name: CName
        let tensor: Tensor
    }

    private struct State {
        var entries: [Entry] = []
        var index: [String: Int] = [:]
    }

    let engine: Engine
    private let state = Mutex(State())

    init(_ engine: Engine, _ tensors: [(name: String, tensor: Tensor)] = []) {
        self.engine = engine
        for (name, tensor) in tensors { set(name, tensor) }
    }

    func set(_ name: String, _ tensor: Tensor) {
        state.withLock { state in
            if let place = state.index[name] {
                state.entries[place] = Entry(name: state.entries[place].name, tensor: tensor)
            } else {
                state.index[name] = state.entries.count
                state.entries.append(Entry(name: CName(name), tensor: tensor))
            }
        }
    }

    subscript(name: String) -> Tensor? {
        state.withLock { state in state.index[name].map { state.entries[$0].tensor } }
    }

    var count: Int { state.withLock { $0.entries.count } }

    var all: [(name: String, tensor: Tensor)] {
        state.withLock { $0.entries.map { (name: $0.name.text, tensor: $0.tensor) } }
    }

    /// Stays valid as long as the name is in the collection.
    func cName(at index: Int) -> UnsafePointer<CChar>? {
        unsafe state.withLock { state in
            guard index >= 0, index < state.entries.count else { return nil }
            return unsafe UnsafePointer(state.entries[index].name.pointer)
        }
    }
}

/// A name with a C spelling of its own, at a fixed address.
@safe private final class CName: @unchecked Sendable {
    // Sendable: written once, in init.
    let text: String
    let pointer: UnsafeMutablePointer<CChar>?

    init(_ text: String) {
        self.text = text
        unsafe pointer = unsafe strdup(text)
    }

    deinit { unsafe free(pointer) }
}

extension HandleTable {
    func tensors(_ handle: OpaquePointer?) throws(PEFTError) -> TensorsObject {
        unsafe try find(handle, .tensors, as: TensorsObject.self)
    }
}

extension HandleTable {
    /// A collection for the host.
    func add(_ tensors: [(name: String, tensor: Tensor)], _ engine: Engine) throws(PEFTError) -> OpaquePointer? {
        unsafe try add(TensorsObject(engine, tensors), .tensors)
    }
}

@_cdecl("peft_tensors_create") @implementation
public func peft_tensors_create(_ tensors: UnsafeMutablePointer<OpaquePointer?>?, _ context: OpaquePointer?, _ error: UnsafeMutablePointer<peft_error>?) -> Int32 {
    unsafe guarded(tensors, "tensors", error) { () throws(PEFTError) -> OpaquePointer? in
        unsafe try handles.add([], handles.context(context).engine)
    }
}

@_cdecl("peft_tensors_free") @implementation
public func peft_tensors_free(_ tensors: OpaquePointer?) { unsafe handles.remove(tensors, .tensors) }

@_cdecl("peft_tensors_set") @implementation
public func peft_tensors_set(
    _ tensors: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ type: Int32, _ rank: Int32, _ shape: UnsafePointer<Int64>?, _ data: UnsafeRawPointer?,
    _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(error) { () throws(PEFTError) -> Void in
        let (object, name, dtype, sizes) = unsafe try described(tensors, name, type, rank, shape)
        let tensor: Tensor
        do throws(PEFTError) { tensor = try Tensor(object.engine, sizes, dtype, .scratch) } catch { throw error.asArgument(name) }
        if tensor.byteCount > 0 {
            guard let data = unsafe data else { throw PEFTError(.argument, "\(name): data is NULL for \(tensor.byteCount) bytes") }
            unsafe tensor.pointer.copyMemory(from: data, byteCount: tensor.byteCount)
        }
        object.set(name, tensor)
    }
}

@_cdecl("peft_tensors_borrow") @implementation
public func peft_tensors_borrow(
    _ tensors: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ type: Int32, _ rank: Int32, _ shape: UnsafePointer<Int64>?, _ data: UnsafeRawPointer?,
    _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(error) { () throws(PEFTError) -> Void in
        let (object, name, dtype, sizes) = unsafe try described(tensors, name, type, rank, shape)
        do throws(PEFTError) {
            let size = try dtype.byteCount(shape: sizes)
            guard let data = unsafe data else { throw PEFTError(.argument, "data is NULL for \(size) bytes") }
            // Kernels read whole values.
            guard UInt(bitPattern: data) % 4 == 0 else { throw PEFTError(.argument, "data must be aligned to 4 bytes") }
            let storage = unsafe Storage(borrowing: UnsafeRawBufferPointer(start: data, count: size), keepingAlive: nil)
            object.set(name, try Tensor(storage, dtype: dtype, shape: sizes))
        } catch { throw error.asArgument(name) }
    }
}

/// What an array of a host is, checked.
private func described(
    _ tensors: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ type: Int32, _ rank: Int32, _ shape: UnsafePointer<Int64>?
) throws(PEFTError) -> (object: TensorsObject, name: String, dtype: DType, sizes: [Int]) {
    let object = unsafe try handles.tensors(tensors)
    let name = unsafe try text(name, "name")
    guard let dtype = DType(rawValue: type), !dtype.isWholeRow else { throw PEFTError(.argument, "\(name): \(type) is not an array type (PEFT_F32 …)") }
    guard rank >= 0, rank <= PEFT_MAX_RANK else { throw PEFTError(.argument, "\(name): rank is \(rank), 0 to \(PEFT_MAX_RANK) are accepted") }
    var sizes: [Int] = []
    for axis in 0..<Int(rank) {
        guard let shape = unsafe shape else { throw PEFTError(.argument, "\(name): shape is NULL, rank is \(rank)") }
        guard let size = Int(exactly: unsafe shape[axis]), size >= 0 else { throw PEFTError(.argument, "\(name): size \(unsafe shape[axis]) of axis \(axis)") }
        sizes.append(size)
    }
    return (object, name, dtype, sizes)
}

@_cdecl("peft_tensors_count") @implementation
public func peft_tensors_count(_ tensors: OpaquePointer?) -> Int64 {
    do throws(PEFTError) { return Int64(unsafe try handles.tensors(tensors).count) } catch { return 0 }
}

@_cdecl("peft_tensors_name") @implementation
public func peft_tensors_name(_ tensors: OpaquePointer?, _ index: Int64) -> UnsafePointer<CChar>? {
    do throws(PEFTError) { return unsafe try handles.tensors(tensors).cName(at: Int(clamping: index)) } catch { return nil }
}

@_cdecl("peft_tensors_get") @implementation
public func peft_tensors_get(
    _ array: UnsafeMutablePointer<peft_array>?, _ tensors: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(error) { () throws(PEFTError) -> Void in
        // Whatever happens below, an old answer does not stay.
        unsafe try give(peft_array(), to: array, "peft_array")
        let object = unsafe try handles.tensors(tensors)
        let name = unsafe try text(name, "name")
        guard let tensor = object[name] else {
            throw PEFTError(.notFound, "no array \"\(name)\"; there are \(nearby(name, object.all.map(\.name)))")
        }
        unsafe try give(try peft_array(tensor), to: array, "peft_array")
    }
}

@_cdecl("peft_tensors_load") @implementation
public func peft_tensors_load(
    _ tensors: UnsafeMutablePointer<OpaquePointer?>?, _ context: OpaquePointer?, _ path: UnsafePointer<CChar>?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(tensors, "tensors", error) { () throws(PEFTError) -> OpaquePointer? in
        let engine = unsafe try handles.context(context).engine
        let source = try Safetensors.open(path: unsafe text(path, "path"), budget: engine.budget)
        return unsafe try handles.add(source.all.map { ($0.name, $0.tensor) }, engine)
    }
}

@_cdecl("peft_tensors_save") @implementation
public func peft_tensors_save(_ tensors: OpaquePointer?, _ path: UnsafePointer<CChar>?, _ error: UnsafeMutablePointer<peft_error>?) -> Int32 {
    unsafe guarded(error) { () throws(PEFTError) -> Void in
        let all = unsafe try handles.tensors(tensors).all
        try Safetensors.write(all.map { NamedTensor($0.name, $0.tensor) }, to: unsafe text(path, "path"))
    }
}

extension peft_array {
    /// A view of a tensor's memory.
    init(_ tensor: Tensor) throws(PEFTError) {
        guard tensor.shape.count <= Int(PEFT_MAX_RANK) else { throw PEFTError(.unsupported, "an array of rank \(tensor.shape.count)") }
        unsafe self.init()
        unsafe type = tensor.dtype.rawValue
        unsafe rank = Int32(tensor.shape.count)
        unsafe withUnsafeMutableBytes(of: &shape) { room in
            let shape = unsafe room.assumingMemoryBound(to: Int64.self)
            for (axis, size) in tensor.shape.enumerated() { unsafe shape[axis] = Int64(size) }
        }
        unsafe data = UnsafeRawPointer(tensor.pointer)
        unsafe size = tensor.byteCount
    }
}

/// For messages: a few of the names there are, most alike first.
func nearby(_ name: String, _ all: [String]) -> String {
    guard !all.isEmpty else { return "none" }
    let shared = { (other: String) in zip(other.utf8.reversed(), name.utf8.reversed()).prefix { $0 == $1 }.count }
    let shown = all.sorted { shared($0) > shared($1) }.prefix(5).joined(separator: ", ")
    return all.count > 5 ? "\(all.count), such as \(shown)" : shown
}
