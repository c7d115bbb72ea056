internal import Autograd
package import Models
package import Platform
internal import Tensors

/// AdaMSS: the rows of a weight in groups of similar ones, each with a change of very low rank in a subspace that all share,
///
///     [W | b] ≈ U·S·P    rows of U in K groups G_i    y[G_i] += B_i·A_i·P·[x; 1]        P [r, in(+1)]   A_i [ρ_i, r]   B_i [|G_i|, ρ_i]
///
/// P is frozen and in the file (`newB`); which rows a group has is not in PEFT's. It is kept beside it (`adamss_rows`), or found again
/// as PEFT does: by the same randomised decomposition and the same k-means (`RowClusters`).
package struct AdaMSS: AdapterMethod {
    package static let peftType = "ADAMSS"
    package static let layerKinds = ["Linear"]
    package static let defaults: JSONObject = [
        "asa_importance_beta": .number(0.85), "asa_schedule_exponent": .number(3), "asa_target_subspaces": .integer(50), "asa_uncertainty_beta": .number(0.85),
        "final_warmup": .integer(1000), "init_warmup": .integer(50), "init_weights": .string("orthogonal"), "layers_pattern": .null,
        "layers_to_transform": .null, "mask_interval": .integer(100), "modules_to_save": .null, "num_subspaces": .integer(5), "r": .integer(100),
        "random_seed": .integer(0), "subspace_rank": .integer(1), "svd_threshold": .number(0.1), "target_modules": .null, "use_asa": .bool(false),
        "use_dynamic_rank": .bool(false),
    ]
    package static var defaultTargets: [String: JSONValue] { DefaultTargets.lora.with((["query", "value"], ["vit"])) }

    fileprivate let rank: Int
    fileprivate let count: Int
    fileprivate let subspaceRank: Int
    /// nil: ranks are fixed.
    fileprivate let threshold: Float?
    fileprivate let seed: UInt64
    fileprivate let isNeutral: Bool
    private let schedule: SubspaceSchedule?
    /// Of the file's tensors.
    private let shapes: [String: [Int]]
    /// Of layers whose groups no file says.
    private var starts: [Int: AdaMSSStart] = [:]

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        rank = try configuration.positive("r")
        count = try configuration.positive("num_subspaces")
        subspaceRank = try configuration.positive("subspace_rank")
        let share = Float(try configuration.number("svd_threshold"))
        threshold = try configuration.flag("use_dynamic_rank") ? share : nil
        seed = try configuration.seed("random_seed")
        isNeutral = configuration.isSet("init_weights")
        if isNeutral { _ = try configuration.choice("init_weights", ["orthogonal"]) }
        schedule = try SubspaceSchedule(configuration)
        shapes = configuration.shapes
    }

    package mutating func prepare(for targets: [any Layer], _ configuration: inout AdapterConfiguration, _ model: Model) throws(PEFTError) {
        let unknown = targets.filter { sizes(of: $0) == nil }
        guard !unknown.isEmpty else { return }
        starts = try Decompositions.session { () throws(PEFTError) in
            var starts: [Int: AdaMSSStart] = [:]
            for layer in unknown { starts[layer.index] = try AdaMSSStart(AdaMSS.linear(layer), self, model.engine) }
            return starts
        }
    }

    /// Rows and rank of each group, as the file's B have them.
    private func sizes(of layer: any Layer) -> [AdaMSSStart.Size]? {
        guard let linear = layer as? Linear else { return nil }
        let found = (0..<min(count, linear.outputSize)).compactMap { shapes["\(Adapter.prefix)\(layer.name).adamss_B.\($0)"] }
        guard found.allSatisfy({ $0.count == 2 && $0[0] > 0 && 1...subspaceRank ~= $0[1] }), found.reduce(0, { $0 + $1[0] }) == linear.outputSize else { return nil }
        return found.map { AdaMSSStart.Size(rows: $0[0], rank: $0[1]) }
    }

    package func module(for layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule {
        let start = starts[layer.index]
        guard let sizes = start?.sizes ?? sizes(of: layer) else { throw PEFTError(.internal, "ADAMSS: no groups") }
        return try AdaMSSLinear(AdaMSS.linear(layer), key: key, sizes, start, self, model)
    }

    package func companion(of modules: [any AdapterModule], _ model: Model) throws(PEFTError) -> (any AdapterCompanion)? {
        guard let schedule else { return nil }
        return try SubspaceAllocator(modules.compactMap { ($0 as? AdaMSSLinear)?.pairs }.flatMap { $0 }, schedule, model.engine)
    }
}

