package import Autograd
package import Models
package import Platform
internal import Synchronization
package import Tensors
package import Tokenizers

/// The adapters of one model: which there are, which act, what is merged. Safe from several threads.
///
/// Values are changed under the model's write lock; the adaptation handed to a computation stays what it was. A computation
/// asks for its adaptation inside the read lock it computes under: then no merge comes between the two.
package final class AdapterSet: Sendable {
    package let model: Model
    /// What saved configurations call the base model.
    package let baseName: String?
    /// The base model's.
    let tokenizer: Tokenizer?
    let table = Mutex(AdapterTable())

    package init(_ model: Model, baseName: String? = nil, tokenizer: Tokenizer? = nil) {
        self.tokenizer = tokenizer
        self.model = model
        self.baseName = baseName
    }

    package var engine: Engine { model.engine }
    package var isEmpty: Bool { table.withLock { $0.names.isEmpty } }

    // MARK: Making and removing

    /// A fresh adapter from PEFT's configuration. The first one becomes active.
    /// - Parameter calibration: what its start is computed from, where the configuration asks for that.
    package func add(_ name: String, _ config: JSONObject, seed: UInt64 = 0, trainable: Bool = true, calibration: (any Calibration)? = nil) throws(PEFTError) {
        try checkIsFree(name)
        var given = try AdapterConfiguration(config, warn: { engine.warn($0) })
        try AdapterFusion.complete(&given) { (name) throws(PEFTError) in try self.adapter(name) }
        let configuration = given
        let (adapter, changes) = try model.lock.read { () throws(PEFTError) in
            let adapter = try Adapter(configuration, model, isNew: true)
            let start = try adapter.method.calibrate(adapter.modules, by: calibration, seed: seed, adapter.configuration.values, model)
            guard let start else { return (adapter, try adapter.initialize(seed: seed, tokenizer)) }
            let decided = try Adapter(try AdapterConfiguration(start.configuration, warn: { engine.warn($0) }), model, isNew: true)
            let changes = try decided.initialize(seed: seed, tokenizer)
            for item in decided.saved {
                if let value = start.values[item.key] { try item.assign(value, engine) }
            }
            return (decided, changes)
        }
        adapter.setTrainable(trainable)
        try insert(adapter, name, changes)
    }

    package func checkIsFree(_ name: String) throws(PEFTError) {
        guard !name.isEmpty, name != AdapterSet.base, !name.contains("|") else {
            throw PEFTError(
                .argument,
                "'\(name)' cannot be an adapter's name: it must not be empty or '\(AdapterSet.base)', or have a '|' in it"
            )
        }
        guard table.withLock({ $0.entries[name] == nil }) else { throw AdapterSet.exists(name) }
    }

    /// Puts a finished adapter in the table, and what it changes of the base model in place.
    func insert(_ adapter: Adapter, _ name: String, _ changes: [BaseChange]) throws(PEFTError) {
        guard !changes.isEmpty else {
            return try table.withLock { (table) throws(PEFTError) in try table.insert(adapter, name) }
        }
        try model.lock.write { () throws(PEFTError) in
            guard !table.withLock({ $0.hasMerged }) else {
                throw PEFTError(
                    .state,
                    "'\(name)' takes a part out of the base weights, which hold merged adapters; unmerge them first")
            }
            let before = try apply(changes)
            do throws(PEFTError) {
                try table.withLock { (table) throws(PEFTError) in
                    try table.insert(adapter, name, took: zip(before, changes).map { ($0, $1.value.storage) })
                }
            } catch {
                _ = try apply(before)
                throw error
            }
        }
    }

    /// What the adapter took out of the base weights (PiSSA, OLoRA) is given back.
    package func remove(_ name: String) throws(PEFTError) {
        let took = try table.withLock { (table) throws(PEFTError) in try table.remove(name) }
        guard !took.isEmpty else { return }
        try model.lock.write { () throws(PEFTError) in
            let mine = took.filter { $0.before.layer.tensor($0.before.tensor)?.storage === $0.residual }
            if mine.count < took.count {
                engine.warn(
                    "'\(name)' took a part out of base weights that were changed since; \(took.count - mine.count) of them stay as they are"
                )
            }
            _ = try apply(mine.map(\.before))
        }
    }

    package func rename(_ name: String, to newName: String) throws(PEFTError) {
        if newName == name { return _ = try adapter(name) }
        try checkIsFree(newName)
        try table.withLock { (table) throws(PEFTError) in try table.rename(name, to: newName) }
    }

    // MARK: Choosing

    /// Which act, in this order. As in PEFT, what is merged is taken out first: those that are named act, and no others.
    package func setActive(_ adapters: [(name: String, weight: Float)]) throws(PEFTError) { try setActive(try Composition(adapters)) }

    /// The same of a composition.
    package func setActive(_ composition: Composition) throws(PEFTError) {
        // Built now, so that what cannot act together is refused here.
        try table.withLock { (table) throws(PEFTError) in
            try table.forgetRouted(composition)
            try table.check(composition, model)
        }
        unmergeIfMerged("other adapters are chosen")
        table.withLock { $0.composition = composition }
    }

    /// False: the base model answers, so what is merged is taken out too.
    package func setEnabled(_ isEnabled: Bool) {
        if !isEnabled { unmergeIfMerged("adapters are disabled") }
        table.withLock { $0.isEnabled = isEnabled }
    }

    private func unmergeIfMerged(_ reason: String) {
        guard table.withLock({ $0.hasMerged }) else { return }
        engine.warn("merged adapters are unmerged because \(reason)")
        _ = model.lock.write { restore() }
    }

    /// Relative to the configuration (PEFT's set_scale).
    package func setScale(_ name: String, _ factor: Float) throws(PEFTError) {
        guard factor.isFinite else { throw PEFTError(.argument, "a scale of \(factor); a finite number is expected") }
        try table.withLock { (table) throws(PEFTError) in
            try table.change(name) { (entry) throws(PEFTError) in
                if entry.isMerged {
                    throw PEFTError(.state, "'\(name)' is merged; unmerge it before its scale is changed")
                }
                entry.scale = factor
            }
        }
    }

    package func setTrainable(_ name: String, _ isTrainable: Bool) throws(PEFTError) {
        let adapter = try adapter(name)
        if isTrainable { try adapter.prompt?.checkIsTrainable() }
        model.lock.write { adapter.setTrainable(isTrainable) }
    }

    static func checked(_ adapters: [(name: String, weight: Float)]) throws(PEFTError) -> [ActiveAdapter] {
        var seen: Set<String> = []
        for (name, weight) in adapters {
            guard weight.isFinite else {
                throw PEFTError(.argument, "the weight of '\(name)' is \(weight); a finite number is expected")
            }
            guard seen.insert(name).inserted else { throw PEFTError(.argument, "'\(name)' is named twice") }
        }
        return adapters.map { ActiveAdapter(name: $0.name, weight: $0.weight) }
    }

    // MARK: Acting

    /// What the active adapters do now (nothing when disabled). Cheap: kept until something changes.
    package func activeAdaptation() throws(PEFTError) -> Adaptation {
        try table.withLock { (table) throws(PEFTError) in try table.adaptation(of: table.acting, model) }
    }

    /// The same for the rows of a batch.
    package func activeRouting(rows: Int) throws(PEFTError) -> Routing {
        try table.withLock { (table) throws(PEFTError) in try table.routing(of: table.acting, rows: rows, model) }
    }

    /// What these adapters do. Cheap for what was asked for before.
    package func adaptation(of adapters: [(name: String, weight: Float)]) throws(PEFTError) -> Adaptation {
        try adaptation(of: try Composition(adapters))
    }

    package func adaptation(of composition: Composition) throws(PEFTError) -> Adaptation {
        try table.withLock { (table) throws(PEFTError) in try table.adaptation(of: composition, model) }
    }

    /// What PEFT calls a sample without an adapter.
    private static let base = "__base__"

    /// One adapter per sample of a batch; nil: the base model.
    package func routing(samples: [String?]) throws(PEFTError) -> Routing {
        try table.withLock { (table) throws(PEFTError) in
            if table.hasMerged {
                throw PEFTError(.state, "adapters are merged, so samples cannot have different ones; unmerge first")
            }
            var groups: [(range: Range<Int>, adaptation: Adaptation)] = []
            var start = 0
            while start < samples.count {
                let name = samples[start]
                let end = samples[start...].firstIndex { $0 != name } ?? samples.count
                let chosen = Composition(name.map { $0 == AdapterSet.base ? [] : [ActiveAdapter(name: $0, weight: 1)] } ?? [])
                groups.append((start..<end, try table.adaptation(of: chosen, model)))
                start = end
            }
            return .samples(groups)
        }
    }

    // MARK: Looking

    /// The configuration as it would be saved.
    package func configuration(of name: String) throws(PEFTError) -> JSONObject {
        let (adapter, members) = try table.withLock { (table) throws(PEFTError) in (try table.entry(name).adapter, try table.entry(name).members) }
        var configuration = adapter.configuration.saved(for: model, baseName: baseName)
        if let members { configuration["adapters"] = .array(members.map { .string($0) }) }
        model.lock.read { adapter.companion?.complete(&configuration) }
        return configuration
    }

    /// The trainable parameters of the active adapters (of fusions alone, where there are some), by saved key, "adapter|key" when they
    /// are of several.
    package func trainableParameters() throws(PEFTError) -> [(key: String, parameter: Parameter)] {
        let active = table.withLock { table in
            table.learning.compactMap { name in table.entries[name].map { (name, $0.adapter) } }
        }
        return active.flatMap { name, adapter in
            adapter.parameters.filter(\.parameter.isTrainable).map {
                (active.count > 1 ? "\(name)|\($0.key)" : $0.key, $0.parameter)
            }
        }
    }

    /// The same with a shared one under every key it is saved with, as PEFT lists gradients.
    package func trainableTensors() throws(PEFTError) -> [(key: String, parameter: Parameter)] {
        let active = table.withLock { table in
            table.learning.compactMap { name in table.entries[name].map { (name, $0.adapter) } }
        }
        return active.flatMap { name, adapter in
            adapter.state.compactMap { item in
                guard let parameter = item.parameter, parameter.isTrainable else { return nil }
                return (active.count > 1 ? "\(name)|\(item.key)" : item.key, parameter)
            }
        }
    }

    func adapter(_ name: String) throws(PEFTError) -> Adapter {
        try table.withLock { (table) throws(PEFTError) in try table.entry(name).adapter }
    }

    static func exists(_ name: String) -> PEFTError {
        PEFTError(.state, "there is an adapter '\(name)' already; remove it first, or choose another name")
    }
}
