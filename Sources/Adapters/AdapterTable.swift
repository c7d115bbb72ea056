internal import Models
internal import Platform
internal import Tensors

/// One of the adapters that act together, and how strongly.
package struct ActiveAdapter: Hashable, Sendable {
    package let name: String
    package let weight: Float
}

/// What an `AdapterSet` keeps under its lock.
struct AdapterTable: Sendable {
    struct Entry: Sendable {
        let adapter: Adapter
        /// What a fusion is of, by the present names.
        var members: [String]?
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
    var composition = Composition.stack([])
    var isEnabled = true
    /// What layers (by index) had before adapters were merged into them.
    private(set) var originals: [Int: [String: Tensor]] = [:]
    /// Adaptations that were asked for since something last changed what they would be.
    private var cached: [Composition: Adaptation] = [:]

    /// A host that fades weights asks for a new list in every frame; old ones must not pile up.
    private static let mostCached = 64

    /// All that are active, whatever they are composed to. Set: one behind the other.
    var active: [ActiveAdapter] {
        get { composition.adapters }
        set { composition = Composition(newValue) }
    }

    /// Those of the active ones that learn: fusions, where there are some.
    var learning: [String] {
        let fusions = composition.fusions
        return fusions.isEmpty ? composition.adapters.map(\.name) : fusions
    }

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
        entries[name] = Entry(adapter: adapter, members: (adapter.method as? AdapterFusion)?.members, took: took)
        if names.count == 1 { active = [ActiveAdapter(name: name, weight: 1)] }
    }

    /// - Returns: what the adapter took out of the base weights.
    mutating func remove(_ name: String) throws(PEFTError) -> [(before: BaseChange, residual: Storage)] {
        let removed = try entry(name)
        if !composition.isPlain, active.contains(where: { $0.name == name }) {
            throw PEFTError(.state, "'\(name)' is a part of the composition that is active; activate others before it is removed")
        }
        if removed.isMerged { throw PEFTError(.state, "'\(name)' is merged; unmerge it before it is removed") }
        names.removeAll { $0 == name }
        entries[name] = nil
        let wasAlone = active.map(\.name) == [name]
        if composition.isPlain { active = active.filter { $0.name != name } }
        // As PEFT: when the only active one goes, another takes its place.
        if wasAlone, let next = names.first { active = [ActiveAdapter(name: next, weight: 1)] }
        cached.removeAll()
        return removed.took
    }

    mutating func rename(_ name: String, to newName: String) throws(PEFTError) {
        let entry = try entry(name)
        guard entries[newName] == nil else { throw AdapterSet.exists(newName) }
        names = names.map { $0 == name ? newName : $0 }
        composition = composition.renamed { $0 == name ? newName : $0 }
        entries[name] = nil
        entries[newName] = entry
        for other in names {
            guard let members = entries[other]?.members else { continue }
            entries[other]?.members = members.map { $0 == name ? newName : $0 }
        }
        cached.removeAll()
    }

    mutating func removeAll() {
        self = AdapterTable()
    }

    // MARK: Merging

    var hasMerged: Bool { entries.values.contains(where: \.isMerged) }

    /// Those of `chosen` (nil: of the active ones) that are not merged yet, with the scales they act with.
    func toMerge(_ chosen: [String]?) throws(PEFTError) -> [(name: String, adapter: Adapter, scale: Float)] {
        if chosen == nil, !composition.isPlain { throw PEFTError(.state, "what is active is a composition, which no weights can hold; name adapters to merge") }
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
        guard !active.contains(where: { $0.name == name }) else { return }
        composition = composition.isPlain ? .stack(composition.members + [.adapter(name)]) : .stack([composition, .adapter(name)])
    }

