package import Adapters
internal import Checkpoints
package import Models
package import Platform
internal import Tensors

// What full fine-tuning did, as an adapter.
extension AdapterSet {
    /// A new LoRA of the difference between another model and this one, whatever formats the two are in.
    /// - Parameter options: `svd_rank` or `svd_energy`, `target_modules` as in an adapter's configuration (default "all-linear").
    /// - Returns: as `peft_adapter_extract` reports it, with the tensors that differ and that LoRA does not hold.
    package func extract(from tuned: Model, into newName: String, _ options: JSONObject, progress: MergeProgress? = nil) throws(PEFTError) -> JSONObject {
        try checkIsFree(newName)
        guard let rank = try Combination.rank(options) else { throw PEFTError(.argument, "svd_rank or svd_energy is needed: how much of the difference is kept") }
        guard tuned !== model else { throw PEFTError(.argument, "a model differs from itself in nothing; another one is needed") }
        guard !hasMerged else { throw PEFTError(.state, "adapters are merged into this model; unmerge them first") }
        // Both locks, always in one order.
        let locks = ObjectIdentifier(model) < ObjectIdentifier(tuned) ? [model.lock, tuned.lock] : [tuned.lock, model.lock]
        let (file, report) = try locks[0].read { () throws(PEFTError) in
            try locks[1].read { () throws(PEFTError) in
                let targets = try self.layers(matching: options["target_modules"] ?? .string("all-linear"))
                let source = try ModelDifference(model, tuned, targets)
                let combination = try Combination(["svd_rank": options["svd_rank"] ?? .null, "svd_energy": options["svd_energy"] ?? .null], count: 1)
                let run = try MergeRun(source, combination, rank: rank.common, engine, progress)
                var report = run.report
                report["left_out"] = .array(try source.leftOut().map { .string($0) })
                return (LoRAFile(run.modules, JSONObject(), targets: self.targets(naming: run.modules.map(\.name)), others: []), report)
            }
        }
        try load(newName, try file.files("the extracted adapter", engine), trainable: false)
        return report
    }
}

extension RankChoice {
    fileprivate var common: Int { if case .fixed(let rank) = self { rank } else { 1 } }
}

/// The weights of one model minus those of another of the same shapes.
private struct ModelDifference: ChangeSource {
    private let base: Model
    private let tuned: Model
    private let targets: [any Layer]

    init(_ base: Model, _ tuned: Model, _ targets: [any Layer]) throws(PEFTError) {
        (self.base, self.tuned, self.targets) = (base, tuned, targets)
        for layer in base.layers {
            guard let other = tuned.layer(named: layer.name) else { throw PEFTError(.mismatch, "the tuned model has no '\(layer.name)'; it must be one of the same architecture") }
            for (name, tensor) in layer.tensors where other.tensor(name)?.shape != tensor.shape {
                throw PEFTError(.mismatch, "'\(layer.name).\(name)' is \(tensor.shape) here and \(other.tensor(name).map { "\($0.shape)" } ?? "missing") in the tuned model")
            }
        }
    }

    var layerCount: Int { targets.count }

    func changes(at index: Int) throws(PEFTError) -> LayerChanges? {
        let layer = targets[index]
        guard let difference = try difference(layer, "weight") else { return nil }
        let form = try LoRAFile.Form(layer)
        let matrix = WeightChange.Matrix.dense(try form.matrix(difference, of: layer, base.engine))
        try matrix.checkIsFinite("'\(layer.name)'")
        return LayerChanges(name: layer.name, form: form, parts: [("the tuned model", 1, WeightChange(matrix, bias: try self.difference(layer, "bias")))])
    }

    /// nil: they are equal, or there is none.
    private func difference(_ layer: any Layer, _ name: String) throws(PEFTError) -> Tensor? {
        guard let old = layer.tensor(name), let new = tuned.layer(named: layer.name)?.tensor(name) else { return nil }
        let difference = try new.converted(to: .f32, base.engine, .scratch)
        base.engine.axpby(-1, try old.converted(to: .f32, base.engine, .scratch), 1, into: difference)
        return difference.squaredNorm == 0 ? nil : difference
    }

    /// Names of tensors outside the targets that differ.
    func leftOut() throws(PEFTError) -> [String] {
        let indices = Set(targets.map(\.index))
        var names: [String] = []
        for layer in base.layers where !indices.contains(layer.index) {
            for (name, _) in layer.tensors where try difference(layer, name) != nil { names.append("\(layer.name).\(name)") }
        }
        return names
    }
}
