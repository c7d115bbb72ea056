internal import Autograd
internal import Models
internal import Platform
internal import Quantization
internal import Tensors

/// New weights for all layers that adapters are folded into; nothing of the model is changed while they are made.
struct WeightMerge {
    /// How much of the change of one layer is in its new weights.
    struct Report {
        let name: String
        /// ⟨wanted, made⟩ and ⟨wanted, wanted⟩ of the changes, over the layer's tensors.
        var product = 0.0
        var square = 0.0

        /// The share of the wanted change's norm that the made change has in its direction: 1 for f32; what rounding to few
        /// bits swallows is missing.
        var kept: Double { square > 0 ? min(max(product / square, 0), 1) : 1 }
    }

    private(set) var changes: [BaseChange] = []
    private(set) var reports: [Report] = []
    /// What quantised weights do not hold of what was wanted, as factors; empty where nobody asked.
    private(set) var residue: [(name: String, form: LoRAFile.Form, factors: LowRank)] = []
    /// ⟨wanted, residue⟩ of all layers.
    private var residueProduct = 0.0
    private let residueRank: RankChoice?
    private let model: Model
    private let originals: [Int: [String: Tensor]]
    private let isSafe: Bool
    private let dtype: DType?

    /// - Parameters:
    ///   - adapters: with the scale each acts with, in the order they act.
    ///   - originals: by layer, what it had before adapters that are merged already.
    ///   - isSafe: values that are not finite are an error. They always are where weights are quantised again.
    ///   - dtype: what quantised weights become; nil: what they are.
    ///   - residueRank: how much of what they do not hold is kept in `residue`; nil: nothing.
    /// - Throws: `.numeric`, `.unsupported` naming the layer.
    init(
        _ adapters: [(adapter: Adapter, scale: Float)], originals: [Int: [String: Tensor]], isSafe: Bool,
        as dtype: DType?, residueRank: RankChoice? = nil, _ model: Model
    ) throws(PEFTError) {
        (self.model, self.originals, self.isSafe, self.dtype, self.residueRank) = (model, originals, isSafe, dtype, residueRank)
        if adapters.contains(where: { $0.adapter.replication != nil }) {
            throw PEFTError(
                .unsupported, "an adapter with layer_replication cannot be merged: its copies share the base weights")
        }
        try Decompositions.session { () throws(PEFTError) in
            for layer in model.layers { try merge(adapters, into: layer) }
        }
    }

    var report: JSONObject {
        var report: JSONObject = [
            "layers": .array(reports.map { .object(["name": .string($0.name), "kept": .number($0.kept)]) }),
            "kept": .number(total.kept),
        ]
        if residueRank != nil {
            var both = total
            both.product += residueProduct
            report["kept_with_residue"] = .number(both.kept)
        }
        return report
    }

    /// Of all layers together.
    private var total: Report {
        var all = Report(name: "")
        for report in reports {
            all.product += report.product
            all.square += report.square
        }
        return all
    }

    var kept: Double { total.kept }

    private mutating func merge(_ adapters: [(adapter: Adapter, scale: Float)], into layer: any Layer) throws(PEFTError)
    {
        var start: [String: Tensor] = [:]
        var work: [(module: any AdapterModule, scale: Float)] = []
        for (adapter, scale) in adapters {
            for own in adapter.replacements where own.layer.index == layer.index && own.reason != .savedModule {
                if own.tensor == "weight" { try checkTie(of: layer, in: adapter) }
                start[own.tensor] = try own.parameter.value.converted(to: .f32, model.engine, .scratch)
            }
            for module in adapter.modules where module.layer.index == layer.index && !module.isTwin {
                try checkTie(of: module.layer, in: adapter)
                work.append((module, scale))
            }
        }
        guard !work.isEmpty || !start.isEmpty else { return }
        var weights = FoldedWeights(layer, originals: originals[layer.index] ?? [:], start: start, model.engine)
        for item in work { try item.module.fold(into: &weights, scale: item.scale) }
        var report = Report(name: layer.name)
        for (name, folded) in weights.tensors.sorted(by: { $0.key < $1.key }) {
            guard let present = layer.tensor(name) else { continue }
            changes.append(
                BaseChange(
                    layer: layer, tensor: name,
                    value: try encoded(folded, like: present, "\(layer.name).\(name)", &report, layer)))
        }
        reports.append(report)
    }

    /// A matrix that is embedding and head at once can only be changed by what acts alike on both.
    private func checkTie(of layer: any Layer, in adapter: Adapter) throws(PEFTError) {
        let tied = model.layers.compactMap { $0 as? Linear }.first { head in
            guard let embedding = head.tiedEmbedding else { return false }
            return head.index == layer.index || embedding.index == layer.index
        }
        guard let tied, !adapter.modules.contains(where: { $0.isTwin && $0.layer.index == tied.index }) else { return }
        throw PEFTError(
            .unsupported,
            "'\(layer.name)' cannot be merged: embedding and head of this model are one matrix, and the adapter acts on one of them (see ensure_weight_tying)"
        )
    }

    /// - Parameter layer: whose weight it is.
    private mutating func encoded(_ folded: Tensor, like present: Tensor, _ name: String, _ report: inout Report, _ layer: any Layer)
        throws(PEFTError) -> Tensor
    {
        let engine = model.engine
        let before = try present.converted(to: .f32, engine, .scratch)
        let after = try folded.encoded(
            as: present.dtype.isQuantized ? dtype ?? present.dtype : present.dtype, scaling: present.scaling, engine, .weights)
        let made = try after.converted(to: .f32, engine, .scratch)
        let isFinite = unsafe before.withFloats { before in
            unsafe folded.withFloats { folded in
                unsafe made.withFloats { made in
                    var isFinite = true
                    for index in 0..<min(before.count, folded.count, made.count) {
                        let wanted = unsafe Double(folded[index]) - Double(before[index])
                        unsafe report.product += wanted * (Double(made[index]) - Double(before[index]))
                        report.square += wanted * wanted
                        if unsafe !folded[index].isFinite || !made[index].isFinite { isFinite = false }
                    }
                    return isFinite
                }
            }
        }
        guard isFinite || (!isSafe && !after.dtype.isQuantized) else {
            throw PEFTError(
                .numeric,
                "merging '\(name)' gives values that are not finite (NaN or beyond the range of \(after.dtype.name)); nothing was merged"
            )
        }
        if after.dtype.isQuantized, let residueRank {
            try keepResidue(of: layer, before, folded, made, residueRank)
        }
        return after
    }

    /// The factors nearest to what is missing.
    private mutating func keepResidue(of layer: any Layer, _ before: Tensor, _ folded: Tensor, _ made: Tensor, _ rank: RankChoice) throws(PEFTError) {
        let (engine, form) = (model.engine, try LoRAFile.Form(layer))
        let missing = try folded.converted(to: .f32, engine, .scratch)
        engine.axpby(-1, made, 1, into: missing)
        if missing.squaredNorm == 0 { return }
        let factors = try Decompositions(engine).lowRank(.dense(try form.matrix(missing, of: layer, engine)), rank)
        residue.append((layer.name, form, factors))
        let wanted = try folded.converted(to: .f32, engine, .scratch)
        engine.axpby(-1, before, 1, into: wanted)
        residueProduct += try form.matrix(wanted, of: layer, engine).inner(WeightChange.Matrix.product(b: factors.b, a: factors.a, scale: 1).dense(engine))
    }
}
