internal import Adapters
internal import Checkpoints
package import Platform
package import Tensors

/// Arithmetic with LoRA adapters in files, without their model: add, subtract, scale, prune, resize, compare.
package struct AdapterFolders {
    let engine: Engine

    package init(_ engine: Engine) { self.engine = engine }

    /// Writes the combination of adapters as a PEFT folder (a path that ends in ".h5": one HDF5 file). Of one adapter it is
    /// that adapter scaled, pruned, or with another rank.
    /// - Throws: `.notFound`, `.argument`, `.mismatch`, `.unsupported`, `.numeric`, `.cancelled`, `.io`; nothing is written then.
    package func combine(_ adapters: [(path: String, weight: Double)], to path: String, _ options: JSONObject, progress: MergeProgress? = nil) throws(PEFTError)
        -> JSONObject
    {
        let opened = try adapters.map { (item) throws(PEFTError) in (path: item.path, weight: item.weight, files: try AdapterFiles.open(path: item.path, budget: engine.budget)) }
        if let first = opened.first?.files, AdapterFolders.isCartridge(first) { return try compose(opened, to: path, options) }
        let combination = try Combination(options, count: adapters.count)
        let files = try opened.map { (item) throws(PEFTError) in try LoRAFile(item.files, engine) }
        let names = adapters.map(\.path)
        let source = try FileChanges(files, names, adapters.map(\.weight), combination)
        let rank = try combination.commonRank(files.map { LoRAFile.rank(of: $0.configuration) })
        let run = try MergeRun(source, combination, rank: rank, engine, progress)
        let others = try SavedTogether(Array(zip(names, files.map(\.others))))
        let settings = try Combination.settings(files.map(\.configuration), combination)
        let result = LoRAFile(run.modules, settings, targets: try targets(files, run.modules.map(\.name)), others: others.tensors)
        try write(result, to: path)
        return run.report
    }

    private func read(_ path: String) throws(PEFTError) -> LoRAFile { try LoRAFile(try AdapterFiles.open(path: path, budget: engine.budget), engine) }

    private func write(_ file: LoRAFile, to path: String) throws(PEFTError) {
        try write(try AdapterConfiguration(file.configuration, warn: { engine.warn($0) }).values, try file.tensors(engine), to: path)
    }

    func write(_ configuration: JSONObject, _ tensors: [NamedTensor], to path: String) throws(PEFTError) {
        if path.hasSuffix(".h5") { return try AdapterFiles.writeHDF5(path, config: configuration, tensors: tensors, budget: engine.budget) }
        try AdapterFiles.writeFolder(path, config: configuration, tensors: tensors)
    }

    /// Without the model it is not known what else a short name would match: so the names the adapters agree on, or all in full.
    private func targets(_ files: [LoRAFile], _ names: [String]) throws(PEFTError) -> [String] {
        guard let first = files.first, let list = try? first.configuration.strings("target_modules"), first.configuration["target_modules"]?.arrayValue != nil,
            files.allSatisfy({ $0.configuration["target_modules"] == first.configuration["target_modules"] && !$0.choosesLayers }),
            Set(names) == Set(first.modules.map(\.name))
        else { return names }
        return list
    }

    // MARK: Comparing

    /// How alike two adapters are, layer by layer.
    /// - Returns: as `peft_adapter_compare_files` reports it.
    package func compare(_ path: String, with other: String) throws(PEFTError) -> JSONObject {
        let (a, b) = (try read(path), try read(other))
        let others = Dictionary(b.modules.map { ($0.name, $0) }) { first, _ in first }
        var rows: [JSONValue] = []
        var (inner, squareA, squareB) = (0.0, 0.0, 0.0)
        try Decompositions.session { () throws(PEFTError) in
            for module in a.modules {
                guard let other = others[module.name] else { continue }
                let row = try LayerComparison(module, other, engine)
                rows.append(.object(row.report))
                inner += row.inner
                squareA += row.squareA
                squareB += row.squareB
            }
        }
        let (namesA, namesB) = (Set(a.modules.map(\.name)), Set(b.modules.map(\.name)))
        func list(_ names: [LoRAFile.Module], without other: Set<String>) -> JSONValue {
            .array(names.map(\.name).filter { !other.contains($0) }.map { .string($0) })
        }
        return [
            "layers": .array(rows), "cosine": .number(LayerComparison.cosine(inner, squareA, squareB)), "only_a": list(a.modules, without: namesB),
            "only_b": list(b.modules, without: namesA),
        ]
    }
}

