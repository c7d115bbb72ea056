internal import Adapters
internal import Platform
internal import Tensors

/// Told after every layer; false stops, and nothing has changed.
package typealias MergeProgress = (_ done: Int64, _ total: Int64) -> Bool

/// Where changes come from, layer by layer: a model's adapters, adapters in files, two models.
protocol ChangeSource {
    var layerCount: Int { get }
    /// nil: nothing changes this layer.
    func changes(at index: Int) throws(PEFTError) -> LayerChanges?
}

/// Combines layer by layer, one in memory at a time, and keeps what a report says.
struct MergeRun {
    private(set) var modules: [(name: String, form: LoRAFile.Form, factors: LowRank)] = []
    private var rows: [JSONValue] = []
    private var (square, lost) = (0.0, 0.0)

    /// - Parameter rank: see `Combination.factors`.
    init(_ source: any ChangeSource, _ combination: Combination, rank: Int, _ engine: Engine, _ progress: MergeProgress?) throws(PEFTError) {
        try Decompositions.session { () throws(PEFTError) in
            for index in 0..<source.layerCount {
                if let layer = try source.changes(at: index) { try add(layer, combination, rank, engine) }
                guard progress?(Int64(index + 1), Int64(source.layerCount)) ?? true else {
                    throw PEFTError(.cancelled, "combining was stopped after \(index + 1) of \(source.layerCount) layers")
                }
            }
        }
        guard !modules.isEmpty else { throw PEFTError(.argument, "there is nothing to combine: no layer is changed") }
    }

    private mutating func add(_ layer: LayerChanges, _ combination: Combination, _ rank: Int, _ engine: Engine) throws(PEFTError) {
        let factors = try combination.factors(layer, rank: rank, engine)
        try WeightChange.Matrix.product(b: factors.b, a: factors.a, scale: 1).checkIsFinite("'\(layer.name)', combined,")
        modules.append((layer.name, layer.form, factors))
        rows.append(.object([
            "name": .string(layer.name), "rank": .integer(Int64(factors.rank)), "error": .number(MergeRun.error(factors.lost, factors.square)),
        ]))
        square += factors.square
        lost += factors.lost
    }

    /// ‖change − b·a‖ / ‖change‖
    private static func error(_ lost: Double, _ square: Double) -> Double { square > 0 ? (lost / square).squareRoot() : 0 }

    var report: JSONObject {
        ["layers": .array(rows), "error": .number(MergeRun.error(lost, square)), "rank": .integer(Int64(modules.map(\.factors.rank).max() ?? 0))]
    }
}