/// What a weight gives: its subspace, the groups of its rows, where each group's A begins.
private struct AdaMSSStart: Sendable {
    struct Size: Equatable {
        let rows: Int
        let rank: Int
    }

    /// f32 `[r, in(+1)]`
    let projection: [Float]
    /// Those of the first group, then of the second, …
    let rows: [Int32]
    let sizes: [Size]
    /// `[ρ, r]` of each group
    let a: [[Float]]

    init(_ linear: Linear, _ settings: AdaMSS, _ engine: Engine) throws(PEFTError) {
        var w = try linear.weight.converted(to: .f32, engine, .scratch)
        if let bias = linear.bias {
            let wide = try Tensor(engine, [w.rows, w.columns + 1], .f32, .scratch)
            wide.copyColumns(of: w, at: 0)
            wide.copyColumns(of: try bias.reshaped([w.rows, 1]), at: w.columns)
            w = wide
        }
        let (outputs, inputs) = (w.rows, w.columns)
        let rank = min(settings.rank, outputs, inputs)
        // torch.svd_lowrank(w, q=rank, niter=2), which takes the tall side
        let isTall = outputs >= inputs
        var generator = TorchGenerator(seed: settings.seed)
        let start = try Tensor(engine, generator.normal(min(outputs, inputs) * rank), shape: [min(outputs, inputs), rank]).transposed(engine)
        let decompositions = try Decompositions(engine)
        let parts = try decompositions.largestSingularValues(isTall ? w : try w.transposed(engine), start: start, power: 2)
        let left = try (isTall ? parts.u : try parts.vh.transposed(engine)).floats(engine)
        projection = try (isTall ? parts.vh : try parts.u.transposed(engine)).floats(engine)

        let count = min(settings.count, outputs)
        let labels = RowClusters(of: left, width: rank, count: count, iterations: 10, seed: 123_456_789).labels
        var (rows, sizes, a): ([Int32], [Size], [[Float]]) = ([], [], [])
        for group in 0..<count {
            let members = labels.indices.filter { labels[$0] == group }
            guard !members.isEmpty else { throw PEFTError(.numeric, "'\(linear.name)': its rows do not fall into \(count) groups; num_subspaces must be lower") }
            // A: the group's own right singular vectors
            let own = try Tensor(engine, members.flatMap { left[$0 * rank..<($0 + 1) * rank] }, shape: [members.count, rank])
            let (_, s, vh) = try decompositions.singularValues(own)
            let squares = try s.floats(engine).map { $0 * $0 }
            let above = settings.threshold.map { share in squares.count { $0 > share * (squares.first ?? 0) } } ?? members.count
            let kept = max(min(above, settings.subspaceRank, squares.count), 1)
            rows += members.map { Int32(truncatingIfNeeded: $0) }
            sizes.append(Size(rows: members.count, rank: kept))
            a.append(Array(try vh.floats(engine).prefix(kept * rank)))
        }
        (self.rows, self.sizes, self.a) = (rows, sizes, a)
    }
}

private final class AdaMSSLinear: LinearBranch {
    let linear: Linear
    let pairs: [(a: Parameter, b: Parameter)]
    private let projection: Parameter
    /// The output of each row of all B below each other.
    private let rows: IndexTable
    private let places: [ColumnMap]
    private let settings: AdaMSS
    private let engine: Engine