/// Two changes of one layer.
private struct LayerComparison {
    let name: String
    let (inner, squareA, squareB): (Double, Double, Double)
    /// Of the directions that are read and written: 1 where those of the smaller lie in those of the other.
    let (overlapIn, overlapOut): (Double, Double)

    init(_ a: LoRAFile.Module, _ b: LoRAFile.Module, _ engine: Engine) throws(PEFTError) {
        let (x, y) = (a.change.matrix, b.change.matrix)
        guard x.shape == y.shape else { throw PEFTError(.mismatch, "'\(a.name)' is \(x.shape) in one adapter and \(y.shape) in the other") }
        name = a.name
        inner = try x.inner(y, engine)
        (squareA, squareB) = (try x.inner(x, engine), try y.inner(y, engine))
        let decompositions = try Decompositions(engine)
        let (u1, s1, v1) = try decompositions.directions(of: x)
        let (u2, s2, v2) = try decompositions.directions(of: y)
        let (r1, r2) = (try LayerComparison.rank(s1, engine), try LayerComparison.rank(s2, engine))
        overlapIn = try LayerComparison.overlap(try v1.rows(0..<r1), try v2.rows(0..<r2), engine)
        overlapOut = try LayerComparison.overlap(try u1.transposed(engine).rows(0..<r1), try u2.transposed(engine).rows(0..<r2), engine)
    }

    /// Directions that carry something.
    private static func rank(_ s: Tensor, _ engine: Engine) throws(PEFTError) -> Int {
        let values = try s.floats(engine)
        return values.prefix { $0 > 1e-5 * (values.first ?? 0) }.count
    }

    /// ‖X·Yᵀ‖² / min(r₁, r₂) of orthonormal rows (Grassmann similarity, as Hu et al. use it): 0 … 1.
    private static func overlap(_ x: Tensor, _ y: Tensor, _ engine: Engine) throws(PEFTError) -> Double {
        guard x.rows > 0, y.rows > 0 else { return 0 }
        let product = try Tensor(engine, [x.rows, y.rows], .f32, .scratch)
        try engine.multiply(.forward, x, y, into: product, compute: .f32)
        return product.squaredNorm / Double(min(x.rows, y.rows))
    }

    static func cosine(_ inner: Double, _ a: Double, _ b: Double) -> Double { a > 0 && b > 0 ? inner / (a.squareRoot() * b.squareRoot()) : 0 }

    var report: JSONObject {
        [
            "name": .string(name), "cosine": .number(LayerComparison.cosine(inner, squareA, squareB)), "norm_a": .number(squareA.squareRoot()),
            "norm_b": .number(squareB.squareRoot()), "overlap_in": .number(overlapIn), "overlap_out": .number(overlapOut),
        ]
    }
}

/// The changes of adapters in files.
private struct FileChanges: ChangeSource {
    private let parts: [(name: String, weight: Double, modules: [String: LoRAFile.Module])]
    private let combination: Combination
    /// In the order they are first met.
    private let names: [String]

    init(_ files: [LoRAFile], _ names: [String], _ weights: [Double], _ combination: Combination) throws(PEFTError) {
        let weights = try combination.normalized(weights)
        parts = zip(names, zip(weights, files)).map { name, rest in
            (name, rest.0, Dictionary(rest.1.modules.map { ($0.name, $0) }) { first, _ in first })
        }
        self.combination = combination
        var seen: Set<String> = []
        self.names = files.flatMap(\.modules).map(\.name).filter { seen.insert($0).inserted }
    }

    var layerCount: Int { names.count }

    func changes(at index: Int) throws(PEFTError) -> LayerChanges? {
        let name = names[index]
        let weights = try combination.weights(parts.map(\.weight), at: name)
        var result: LayerChanges?
        for (part, weight) in zip(parts, weights) {
            guard let module = part.modules[name] else { continue }
            var layer = result ?? LayerChanges(name: name, form: module.form, parts: [])
            guard layer.form == module.form else { throw PEFTError(.mismatch, "'\(name)' is another kind of layer in '\(part.name)' than in '\(parts[0].name)'") }
            layer.parts.append((part.name, weight, module.change))
            result = layer
        }
        return result
    }
}

extension LoRAFile {
    /// Its targets are not all that its names match.
    fileprivate var choosesLayers: Bool {
        ["layers_to_transform", "layers_pattern", "exclude_modules"].contains { !(configuration[$0] ?? .null).isNull }
    }
}
