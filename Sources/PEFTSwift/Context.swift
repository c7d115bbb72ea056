public import CPEFTSwift
internal import Kernels
internal import Platform
internal import Tensors

/// Behind a `peft_context`.
final class ContextObject: Sendable {
    let engine: Engine
    init(_ engine: Engine) { self.engine = engine }
}

/// The host's function pointers with its pointer, callable from any thread.
@safe private struct HostHooks: @unchecked Sendable {
    // Sendable: the header makes the host promise that these may be called from any thread.
    let options: peft_context_options

    var log: (@Sendable (Engine.LogLevel, String) -> Void)? {
        guard let function = unsafe options.log else { return nil }
        return { level, message in unsafe message.withCString { unsafe function(options.user_data, level.rawValue, $0) } }
    }

    var allocator: HostAllocator? {
        guard let allocate = unsafe options.allocate, let deallocate = unsafe options.deallocate else { return nil }
        return unsafe HostAllocator(
            allocate: { size, alignment in unsafe allocate(options.user_data, size, alignment) },
            free: { pointer, size in unsafe deallocate(options.user_data, pointer, size) })
    }

    var parallelFor: ThreadPool.HostParallelFor? {
        guard let function = unsafe options.parallel_for else { return nil }
        return { count, body in
            withoutActuallyEscaping(body) { body in
                let box = Box(body)
                unsafe function(
                    options.user_data, Int32(clamping: count),
                    { data, index in
                        guard let data = unsafe data else { return }
                        unsafe Unmanaged<Box>.fromOpaque(data).takeUnretainedValue().body(Int(index))
                    }, Unmanaged.passUnretained(box).toOpaque())
                box.body = { _ in }
            }
        }
    }

    private final class Box {
        var body: (Int) -> Void
        init(_ body: @escaping (Int) -> Void) { self.body = body }
    }
}

@_cdecl("peft_context_options_init") @implementation
public func peft_context_options_init(_ options: UnsafeMutablePointer<peft_context_options>?) {
    guard let options = unsafe options else { return }
    unsafe options.pointee = peft_context_options()
    unsafe options.pointee.struct_size = UInt32(MemoryLayout<peft_context_options>.size)
}

@_cdecl("peft_context_create") @implementation
public func peft_context_create(
    _ context: UnsafeMutablePointer<OpaquePointer?>?, _ options: UnsafePointer<peft_context_options>?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(error) { () throws(PEFTError) -> Void in
        let result = unsafe try out(context, "context")
        var given = unsafe peft_context_options()
        if let options = unsafe options { unsafe try copyOptions(options, into: &given, "peft_context_options") }
        guard unsafe given.threads >= 0, unsafe given.threads <= 256 else {
            throw PEFTError(.argument, "threads is \(unsafe given.threads); 0 (automatic) to 256 are accepted")
        }
        guard unsafe given.level >= PEFT_LEVEL_AUTO, unsafe given.level <= PEFT_LEVEL_AVX512_BF16 else {
            throw PEFTError(.argument, "level is \(unsafe given.level); PEFT_LEVEL_AUTO (0) to PEFT_LEVEL_AVX512_BF16 (4) are accepted")
        }
        guard unsafe (given.allocate == nil) == (given.deallocate == nil) else {
            throw PEFTError(.argument, "allocate and deallocate go together: give both or neither")
        }
        let hooks = unsafe HostHooks(options: given)
        let budget = unsafe given.memory_budget
        let engine = Engine(
            // Unasked, a guest does not take a whole server.
            threads: unsafe given.threads == 0 ? min(Int(pk_usable_processors()), 16) : Int(given.threads),
            level: unsafe given.level == PEFT_LEVEL_AUTO ? .max : given.level - 1,
            budget: MemoryBudget(limit: budget == 0 ? .max : Int(clamping: budget), host: hooks.allocator),
            parallelFor: hooks.parallelFor, log: hooks.log)
        unsafe result.pointee = try handles.add(ContextObject(engine), .context)
    }
}

@_cdecl("peft_context_free") @implementation
public func peft_context_free(_ context: OpaquePointer?) { unsafe handles.remove(context, .context) }

@_cdecl("peft_context_memory") @implementation
public func peft_context_memory(
    _ buffer: UnsafeMutablePointer<CChar>?, _ capacity: Int, _ needed: UnsafeMutablePointer<Int>?, _ context: OpaquePointer?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(error) { () throws(PEFTError) -> Void in
        let engine = unsafe try handles.context(context).engine
        unsafe give(memoryReport(engine.budget).text(), buffer, capacity, needed)
    }
}

@_cdecl("peft_context_trim") @implementation
public func peft_context_trim(_ context: OpaquePointer?, _ error: UnsafeMutablePointer<peft_error>?) -> Int32 {
    unsafe guarded(error) { () throws(PEFTError) -> Void in
        let budget = unsafe try handles.context(context).engine.budget
        budget.trim()
        budget.resetPeak()
    }
}

extension HandleTable {
    func context(_ handle: OpaquePointer?) throws(PEFTError) -> ContextObject {
        unsafe try find(handle, .context, as: ContextObject.self)
    }
}

/// Copies as much of a host's option struct as both sides know; what the host's older header lacks stays zero (default).
func copyOptions<T>(_ given: UnsafePointer<T>, into options: inout T, _ name: String) throws(PEFTError) {
    let size = Int(unsafe UnsafeRawPointer(given).load(as: UInt32.self))
    guard size >= 4, size <= 4096 else {
        throw PEFTError(.argument, "\(name).struct_size is \(size); set it with the _INIT macro or the _init function")
    }
    unsafe withUnsafeMutableBytes(of: &options) { unsafe $0.copyMemory(from: UnsafeRawBufferPointer(start: given, count: min(size, $0.count))) }
}

private func memoryReport(_ budget: MemoryBudget) -> JSONValue {
    let statistics = budget.statistics
    var categories = JSONObject()
    for category in MemoryCategory.allCases {
        categories[category.name] = .object([
            "live": .integer(Int64(statistics.byCategory[category.rawValue])), "peak": .integer(Int64(statistics.peakByCategory[category.rawValue])),
        ])
    }
    return .object([
        "limit": budget.limit == .max ? .null : .integer(Int64(budget.limit)), "live": .integer(Int64(statistics.live)),
        "kept": .integer(Int64(statistics.kept)), "peak": .integer(Int64(statistics.peak)), "categories": .object(categories),
    ])
}