    init(_ linear: Linear, key: String, _ sizes: [AdaMSSStart.Size], _ start: AdaMSSStart?, _ settings: AdaMSS, _ model: Model) throws(PEFTError) {
        (self.linear, self.settings, engine) = (linear, settings, model.engine)
        let (outputs, inputs) = (linear.outputSize, linear.inputSize + (linear.bias == nil ? 0 : 1))
        let rank = min(settings.rank, outputs, inputs)
        projection = try model.parameter(key + ".adamss_newB", [rank, inputs], isTrainable: false)
        let total = sizes.reduce(0) { $0 + $1.rank }
        var (pairs, places, first): ([(a: Parameter, b: Parameter)], [ColumnMap], Int) = ([], [], 0)
        for (index, size) in sizes.enumerated() {
            pairs.append((try model.parameter("\(key).adamss_A.\(index)", [size.rank, rank]), try model.parameter("\(key).adamss_B.\(index)", [size.rows, size.rank])))
            places.append(try ColumnMap(model.engine, Array(first..<first + size.rank), of: total))
            first += size.rank
        }
        (self.pairs, self.places) = (pairs, places)
        rows = IndexTable(
            key: key + ".adamss_rows", shape: [outputs], as: .i64, below: outputs, start?.rows ?? (0..<outputs).map { Int32(truncatingIfNeeded: $0) })
        guard let start else { return }
        projection.value.set(start.projection)
        for (pair, a) in zip(pairs, start.a) { pair.a.value.set(a) }
    }

    let isLowRank = true
    var parameters: [Parameter] { pairs.map(\.a) + pairs.map(\.b) + [projection] }
    var derived: [SavedTensor] { [SavedTensor(rows)] }

    /// The groups of a file that does not say which rows they have.
    func derive() throws(PEFTError) {
        let start = try AdaMSSStart(linear, settings, engine)
        guard start.sizes.map(\.rows) == pairs.map(\.b.value.rows) else {
            throw PEFTError(
                .mismatch,
                "'\(rows.key)' is not there, and the groups of rows found in the base weights have \(start.sizes.map(\.rows)) rows, those of the file \(pairs.map(\.b.value.rows)): are these the weights it was trained over?"
            )
        }
        rows.set(start.rows)
    }

    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        var random = random
        if !settings.isNeutral { for pair in pairs { pair.b.value.fillNormal(0.01, &random) } }
        return [:]
    }

    /// As LoRA of rank Σρ: A below each other times P, B beside each other with its rows where they belong.
    func add(to y: consuming Variable, input x: Variable, beside w: Tensor, scale: Float, _ tape: Tape) throws(PEFTError) -> Variable {
        let inner = try tape.linear(try tape.concatenateRows(pairs.map { tape.variable($0.a) }), Variable(projection.value), transposed: true)
        let stacked = try tape.concatenateRows(try zip(pairs, places).map { (pair, places) throws(PEFTError) in
            try tape.scatterColumns(tape.variable(pair.b), places)
        })
        let outer = try tape.gatherRows(stacked, try inverse())
        guard linear.bias != nil else { return try tape.addLowRank(to: y, input: x, a: inner, b: outer, scale: scale) }
        let parts = try tape.splitColumns(inner, [linear.inputSize, 1])
        let sum = try tape.addLowRank(to: y, input: x, a: parts[0], b: outer, scale: scale)
        let shift = try tape.linear(outer, try tape.reshaped(parts[1], [1, parts[1].value.count]))
        return try tape.scaleColumns(sum, scale: nil, shift: try tape.scaled(try tape.reshaped(shift, [linear.outputSize]), by: scale))
    }

    /// Where in the stack an output's row is.
    private func inverse() throws(PEFTError) -> [Int32] {
        var places = [Int32](repeating: -1, count: linear.outputSize)
        for (place, row) in rows.values.enumerated() { places[Int(row)] = Int32(truncatingIfNeeded: place) }
        guard !places.contains(-1) else { throw PEFTError(.mismatch, "'\(rows.key)' names a row twice; each of \(places.count) belongs to one group") }
        return places
    }
}
