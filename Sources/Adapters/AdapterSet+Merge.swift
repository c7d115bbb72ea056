internal import Autograd
internal import Models
package import Platform
internal import Synchronization
package import Tensors

// Adapters in the base weights. Merged ones act through the weights of every computation over the model; the tensors from
// before are kept (views of a mapped file cost nothing), so taking them out again is exact.
extension AdapterSet {
    /// Folds adapters (nil: the active ones) into the base weights, layer by layer. Those that are merged already stay as they are.
    ///
    /// Weights that lie on a grid of few bits and are changed by less than its steps come back to the same grid points: four
    /// bits keep little of an adapter. `dtype` gives quantised weights a format with room for the change.
    /// - Parameters:
    ///   - dtype: what quantised weights become; nil: what they are.
    ///   - residue: name and rank of an adapter that has what quantised weights do not hold; it acts until they are unmerged, which
    ///     removes it.
    /// - Returns: as `peft_model_merge` reports it.
    /// - Throws: `.state` when there is nothing to merge, `.unsupported`, `.numeric` (`safe`); nothing has changed then.
    package func merge(_ names: [String]?, safe: Bool, as dtype: DType? = nil, residue: (name: String, rank: RankChoice)? = nil) throws(PEFTError) -> JSONObject {
        if let residue { try checkIsFree(residue.name) }
        if let dtype, !dtype.isWeightFormat { throw PEFTError(.argument, "weights cannot be \(dtype.name)") }
        return try model.lock.write { () throws(PEFTError) in
            let (chosen, originals) = try table.withLock { (table) throws(PEFTError) in
                (try table.toMerge(names), table.originals)
            }
            if chosen.isEmpty { engine.warn("all adapters that were to be merged are merged already") }
            let merge = try WeightMerge(
                chosen.map { ($0.adapter, $0.scale) }, originals: originals, isSafe: safe, as: dtype, residueRank: residue?.rank, model)
            let rest = merge.residue.isEmpty ? nil : try residueAdapter(merge.residue)
            let before = try apply(merge.changes)
            if let rest, let residue {
                do throws(PEFTError) { try table.withLock { (table) throws(PEFTError) in try table.insertResidue(rest, residue.name) } } catch {
                    // The name was taken while this was computed.
                    _ = try apply(before)
                    throw error
                }
            }
            table.withLock { $0.didMerge(chosen.map(\.name), before) }
            if rest == nil, merge.kept < 0.5 {
                let percent = Int(merge.kept * 100)
                engine.warn(
                    "only \(percent) % of what the adapter changes is in the merged weights: their format has no room for more (see dtype; q8_0, bf16 …)"
                )
            }
            return merge.report
        }
    }

    private func residueAdapter(_ modules: [(name: String, form: LoRAFile.Form, factors: LowRank)]) throws(PEFTError) -> Adapter {
        let file = LoRAFile(modules, JSONObject(), targets: targets(naming: modules.map(\.name)), others: [])
        let (adapter, _) = try read(try file.files("the residue", engine), try AdapterConfiguration(file.configuration, warn: { engine.warn($0) }))
        adapter.setTrainable(false)
        return adapter
    }

    /// Gives back the exact weights from before.
    package func unmerge() throws(PEFTError) {
        try model.lock.write { () throws(PEFTError) in
            guard restore() else { throw PEFTError(.state, "nothing is merged") }
        }
    }

    /// Merges the active adapters for good and removes all; modules trained in full take the place of the originals. Quantised
    /// weights that are changed become q8_0, so that the adapters are in them.
    package func mergeAndUnload() throws(PEFTError) {
        try model.lock.write { () throws(PEFTError) in
            let (chosen, active, originals) = try table.withLock { (table) throws(PEFTError) in
                (
                    try table.toMerge(nil),
                    try table.active.map { (item) throws(PEFTError) in try table.entry(item.name).adapter },
                    table.originals
                )
            }
            let merge = try WeightMerge(
                chosen.map { ($0.adapter, $0.scale) }, originals: originals, isSafe: true, as: .q8_0, model)
            let own = try active.flatMap(\.replacements).filter { $0.reason == .savedModule }.map {
                (own) throws(PEFTError) in try change(for: own)
            }
            _ = try apply(merge.changes + own)
            table.withLock { $0.removeAll() }
        }
    }

    /// A module trained in full, in the type of the original; in f32 where that was quantised.
    private func change(for own: Replacement) throws(PEFTError) -> BaseChange {
        if (own.layer as? Linear)?.tiedEmbedding != nil {
            throw PEFTError(
                .unsupported,
                "'\(own.layer.name)' was trained on its own, but shares its matrix with the embedding: it cannot take its place"
            )
        }
        let dtype = own.layer.tensor(own.tensor)?.dtype ?? .f32
        let value = try own.parameter.value.converted(to: dtype.isFloat ? dtype : .f32, engine, .weights)
        return BaseChange(layer: own.layer, tensor: own.tensor, value: value)
    }

    /// Sets tensors of base layers; those set before a failure are set back. The caller holds the write lock.
    /// - Returns: what was there.
    func apply(_ changes: [BaseChange]) throws(PEFTError) -> [BaseChange] {
        var before: [BaseChange] = []
        do throws(PEFTError) {
            for change in changes {
                guard let present = change.layer.tensor(change.tensor) else {
                    throw PEFTError(.internal, "\(change.layer.name) has no \(change.tensor)")
                }
                try change.layer.setTensor(change.tensor, change.value)
                before.append(BaseChange(layer: change.layer, tensor: change.tensor, value: present))
            }
        } catch {
            for change in before.reversed() { try? change.layer.setTensor(change.tensor, change.value) }
            throw error
        }
        return before
    }

    /// Takes merged adapters out. The caller holds the write lock.
    /// - Returns: false when none was merged.
    func restore() -> Bool {
        let originals = table.withLock { $0.hasMerged ? $0.originals : nil }
        guard let originals else { return false }
        for (index, tensors) in originals {
            // They were there before, so they fit.
            for (name, tensor) in tensors { try? model.layers[index].setTensor(name, tensor) }
        }
        table.withLock { $0.didUnmerge() }
        return true
    }
}
