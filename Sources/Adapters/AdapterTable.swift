internal import Models
internal import Platform
internal import Tensors

/// One of the adapters that act together, and how strongly.
struct ActiveAdapter: Hashable, Sendable {
    let name: String
    let weight: Float
}

/// What an `AdapterSet` keeps under its lock.
struct AdapterTable: Sendable {
    struct Entry: Sendable {
        let adapter: Adapter
        /// Of `set_scale`.
        var scale: Float = 1
        var isMerged = false
        /// Of a merge: goes with it.
        var isResidue = false
        /// What the base had before this adapter took its part, and the memory of what was left.
        var took: [(before: BaseChange, residual: Storage)] = []
    }

    /// In the order they came.
    private(set) var names: [String] = []
    private(set) var entries: [String: Entry] = [:]
    var active: [ActiveAdapter] = []
    var isEnabled = true
    /// What layers (by index) had before adapters were merged into them.
    private(set) var originals: [Int: [String: Tensor]] = [:]
    /// Adaptations that were asked for since something last changed what they would be.
    private var cached: [[ActiveAdapter]: Adaptation] = [:]

    /// A host that fades weights asks for a new list in every frame; old ones must not pile up.
    private static let mostCached = 64

    func entry(_ name: String) throws(PEFTError) -> Entry {
        guard let entry = entries[name] else {
            let known = names.isEmpty ? "there are none" : "there are \(names.joined(separator: ", "))"
            throw PEFTError(.notFound, "there is no adapter '\(name)'; \(known)")
        }
        return entry
    }

    mutating func insert(_ adapter: Adapter, _ name: String, took: [(before: BaseChange, residual: Storage)] = [])
        throws(PEFTError)
    {
        guard entries[name] == nil else { throw AdapterSet.exists(name) }
        if adapter.trainsBiases, let other = names.first(where: { entries[$0]?.adapter.trainsBiases == true }) {
            throw PEFTError(.argument, "only one adapter can train biases, and '\(other)' does; set bias to none")
        }
        names.append(name)
        entries[name] = Entry(adapter: adapter, took: took)
        if names.count == 1 { active = [ActiveAdapter(name: name, weight: 1)] }
    }

    /// - Returns: what the adapter took out of the base weights.
    mutating func remove(_ name: String) throws(PEFTError) -> [(before: BaseChange, residual: Storage)] {
        let removed = try entry(name)
        if removed.isMerged { throw PEFTError(.state, "'\(name)' is merged; unmerge it before it is removed") }
        names.removeAll { $0 == name }
        entries[name] = nil
        let wasAlone = active.map(\.name) == [name]
        active.removeAll { $0.name == name }
        // As PEFT: when the only active one goes, another takes its place.
        if wasAlone, let next = names.first { active = [ActiveAdapter(name: next, weight: 1)] }
        cached.removeAll()
        return removed.took
    }

    mutating func rename(_ name: String, to newName: String) throws(PEFTError) {
        let entry = try entry(name)
        guard entries[newName] == nil else { throw AdapterSet.exists(newName) }
        names = names.map { $0 == name ? newName : $0 }
        active = active.map { $0.name == name ? ActiveAdapter(name: newName, weight: $0.weight) : $0 }
        entries[name] = nil
        entries[newName] = entry
        cached.removeAll()
    }

    mutating func removeAll() {
        self = AdapterTable()
    }

    // MARK: Merging

    var hasMerged: Bool { entries.values.contains(where: \.isMerged) }

    /// Those of `chosen` (nil: of the active ones) that are not merged yet, with the scales they act with.
    func toMerge(_ chosen: [String]?) throws(PEFTError) -> [(name: String, adapter: Adapter, scale: Float)] {
        let chosen = chosen ?? active.map(\.name)
        guard !chosen.isEmpty else { throw PEFTError(.state, "no adapter is active; name those to merge") }
        var result: [(name: String, adapter: Adapter, scale: Float)] = []
        for name in chosen where !result.contains(where: { $0.name == name }) {
            let entry = try entry(name)
            let weight = active.first { $0.name == name }?.weight ?? 1
            if !entry.adapter.configuration.method.isMergeable {
                throw PEFTError(.unsupported, "'\(name)' is \(entry.adapter.configuration.method.peftType), which no weights can hold")
            }
            if !entry.isMerged { result.append((name, entry.adapter, entry.scale * weight)) }
        }
        return result
    }

