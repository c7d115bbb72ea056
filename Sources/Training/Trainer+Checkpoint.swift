internal import Adapters
internal import Autograd
internal import Checkpoints
internal import Models
package import Platform
internal import Tensors

/// A training in one HDF5 file, and back: after `resume` in another process every number is the one it would have been.
///
///     /adapter/<key>  /optimizer/<moment>/<key>  /gradients/<key> (inside an accumulation)  /best/<key> (early stop)
extension Trainer {
    /// Writes the file atomically, under the read lock.
    /// - Parameter loader: its position is part of the checkpoint; nil: the host feeds the batches.
    package func save(to path: String, _ loader: BatchLoader? = nil) throws(PEFTError) {
        let file = try model.lock.read { () throws(PEFTError) in
            CheckpointFile(kind: .training, attributes: attributes(loader), groups: try tensorGroups())
        }
        try file.write(to: path, budget: model.engine.budget)
    }

    private var keys: [String] { optimizer.parameters.map(trainee.key) }

    private func attributes(_ loader: BatchLoader?) -> JSONObject {
        var data = JSONObject()
        if let loader {
            data = [
                "fingerprint": .string(loader.dataSet.fingerprint), "epoch": .integer(Int64(loader.position.epoch)),
                "record": .integer(Int64(loader.position.record)), "sample": .integer(Int64(loader.position.sample)),
            ]
        }
        var options = JSONObject()
        for (name, value) in identity { options[name] = value }
        return [
            "adapter_name": .string(trainee.name), "adapter_config": .object(trainee.configuration), "base": .object(fingerprint.json),
            "options": .object(options), "step": .integer(Int64(step)), "micro_step": .integer(Int64(microStep)),
            "total_steps": totalSteps.map { .integer(Int64($0)) } ?? .null,
            "update_counts": .array(optimizer.updateCounts.map { .integer(Int64($0)) }),
            "dropout": .object(["seed": .string("\(random.seed)"), "position": .string("\(random.position)")]),
            "data": loader == nil ? .null : .object(data), "run": runState.json,
        ]
    }

    private func tensorGroups() throws(PEFTError) -> [String: [NamedTensor]] {
        var groups = ["adapter": trainee.entries.map { NamedTensor($0.key, $0.parameter.value) }]
        for moment in optimizer.moments { groups["optimizer/" + moment.name] = zip(keys, moment.tensors).map { NamedTensor($0, $1) } }
        if microStep > 0 {
            groups["gradients"] = zip(keys, optimizer.parameters).compactMap { key, parameter in gradients.gradient(of: parameter).map { NamedTensor(key, $0) } }
        }
        let own = companionState
        if !own.isEmpty { groups["companion"] = own.map { NamedTensor($0.name, $0.tensor) } }
        if !runState.best.isEmpty { groups["best"] = zip(keys, runState.best).map { NamedTensor($0, $1) } }
        return groups
    }

    /// What adapters keep besides their parameters, numbered where several are trained.
    private var companionState: [(name: String, tensor: Tensor)] {
        let all = trainee.companions
        return all.enumerated().flatMap { index, companion in
            companion.state.map { (all.count > 1 ? "\(index)|\($0.name)" : $0.name, $0.tensor) }
        }
    }

    /// What must be equal for a run to go on: options and arithmetic.
    private var identity: [(name: String, value: JSONValue)] {
        options.identity.map { ($0.name, .string($0.value)) } + [("precision", .string("\(model.precision.activation.name), \(model.precision.compute)"))]
    }

    private var fingerprint: BaseFingerprint {
        var tensors: [NamedTensor] = []
        for layer in model.layers { tensors += layer.tensors.map { NamedTensor("\(layer.name).\($0.name)", $0.tensor) } }
        return BaseFingerprint(family: model.architecture, tensors)
    }

    /// Continues from a file of `save`: sets the adapter, the optimizer, the random streams and the position of `loader`.
    ///
    /// - Throws: `.mismatch` naming the difference for another base model, adapter configuration, option or data set;
    ///   `.format` for a damaged file. Nothing has changed then.
    package func resume(from path: String, _ loader: BatchLoader? = nil) throws(PEFTError) {
        let file = try CheckpointFile.read(path: path, budget: model.engine.budget)
        do throws(PEFTError) {
            try resume(file, loader)
        } catch {
            throw error.within(path)
        }
    }

