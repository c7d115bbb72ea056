public import CPEFTSwift
internal import Kernels
internal import Platform
internal import Tensors

/// Behind a `peft_context`.
final class ContextObject: Sendable {
    let engine: Engine
    init(_ engine: Engine) { self.engine = engine }
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
    unsafe guarded(context, "context", error) { () throws(PEFTError) -> OpaquePointer? in
        var given = unsafe peft_context_options()
        if let options = unsafe options { unsafe try copyOptions(options, into: &given, "peft_context_options") }
        guard unsafe given.threads >= 0, unsafe given.threads <= 256 else {
            throw PEFTError(.argument, "threads is \(unsafe given.threads); 0 (automatic) to 256 are accepted")
        }
        guard unsafe given.level >= PEFT_LEVEL_AUTO, unsafe given.level <= PEFT_LEVEL_AMX else {
            throw PEFTError(.argument, "level is \(unsafe given.level); PEFT_LEVEL_AUTO (0) to PEFT_LEVEL_AMX (5) are accepted")
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
        return unsafe try handles.add(ContextObject(engine), .context)
    }
}

@_cdecl("peft_context_free") @implementation
public func peft_context_free(_ context: OpaquePointer?) { unsafe handles.remove(context, .context) }

@_cdecl("peft_context_memory") @implementation
public func peft_context_memory(
    _ buffer: UnsafeMutablePointer<CChar>?, _ capacity: Int, _ needed: UnsafeMutablePointer<Int>?, _ context: OpaquePointer?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(buffer, capacity, needed, error) { () throws(PEFTError) -> String in
        memoryReport(unsafe try handles.context(context).engine.budget).text()
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