    mutating func didMerge(_ names: [String], _ before: [BaseChange]) {
        for name in names { entries[name]?.isMerged = true }
        for change in before where originals[change.layer.index]?[change.tensor] == nil {
            originals[change.layer.index, default: [:]][change.tensor] = change.value
        }
        cached.removeAll()
    }

    /// Puts what a merge left out beside what acts.
    mutating func insertResidue(_ adapter: Adapter, _ name: String) throws(PEFTError) {
        try insert(adapter, name)
        entries[name]?.isResidue = true
        if !active.contains(where: { $0.name == name }) { active.append(ActiveAdapter(name: name, weight: 1)) }
    }

    mutating func didUnmerge() {
        for name in names { entries[name]?.isMerged = false }
        names.removeAll { entries[$0]?.isResidue == true }
        active.removeAll { entries[$0.name]?.isResidue == true }
        entries = entries.filter { !$0.value.isResidue }
        originals.removeAll()
        cached.removeAll()
    }

    mutating func change(_ name: String, _ body: (inout Entry) throws(PEFTError) -> Void) throws(PEFTError) {
        var entry = try entry(name)
        try body(&entry)
        entries[name] = entry
        cached.removeAll()
    }

    /// What Arrow's routers made of other adapters is made anew.
    mutating func forgetRouted(_ adapters: [ActiveAdapter]) throws(PEFTError) {
        for item in adapters {
            if case .arrow? = (try entry(item.name).adapter.method as? LoRA)?.variant { cached[adapters] = nil }
        }
    }

    mutating func adaptation(of adapters: [ActiveAdapter], _ model: Model) throws(PEFTError) -> Adaptation {
        if let known = cached[adapters] { return known }
        var adaptation = model.unadapted
        let chosen = try adapters.map { (item) throws(PEFTError) in (entry: try entry(item.name), weight: item.weight) }
        if let first = chosen.first,
            chosen.contains(where: { $0.entry.adapter.replication != first.entry.adapter.replication })
        {
            throw PEFTError(
                .state,
                "adapters with different layer_replication cannot act together: \(adapters.map(\.name).joined(separator: ", "))"
            )
        }
        try AdapterTable.checkWeightReaders(chosen.filter { !$0.entry.isMerged }.map(\.entry.adapter))
        for (entry, _) in chosen { try entry.adapter.addReplacements(to: &adaptation, isMerged: entry.isMerged) }
        for (entry, weight) in chosen where !entry.isMerged {
            try entry.adapter.addHooks(to: &adaptation, scale: entry.scale * weight)
            guard case .arrow(let arrow)? = (entry.adapter.method as? LoRA)?.variant else { continue }
            func named(_ names: [String]) throws(PEFTError) -> [Adapter] { try names.map { (name) throws(PEFTError) in try self.entry(name).adapter } }
            try arrow.addHooks(
                to: &adaptation, at: entry.adapter.modules, tasks: try named(arrow.tasks), general: try named(arrow.general), scale: entry.scale * weight, model.engine)
        }
        if adaptation.router != nil, adaptation.prompt != nil || adaptation.memory != nil || adaptation.runs != nil || !adaptation.gatedPrompts.isEmpty {
            throw PEFTError(.unsupported, "X-LoRA beside prompts, prefixes or layer_replication; activate one of them")
        }
        if cached.count >= AdapterTable.mostCached { cached.removeAll() }
        cached[adapters] = adaptation
        return adaptation
    }

    /// What some add depends on the weight itself, which another adapter would change.
    private static func checkWeightReaders(_ adapters: [Adapter]) throws(PEFTError) {
        var seen: Set<Int> = []
        for module in adapters.flatMap(\.modules) where module.readsWeight {
            guard seen.insert(module.layer.index).inserted else {
                throw PEFTError(.unsupported, "two adapters multiply '\(module.layer.name)' by matrices of their own (MISS 'bat') and cannot act together; merge the first")
            }
        }
    }
}
