internal import Autograd
package import Checkpoints
internal import Models
package import Platform
package import Tensors

// Adapters in files, and their values as named tensors.
extension AdapterSet {
    /// From a PEFT folder, an HDF5 file, or a safetensors file as others write it. The first one becomes active.
    package func load(_ name: String, path: String, trainable: Bool) throws(PEFTError) {
        try load(name, AdapterFiles.open(path: path, budget: engine.budget), folder: path, trainable: trainable)
    }

    package func load(_ name: String, _ files: AdapterFiles, folder: String? = nil, trainable: Bool) throws(PEFTError) {
        try checkIsFree(name)
        let (adapter, changes): (Adapter, [BaseChange])
        do throws(PEFTError) {
            let files = files.config.isEmpty ? try AdapterDialect.read(files.tensors, model) : files
            let config = try AdapterFusion.configuration(from: files.config) ?? Bottleneck.configuration(from: files.config) ?? files.config
            var configuration = try AdapterConfiguration(config, warn: { engine.warn($0) })
            configuration.folder = folder
            try AdapterFusion.complete(&configuration) { (name) throws(PEFTError) in try self.adapter(name) }
            (adapter, changes) = try model.lock.read { () throws(PEFTError) in try read(files, configuration) }
        } catch {
            // What a host may not say, a file cannot mean.
            throw PEFTError(
                error.kind == .argument ? .format : error.kind, "\(files.tensors.origin): \(error.message)",
                detail: error.detail)
        }
        if trainable { try adapter.prompt?.checkIsTrainable() }
        adapter.setTrainable(trainable)
        try insert(adapter, name, changes)
    }

    /// The caller holds the model's lock.
    func read(_ files: AdapterFiles, _ configuration: AdapterConfiguration) throws(PEFTError) -> (
        Adapter, [BaseChange]
    ) {
        let adapter: Adapter
        var configuration = configuration
        for item in files.tensors.all { configuration.shapes[AdapterKeys.full(item.name)] = item.tensor.shape }
        do throws(PEFTError) {
            // A training's checkpoint has the encoder of virtual tokens itself, a file only what it gives.
            adapter = try Adapter(configuration, model, isNew: files.tensors.all.contains { $0.name.hasPrefix(PromptEncoder.prefix) })
        } catch  where error.kind == .notFound {
            throw PEFTError(
                .mismatch,
                "the adapter does not fit this base model (it was made for '\(madeFor(configuration))'): \(error.message)"
            )
        }
        let named = AdapterKeys.known(
            try adapter.method.read(files.tensors.all.map { ($0.name, $0.tensor) }, engine), of: adapter)
        let present = (adapter.saved + adapter.state).filter { named.byKey[$0.key] != nil }.flatMap(\.assigned)
        let missing =
            adapter.parameters.filter { item in !present.contains { $0 === item.parameter } }.map(\.key)
            + adapter.saved.filter { $0.table != nil && named.byKey[$0.key] == nil }.map(\.key)
        let base = AdapterKeys.baseTensors(named.unknown, model)
        guard missing.isEmpty, base.unknown.isEmpty else {
            var parts: [String] = []
            if !missing.isEmpty {
                parts.append(
                    "\(missing.count) tensors that its configuration asks for are missing: \(TensorSource.list(missing))"
                )
            }
            if !base.unknown.isEmpty {
                parts.append("\(base.unknown.count) tensors belong to nothing: \(TensorSource.list(base.unknown))")
            }
            throw PEFTError(.mismatch, "\(parts.joined(separator: "; ")) (made for '\(madeFor(configuration))')")
        }
        try AdapterKeys.checkShapes(adapter, named.byKey)
        let changes = try adapter.takeFromBase()
        try set(adapter, named.byKey)
        // Behind what the file has: some derive from that too.
        try adapter.derive(without: Set(named.byKey.keys))
        let kept = adapter.saved.compactMap { item in
            item.base.flatMap { base in named.byKey[item.key].map { (item.key, base.layer, base.tensor, $0) } }
        }
        return (try adapter.withBase(kept + base.known, model), changes)
    }

    private func madeFor(_ configuration: AdapterConfiguration) -> String {
        configuration.values["base_model_name_or_path"]?.stringValue ?? "an unnamed model"
    }

    /// A PEFT folder; a path that ends in ".h5": one HDF5 file.
    package func save(_ name: String, path: String) throws(PEFTError) {
        let config = try configuration(of: name)
        let tensors = try state(of: name).map { NamedTensor($0.name, $0.tensor) }
        let adapter = try adapter(name)
        let derived = try model.lock.read { () throws(PEFTError) in
            try adapter.derived.map { (item) throws(PEFTError) in NamedTensor(item.key, try item.value(engine)) }
        }
        let isFusion = adapter.method is AdapterFusion
        if !path.hasSuffix(".h5"), isFusion || adapter.method is Bottleneck {
            // As the `adapters` library writes it.
            let own = tensors.map { NamedTensor(Bottleneck.named($0.name, name), $0.tensor) }
            guard !isFusion else {
                return try AdapterFiles.writeFolder(
                    path, config: AdapterFusion.library(config, name, model), tensors: own, weightsFile: AdapterFiles.fusionWeightsFile, configFile: AdapterFiles.fusionConfigFile)
            }
            return try AdapterFiles.writeFolder(path, config: Bottleneck.library(config, name, model), tensors: own, weightsFile: AdapterFiles.libraryWeightsFile)
        }
        if path.hasSuffix(".h5") {
            try AdapterFiles.writeHDF5(path, config: config, tensors: tensors + derived, budget: engine.budget)
        } else {
            try AdapterFiles.writeFolder(path, config: config, tensors: tensors, derived: derived)
        }
    }

