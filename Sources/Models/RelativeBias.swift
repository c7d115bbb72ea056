internal import Autograd
internal import Glibc
internal import Platform
internal import Tensors

/// T5's relative positions in one pass: distances of query and key fall into buckets, near ones exact, far ones in steps that
/// grow with the distance, and each head has a value per bucket that is added to its scores.
package final class RelativeBias {
    /// f32 `[buckets, heads]`
    let values: Variable
    private let heads: Int
    private let maximumDistance: Int
    /// Keys behind a query all count as near (a decoder sees none).
    private let isDirected: Bool
    /// All blocks of a pass ask for the same.
    private var last: (queries: Int, keys: Int, bias: DistanceBias, table: Variable)?

    init(values: Variable, heads: Int, maximumDistance: Int, isDirected: Bool) {
        self.values = values
        self.heads = heads
        self.maximumDistance = maximumDistance
        self.isDirected = isDirected
    }

    /// The same on another tape (a recomputed block).
    func on(_ values: Variable) -> RelativeBias {
        RelativeBias(values: values, heads: heads, maximumDistance: maximumDistance, isDirected: isDirected)
    }

    func table(_ shape: AttentionShape, _ tape: Tape) throws(PEFTError) -> (bias: DistanceBias, table: Variable) {
        if let last, last.queries == shape.queryLength, last.keys == shape.keyLength, last.bias.table.storage.isReal { return (last.bias, last.table) }
        let buckets = DistanceBias.distances(shape).map { Int32(clamping: bucket($0)) }
        let table = try tape.turned(try tape.gatherRows(values, buckets), batch: 1, rows: buckets.count, columns: heads, shape: [heads, buckets.count])
        let bias = DistanceBias(table.value, shape)
        last = (shape.queryLength, shape.keyLength, bias, table)
        return (bias, table)
    }

    /// - Parameter distance: how far the query stands behind the key.
    private func bucket(_ distance: Int) -> Int {
        var (count, first, distance) = (values.value.rows, 0, distance)
        if isDirected {
            distance = max(distance, 0)
        } else {
            count /= 2
            if distance < 0 { first = count }
            distance = abs(distance)
        }
        let exact = count / 2
        if distance < exact { return first + distance }
        // In f32, as torch computes it.
        let step = logf(Float(distance) / Float(exact)) / Float(log(Double(maximumDistance) / Double(exact))) * Float(count - exact)
        return first + min(exact + Int(step), count - 1)
    }
}