    mutating func didUnmerge() {
        for name in names { entries[name]?.isMerged = false }
        names.removeAll { entries[$0]?.isResidue == true }
        if case .stack(let members) = composition {
            composition = .stack(members.filter { if case .adapter(let name, _) = $0 { entries[name]?.isResidue != true } else { true } })
        }
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
    mutating func forgetRouted(_ composition: Composition) throws(PEFTError) {
        for item in composition.adapters {
            if case .arrow? = (try entry(item.name).adapter.method as? LoRA)?.variant { cached.removeAll() }
        }
    }

    // MARK: Acting

    /// What acts on all rows alike.
    mutating func adaptation(of composition: Composition, _ model: Model) throws(PEFTError) -> Adaptation {
        if let known = cached[composition] { return known }
        let parts = try composition.tokens()
        guard var adaptation = try parts.first.map({ (first) throws(PEFTError) in try built(first.part, model) }) else { return model.unadapted }
        adaptation.later = try parts.dropFirst().map { (item) throws(PEFTError) in (item.start, try built(item.part, model)) }
        for item in adaptation.later where item.adaptation.readsWholeText { adaptation.readsWholeText = true }
        adaptation.settle(model)
        if cached.count >= AdapterTable.mostCached { cached.removeAll() }
        cached[composition] = adaptation
        return adaptation
    }

    /// What acts on `rows` rows; of a `parallel` there are more.
    mutating func routing(of composition: Composition, rows: Int, _ model: Model) throws(PEFTError) -> Routing {
        let (count, isOver) = rows.multipliedReportingOverflow(by: composition.channels)
        guard !isOver else { throw PEFTError(.argument, "\(rows) rows for \(composition.channels) adapters at once") }
        let parts = try composition.rows(count)
        if parts.count == 1, count == rows, let first = parts.first { return .all(try adaptation(of: first.part, model)) }
        let ends = parts.dropFirst().map(\.start) + [count]
        return .samples(try zip(parts, ends).filter { $0.start < $1 }.map { (item, end) throws(PEFTError) in
            (item.start..<end, try adaptation(of: item.part, model))
        })
    }

    var acting: Composition { isEnabled ? composition : .stack([]) }

    /// - Throws: where no batch could be computed with it.
    mutating func check(_ composition: Composition, _ model: Model) throws(PEFTError) {
        for part in composition.forEachRow() { _ = try adaptation(of: part, model) }
    }

    private func built(_ given: Composition, _ model: Model) throws(PEFTError) -> Adaptation {
        let composition = given.expanded { name in self.entries[name]?.members }
        let named = try composition.adapters.map { (item) throws(PEFTError) in (name: item.name, entry: try entry(item.name)) }
        var seen: Set<String> = []
        if let twice = named.first(where: { !seen.insert($0.name).inserted }) { throw PEFTError(.argument, "'\(twice.name)' is named twice") }
        let entries = named.map(\.entry)
        if let first = entries.first, entries.contains(where: { $0.adapter.replication != first.adapter.replication }) {
            throw PEFTError(.state, "adapters with different layer_replication cannot act together: \(named.map(\.name).joined(separator: ", "))")
        }
        if !given.isPlain, let merged = named.first(where: { $0.entry.isMerged }) {
            throw PEFTError(.state, "'\(merged.name)' is merged, so it cannot be a part of a composition; unmerge first")
        }
        try AdapterTable.checkWeightReaders(entries.filter { !$0.isMerged }.map(\.adapter))
        var adaptation = model.unadapted
        for entry in entries { try entry.adapter.addReplacements(to: &adaptation, isMerged: entry.isMerged) }
        try add(composition, to: &adaptation, model)
        if adaptation.router != nil, adaptation.prompt != nil || adaptation.memory != nil || adaptation.runs != nil || !adaptation.gatedPrompts.isEmpty {
            throw PEFTError(.unsupported, "X-LoRA beside prompts, prefixes or layer_replication; activate one of them")
        }
        return adaptation
    }

    private func add(_ composition: Composition, to adaptation: inout Adaptation, _ model: Model) throws(PEFTError) {
        switch composition {
        case .adapter(let name, let weight):
            let entry = try entry(name)
            guard !entry.isMerged else { return }
            try entry.adapter.addHooks(to: &adaptation, scale: entry.scale * weight)
            guard case .arrow(let arrow)? = (entry.adapter.method as? LoRA)?.variant else { return }
            func named(_ names: [String]) throws(PEFTError) -> [Adapter] { try names.map { (name) throws(PEFTError) in try self.entry(name).adapter } }
            try arrow.addHooks(
                to: &adaptation, at: entry.adapter.modules, tasks: try named(arrow.tasks), general: try named(arrow.general), scale: entry.scale * weight, model.engine)
        case .stack(let members): for member in members { try add(member, to: &adaptation, model) }
        case .average(let members, let weights):
            let made = try members.map { (member) throws(PEFTError) in
                var own = model.unadapted
                for index in own.layers.indices { own.layers[index].replacements = adaptation.layers[index].replacements }
                try add(member, to: &own, model)
                guard member.adapters.allSatisfy({ entries[$0.name]?.adapter.replacements.isEmpty ?? false }), own.onlyHooks else {
                    throw PEFTError(.unsupported, "an Average with \(member.json.text()), which does more than change what layers and blocks give (virtual tokens, prefixes, routers, modules of its own, aLoRA)")
                }
                adaptation.penalties += own.penalties
                adaptation.readsWholeText = adaptation.readsWholeText || own.readsWholeText
                return own
            }
            for index in adaptation.layers.indices where made.contains(where: { !$0.layers[index].hooks.isEmpty }) {
                let members = zip(made, weights).map { (hooks: $0.layers[index].hooks, weight: $1) }
                adaptation.layers[index].hooks.append(AverageHook(members, before: adaptation.layers[index]))
            }
            for place in Set(made.flatMap(\.joins.keys)) {
                guard let hook = try AverageJoin(zip(made, weights).map { (hooks: $0.joins[place] ?? [], weight: $1) }) else { continue }
                adaptation.joins[place, default: []].append(hook)
            }
        case .fuse(let members, let name):
            let found = try entry(name)
            let (own, wanted) = (found.adapter, found.members ?? [])
            guard let fusion = own.method as? AdapterFusion else {
                throw PEFTError(.argument, "a Fuse by '\(name)', which is \(own.configuration.method.peftType); it needs an adapter ADAPTER_FUSION of that name")
            }
            let ends = members.compactMap { $0.adapters.last?.name }
            guard ends == wanted else { throw PEFTError(.argument, "a Fuse of \(ends.joined(separator: ", ")) by '\(name)', which was made for \(wanted.joined(separator: ", "))") }
            if let penalty = own.companion?.penalty { adaptation.penalties.append(penalty) }
            try fusion.act(on: &adaptation, try members.map { (member) throws(PEFTError) in
                try member.adapters.map { (item) throws(PEFTError) in
                    let entry = try entry(item.name)
                    guard let method = entry.adapter.method as? Bottleneck else {
                        throw PEFTError(.unsupported, "fusion of '\(item.name)', which is \(entry.adapter.configuration.method.peftType); BOTTLENECK adapters can be fused")
                    }
                    return (method, entry.scale * item.weight)
                }
            })
        case .split, .batchSplit, .parallel: throw PEFTError(.unsupported, "BatchSplit and Parallel are for batches, of which a session or a layer alone has none")
        }
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
