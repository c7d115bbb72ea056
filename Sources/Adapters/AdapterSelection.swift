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
    /// Joined by "|" when there are several.
    package let name: String
    /// All that the adapters save, trainable or not: by saved key, "adapter|key" when there are several.
    package let entries: [(key: String, parameter: Parameter)]
    /// Of the first, as it would be saved.
    package let configuration: JSONObject

    /// - Parameter names: nil: those that are active.
    /// - Throws: `.notFound`; `.state` when none is active or none of them may be changed.
    package init(_ set: AdapterSet, _ names: [String]?) throws(PEFTError) {
        let names = names ?? set.table.withLock { $0.active.map(\.name) }
        if let twice = names.first(where: { name in names.count { $0 == name } > 1 }) { throw PEFTError(.argument, "'\(twice)' is to be trained twice") }
        guard let first = names.first else {
            throw PEFTError(.state, "no adapter is active; say which one is to be trained")
        }
        let adapters = try names.map { (name) throws(PEFTError) in try set.adapter(name) }
        guard adapters.contains(where: \.isTrainable) else {
            throw PEFTError(
                .state, "'\(names.joined(separator: "', '"))' was loaded for inference; set it trainable to train it")
        }
        self.set = set
        self.adapters = adapters
        self.name = names.joined(separator: "|")
        entries = zip(names, adapters).flatMap { name, adapter in
            adapter.parameters.map { (names.count > 1 ? "\(name)|\($0.key)" : $0.key, $0.parameter) }
        }
        configuration = try set.configuration(of: first)
    }

    /// What they do now.
    package func adaptation() throws(PEFTError) -> Adaptation {
        try set.table.withLock { (table) throws(PEFTError) in
            let chosen = try adapters.map { (adapter) throws(PEFTError) in
                guard let name = table.names.first(where: { table.entries[$0]?.adapter === adapter }),
                    let entry = table.entries[name]
                else {
                    throw PEFTError(.state, "an adapter that is being trained ('\(self.name)') was removed")
                }
                if entry.isMerged {
                    throw PEFTError(.state, "'\(name)' is merged into the base weights; unmerge it to train it")
                }
                return ActiveAdapter(name: name, weight: table.active.first { $0.name == name }?.weight ?? 1)
            }
            return try table.adaptation(of: chosen, set.model)
        }
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
