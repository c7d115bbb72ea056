internal import Glibc
internal import Platform
internal import Synchronization

/// The kinds of handle a host can hold.
enum HandleKind: UInt64 {
    case context = 1, tensors, model, tokenizer, dataset, trainer, session
    case pass = 9

    var name: String { "peft_\(self)" }
}

/// The table of this process.
let handles = HandleTable()

/// Where handles are looked up: a handle is a slot number and a generation, never an address, so a stale or foreign
/// pointer is found out instead of followed.
///
/// The table is the one thing all contexts of a process share. It holds references only; no object in it knows of
/// another context's.
final class HandleTable: Sendable {
    private struct Slot {
        var generation: UInt64 = 1
        var kind: HandleKind?
        var object: (any AnyObject & Sendable)?
    }

    private struct State {
        var slots: [Slot] = []
        var free: [Int] = []
    }

    private let state = Mutex(State())

    // A handle's bits, below 2⁴⁷ because LuaJIT and others keep pointers in that space:
    // bit 0 is 1 (no aligned address is odd), 1…4 kind, 5…24 slot, 25…46 generation.
    private static let slotLimit = 1 << 20
    private static let generationLimit: UInt64 = 1 << 22

    /// Puts `object` in a slot of its own.
    func add(_ object: any AnyObject & Sendable, _ kind: HandleKind) throws(PEFTError) -> OpaquePointer? {
        let bits: UInt64? = state.withLock { state in
            var index = state.slots.count
            if let reused = state.free.popLast() {
                index = reused
            } else if index < HandleTable.slotLimit {
                state.slots.append(Slot())
            } else {
                return nil
            }
            state.slots[index].kind = kind
            state.slots[index].object = object
            return 1 | kind.rawValue << 1 | UInt64(index) << 5 | state.slots[index].generation << 25
        }
        guard let bits else { throw PEFTError(.memory, "more than \(HandleTable.slotLimit) handles are open") }
        return unsafe OpaquePointer(bitPattern: UInt(bits))
    }

    /// The object behind a handle, kept alive by the returned reference while a call uses it.
    func find<T>(_ handle: OpaquePointer?, _ kind: HandleKind, as type: T.Type) throws(PEFTError) -> T {
        guard !hookCalls.areOnThisThread else {
            throw PEFTError(.state, "the context's log, allocate, deallocate and parallel_for functions must not call the library")
        }
        guard let handle = unsafe handle else { throw PEFTError(.handle, "the \(kind.name) handle is NULL") }
        let bits = UInt64(UInt(bitPattern: handle))
        let object: (any AnyObject & Sendable)? = state.withLock { state in
            guard let index = HandleTable.index(of: bits, kind, in: state.slots) else { return nil }
            return state.slots[index].object
        }
        guard let object = object as? T else {
            throw PEFTError(.handle, "0x\(String(bits, radix: 16)) is not an open \(kind.name) handle (freed, of another kind, or never one)")
        }
        return object
    }

    /// Empties the slot; the object goes when the last call that uses it has returned. Invalid handles are ignored.
    func remove(_ handle: OpaquePointer?, _ kind: HandleKind) {
        guard let handle = unsafe handle, !hookCalls.areOnThisThread else { return }
        let bits = UInt64(UInt(bitPattern: handle))
        let object: (any AnyObject & Sendable)? = state.withLock { state in
            guard let index = HandleTable.index(of: bits, kind, in: state.slots) else { return nil }
            defer {
                state.slots[index].object = nil
                state.slots[index].kind = nil
                state.slots[index].generation += 1
                // A slot whose generations are used up is retired, so that no handle is ever valid twice.
                if state.slots[index].generation < HandleTable.generationLimit { state.free.append(index) }
            }
            return state.slots[index].object
        }
        _ = object  // Released here, outside the lock: its deinit may take time.
    }

    private static func index(of bits: UInt64, _ kind: HandleKind, in slots: [Slot]) -> Int? {
        guard bits & 1 == 1, bits >> 47 == 0, (bits >> 1) & 0xf == kind.rawValue else { return nil }
        let index = Int((bits >> 5) & 0xfffff)
        guard index < slots.count, slots[index].generation == bits >> 25, slots[index].kind == kind else { return nil }
        return index
    }
}

/// Who is inside an object: one call alone (non-const handles of the header), or several that only look (const handles).
/// Nobody waits: who may not enter gets an error.
final class HandleUse: Sendable {
    /// −1: one call alone; n: calls that look.
    private let users = Atomic<Int>(0)

    /// A call that needs the object to itself.
    func alone<R>(_ kind: HandleKind, _ body: () throws(PEFTError) -> R) throws(PEFTError) -> R {
        try HandleUse.alone([self], kind, body)
    }

    /// A call that needs several objects to itself.
    static func alone<R>(_ uses: [HandleUse], _ kind: HandleKind, _ body: () throws(PEFTError) -> R) throws(PEFTError) -> R {
        var entered = 0
        defer { for use in uses.prefix(entered) { use.users.store(0, ordering: .releasing) } }
        for use in uses {
            guard use.users.compareExchange(expected: 0, desired: -1, ordering: .acquiring).exchanged else { throw HandleUse.inUse(kind) }
            entered += 1
        }
        return try body()
    }

    /// A call that changes nothing.
    func looking<R>(_ kind: HandleKind, _ body: () throws(PEFTError) -> R) throws(PEFTError) -> R {
        var count = users.load(ordering: .relaxed)
        while true {
            guard count >= 0 else { throw HandleUse.inUse(kind) }
            let (entered, present) = users.compareExchange(expected: count, desired: count + 1, ordering: .acquiring)
            if entered { break }
            count = present
        }
        defer { users.subtract(1, ordering: .releasing) }
        return try body()
    }

    /// Inside `alone`: others may look while a callback of the host runs. Afterwards those who still look are waited for.
    func lending<R>(_ body: () -> R) -> R {
        users.store(1, ordering: .releasing)
        defer {
            while !users.compareExchange(expected: 1, desired: -1, ordering: .acquiring).exchanged { sched_yield() }
        }
        return body()
    }

    private static func inUse(_ kind: HandleKind) -> PEFTError {
        PEFTError(.state, "the \(kind.name) handle is in use by another call (another thread, or the call whose callback this is)")
    }
}
