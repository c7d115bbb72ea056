package import Autograd
package import Models
package import Platform
internal import Synchronization
internal import Tensors

/// Adapters that are trained together, as they are at every moment: a later rename or scale is followed, a merge or removal is
/// an error of the next step.
package struct AdapterSelection: Sendable {
    private let set: AdapterSet
    private let adapters: [Adapter]
    /// What acts, where that is more than those that learn one behind the other, with all its adapters by the names they had.
    private let composition: (whole: Composition, adapters: [String: Adapter])?
    /// Joined by "|" when there are several.
    package let name: String
    /// All that the adapters save, trainable or not: by saved key, "adapter|key" when there are several.
    package let entries: [(key: String, parameter: Parameter)]
    /// Of the first, as it would be saved.
    package let configuration: JSONObject

    /// - Parameter names: nil: those that are active.
    /// - Throws: `.notFound`; `.state` when none is active or none of them may be changed.
    package init(_ set: AdapterSet, _ names: [String]?) throws(PEFTError) {
        let active = set.table.withLock { $0.composition }
        let names = names ?? set.table.withLock { $0.learning }
        let all = active.adapters.map(\.name)
        if let twice = names.first(where: { name in names.count { $0 == name } > 1 }) { throw PEFTError(.argument, "'\(twice)' is to be trained twice") }
        guard let first = names.first else {
            throw PEFTError(.state, "no adapter is active; say which one is to be trained")
        }
        let adapters = try names.map { (name) throws(PEFTError) in try set.adapter(name) }
        guard adapters.contains(where: \.isTrainable) else {
            throw PEFTError(
                .state, "'\(names.joined(separator: "', '"))' was loaded for inference; set it trainable to train it")
        }
        var whole: [String: Adapter] = [:]
        for name in all { whole[name] = try set.adapter(name) }
        composition = !active.isPlain && names.allSatisfy({ all.contains($0) }) ? (active, whole) : nil
        self.set = set
        self.adapters = adapters
        self.name = names.joined(separator: "|")
        entries = zip(names, adapters).flatMap { name, adapter in
            adapter.parameters.map { (names.count > 1 ? "\(name)|\($0.key)" : $0.key, $0.parameter) }
        }
        configuration = try set.configuration(of: first)
    }

    /// What they do now, on all rows alike.
    package func adaptation() throws(PEFTError) -> Adaptation {
        try set.table.withLock { (table) throws(PEFTError) in try table.adaptation(of: try now(table), set.model) }
    }

    /// The same for the rows of a batch.
    package func routing(rows: Int) throws(PEFTError) -> Routing {
        try set.table.withLock { (table) throws(PEFTError) in try table.routing(of: try now(table), rows: rows, set.model) }
    }

    /// What acts, by the present names.
    private func now(_ table: AdapterTable) throws(PEFTError) -> Composition {
        func name(_ adapter: Adapter) throws(PEFTError) -> String {
            guard let name = table.names.first(where: { table.entries[$0]?.adapter === adapter }) else {
                throw PEFTError(.state, "an adapter that is being trained ('\(self.name)') was removed")
            }
            if table.entries[name]?.isMerged == true { throw PEFTError(.state, "'\(name)' is merged into the base weights; unmerge it to train it") }
            return name
        }
        guard let composition else {
            return Composition(try adapters.map { (adapter) throws(PEFTError) in
                let name = try name(adapter)
                return ActiveAdapter(name: name, weight: table.active.first { $0.name == name }?.weight ?? 1)
            })
        }
        var names: [String: String] = [:]
        for (old, adapter) in composition.adapters { names[old] = try name(adapter) }
        return composition.whole.renamed { names[$0] ?? $0 }
    }

    /// One adapter for each sample, one that is trained or any other; nil: the base model.
    package func routing(samples: [String?]) throws(PEFTError) -> Routing { try set.routing(samples: samples) }

    package var companions: [any AdapterCompanion] { adapters.compactMap(\.companion) }

    /// LoRA's factor of the layer that a parameter belongs to; nil where there is none.
    package func scaling(of parameter: Parameter) -> Double? {
        for adapter in adapters {
            if let scaling = adapter.scaling(of: parameter) { return scaling }
        }
        return nil
    }
}