    /// What would be saved, by saved key. Copies: later steps do not change them.
    package func state(of name: String) throws(PEFTError) -> [(name: String, tensor: Tensor)] {
        let adapter = try adapter(name)
        return try model.lock.read { () throws(PEFTError) in
            try adapter.method.written(adapter.saved.map { (item) throws(PEFTError) in (item.key, try item.value(engine)) }, engine)
        }
    }

    /// Sets tensors (any float type) by saved key; all or nothing.
    package func setState(of name: String, _ tensors: [(name: String, tensor: Tensor)]) throws(PEFTError) {
        let adapter = try adapter(name)
        let named = AdapterKeys.known(try adapter.method.read(tensors, engine), of: adapter)
        guard named.unknown.isEmpty else {
            throw PEFTError(.mismatch, "'\(name)' has no \(TensorSource.list(named.unknown.map(\.name)))")
        }
        try AdapterKeys.checkShapes(adapter, named.byKey)
        for item in adapter.saved {
            guard let base = item.base, let tensor = named.byKey[item.key] else { continue }
            guard try Adapter.isPresent(tensor, base.layer, base.tensor, engine) else {
                throw PEFTError(
                    .unsupported,
                    "'\(item.key)' is a weight of the base model; setting an adapter's state does not change it")
            }
        }
        try model.lock.write { () throws(PEFTError) in
            try set(adapter, named.byKey)
            try adapter.deriveFromShared(set: named.byKey)
        }
    }

    /// Names and shapes are right. All conversions come before the first change.
    private func set(_ adapter: Adapter, _ byKey: [String: Tensor]) throws(PEFTError) {
        var values: [(item: SavedTensor, value: Tensor)] = []
        var indices: [(table: IndexTable, values: [Int32])] = []
        for item in adapter.known {
            guard let tensor = byKey[item.key] else { continue }
            if let table = item.table { indices.append((table, try table.checked(tensor))) }
            guard !item.assigned.isEmpty else { continue }
            values.append((item, tensor.dtype == .f32 ? tensor : try tensor.converted(to: .f32, engine, .scratch)))
        }
        for (table, values) in indices { table.set(values) }
        for (item, value) in values { try item.assign(value, engine) }
    }
}

/// The names tensors have in files.
enum AdapterKeys {
    /// Tensors under the adapter's own keys, and those that are none of its.
    ///
    /// Other writers leave the prefix out, and older ones wrote ".weight" behind DoRA's magnitudes.
    static func known(_ tensors: [(name: String, tensor: Tensor)], of adapter: Adapter) -> (
        byKey: [String: Tensor], unknown: [(name: String, tensor: Tensor)]
    ) {
        let keys = Set(adapter.known.map(\.key))
        var byKey: [String: Tensor] = [:]
        var unknown: [(name: String, tensor: Tensor)] = []
        for (name, tensor) in tensors {
            let full = full(name)
            let candidates = [name, full, full.hasSuffix(".weight") ? String(full.dropLast(7)) : full]
            let key = candidates.first { keys.contains($0) } ?? SavedModules.copyName(full).flatMap { keys.contains($0) ? $0 : nil }
            if let key, byKey[key] == nil {
                byKey[key] = tensor
            } else {
                unknown.append((name, tensor))
            }
        }
        return (byKey, unknown)
    }

    /// Weights of the base model beside the adapter's: PEFT writes those of embedding and head when the vocabulary was resized.
    static func baseTensors(_ tensors: [(name: String, tensor: Tensor)], _ model: Model)
        -> (known: [(key: String, layer: any Layer, tensor: String, value: Tensor)], unknown: [String])
    {
        var known: [(key: String, layer: any Layer, tensor: String, value: Tensor)] = []
        var unknown: [String] = []
        for (name, tensor) in tensors {
            let parts = full(name).dropFirst(Adapter.prefix.count).split(separator: ".")
            let last = parts.last.map(String.init) ?? ""
            if let layer = model.layer(named: parts.dropLast().joined(separator: ".")),
                layer is Embedding || layer.index == model.network.head?.index,
                layer.tensor(last)?.shape == tensor.shape
            {
                known.append((full(name), layer, last, tensor))
            } else {
                unknown.append(name)
            }
        }
        return (known, unknown)
    }

    /// What layers share stands directly below "base_model.".
    static func full(_ name: String) -> String { name.hasPrefix("base_model.") ? name : Adapter.prefix + name }

    static func checkShapes(_ adapter: Adapter, _ byKey: [String: Tensor]) throws(PEFTError) {
        for item in adapter.known {
            guard let tensor = byKey[item.key] else { continue }
            guard tensor.shape == item.shape else {
                throw PEFTError(.mismatch, "'\(item.key)' has the shape \(tensor.shape), \(item.shape) is needed")
            }
            guard item.table != nil || tensor.dtype.isWeightFormat else {
                throw PEFTError(
                    .mismatch, "'\(item.key)' is \(tensor.dtype.name); numbers of a floating-point type are needed")
            }
        }
    }
}