    private func resume(_ file: CheckpointFile, _ loader: BatchLoader?) throws(PEFTError) {
        guard file.kind == .training else { throw PEFTError(.mismatch, "the file holds an adapter without the state of a training") }
        let state = SavedState(file.attributes)
        try checkBase(state)
        try checkOptions(state)
        // Everything is found and checked before anything is changed.
        let parameters = optimizer.parameters
        var copies = try copies(file, "adapter", trainee.entries.map { ($0.key, $0.parameter.value) })
        for moment in optimizer.moments { copies += try self.copies(file, "optimizer/" + moment.name, Array(zip(keys, moment.tensors))) }
        if !companionState.isEmpty { copies += try self.copies(file, "companion", companionState.map { ($0.name, $0.tensor) }) }
        let (step, micro) = (try state.integer("step"), try state.integer("micro_step"))
        let counts = try state.integers("update_counts", count: parameters.count)
        let stream = try state.stream("dropout")
        var run = try RunState(state)
        if file.groups["best"] != nil {
            for parameter in parameters { run.best.append(try Tensor(model.engine, parameter.value.shape, .f32, .adapters)) }
            copies += try self.copies(file, "best", Array(zip(keys, run.best)))
        }
        if micro > 0 {
            var sums: [(String, Tensor)] = []
            for (key, parameter) in zip(keys, parameters) where file.groups["gradients"]?.contains(where: { $0.name == key }) == true {
                sums.append((key, try gradients.buffer(for: parameter)))
            }
            copies += try self.copies(file, "gradients", sums)
        }
        if let loader { try loader.move(to: try position(state, loader.dataSet)) }
        model.lock.write {
            for (from, to) in copies { from.copyBytes(to: to) }
        }
        (self.step, microStep, random, runState) = (step, micro, stream, run)
        optimizer.updateCounts = counts
        totalSteps = try state.optionalInteger("total_steps") ?? options.maxSteps
    }

    private func checkBase(_ state: SavedState) throws(PEFTError) {
        let saved = try BaseFingerprint(state.object("base"))
        switch fingerprint.compare(saved) {
        case .same: break
        case .sameArchitecture: throw PEFTError(.mismatch, "the base model has the right shapes and other weights (another quantisation or version, or merged adapters)")
        case .different: throw PEFTError(.mismatch, "the training ran on another base model")
        }
    }

    private func checkOptions(_ state: SavedState) throws(PEFTError) {
        let options = try state.object("options")
        for (name, value) in identity where options[name] != value {
            let saved = options[name]?.stringValue ?? "absent"
            throw PEFTError(.mismatch, "\(name) is \(value.stringValue ?? "?") here and \(saved) in the checkpoint")
        }
        let configuration = try state.object("adapter_config")
        for key in Set(configuration.keys).union(trainee.configuration.keys).sorted() where configuration[key] != trainee.configuration[key] {
            let (here, saved) = (trainee.configuration[key]?.text() ?? "absent", configuration[key]?.text() ?? "absent")
            throw PEFTError(.mismatch, "the adapter's \(key) is \(here) here and \(saved) in the checkpoint")
        }
    }

    private func position(_ state: SavedState, _ dataSet: DataSet) throws(PEFTError) -> DataPosition {
        guard state.has("data") else { throw PEFTError(.mismatch, "the checkpoint was saved without a data set") }
        let data = SavedState(try state.object("data"))
        let saved = try data.string("fingerprint")
        guard saved == dataSet.fingerprint else { throw PEFTError(.mismatch, "the data set is (\(dataSet.fingerprint)) here and (\(saved)) in the checkpoint") }
        return DataPosition(epoch: try data.integer("epoch"), record: try data.integer("record"), sample: try data.integer("sample"))
    }

    /// Pairs (saved tensor, its place here).
    /// - Throws: `.mismatch` for a missing, left-over or misshapen tensor.
    private func copies(_ file: CheckpointFile, _ group: String, _ places: [(String, Tensor)]) throws(PEFTError) -> [(from: Tensor, to: Tensor)] {
        let saved = Dictionary((file.groups[group] ?? []).map { ($0.name, $0.tensor) }) { first, _ in first }
        var pairs: [(from: Tensor, to: Tensor)] = []
        for (key, place) in places {
            guard let tensor = saved[key] else { throw PEFTError(.mismatch, "the checkpoint has no \(group)/\(key)") }
            guard tensor.shape == place.shape, tensor.dtype == .f32 else {
                throw PEFTError(.mismatch, "\(group)/\(key) is \(tensor.dtype.name) \(tensor.shape) in the checkpoint, f32 \(place.shape) here")
            }
            pairs.append((tensor, place))
        }
        guard saved.count == pairs.count else {
            let known = Set(places.map(\.0))
            let first = saved.keys.filter { !known.contains($0) }.sorted().first ?? ""
            throw PEFTError(.mismatch, "the checkpoint's \(group)/\(first) has no place here")
        }
        return pairs
    }
}
