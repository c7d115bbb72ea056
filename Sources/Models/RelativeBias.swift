internal import Glibc
internal import Platform
internal import Tensors

/// T5's relative positions in one pass: distances of query and key fall into buckets, near ones exact, far ones in steps that
/// grow with the distance, and each head has a value per bucket that is added to its scores.
package final class RelativeBias {
    /// `[buckets, heads]`
    private let values: [Float]
    private let heads: Int
    private let maximumDistance: Int
    /// Keys behind a query all count as near (a decoder sees none).
    private let isDirected: Bool
    /// All blocks of a pass ask for the same.
    private var last: (queries: Int, keys: Int, bias: DistanceBias)?

    package init(values: [Float], heads: Int, maximumDistance: Int, isDirected: Bool) {
        self.values = values
        self.heads = heads
        self.maximumDistance = maximumDistance
        self.isDirected = isDirected
    }

    func table(_ shape: AttentionShape, _ engine: Engine) throws(PEFTError) -> DistanceBias {
        if let last, last.queries == shape.queryLength, last.keys == shape.keyLength, last.bias.table.storage.isReal { return last.bias }
        let distances = DistanceBias.distances(shape)
        let buckets = distances.map { bucket($0) }
        var table: [Float] = []
        table.reserveCapacity(heads * buckets.count)
        for head in 0..<heads { table += buckets.map { values[$0 * heads + head] } }
        let bias = DistanceBias(try Tensor(engine, table, shape: [heads, buckets.count]), shape)
        last = (shape.queryLength, shape.keyLength, bias)
        return bias
    }

    /// - Parameter distance: how far the query stands behind the key.
    private func bucket(_ distance: Int) -> Int {
        var (count, first, distance) = (values.count / max(heads, 1), 0, distance)
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
