internal import Platform
internal import Tensors

/// Principal components of rows that come batch by batch (Ross et al., 2008; as PEFT's `incremental_pca.py` has it): the components
/// so far, weighted by their singular values, stand for the rows before, and are decomposed with the new ones,
///
///     [S·V;  X − mean(X);  √(n·k/(n+k))·(mean − mean(X))] = U·S'·V'        n rows before, k new ones
///
/// by four power iterations on a subspace of twice the count, which begins as torch's generator seeded with 42 draws it.
struct PrincipalComponents {
    let count: Int
    private(set) var seen = 0
    /// f32 `[count, features]`, of length 1; nil: nothing was seen yet.
    private(set) var components: Tensor?
    private(set) var singularValues: [Float] = []
    /// Shares of the variance of all rows.
    private(set) var shares: [Double] = []
    private var mean: [Double] = []
    /// Σ of squared distances from the mean, of all features.
    private var scatter: [Double] = []

    init(_ count: Int) { self.count = count }

    /// - Parameter x: f32 `[rows, features]`, at least `count` rows.
    /// - Returns: of each component, the cosine of the angle it was turned by; nil: these are the first.
    mutating func add(_ x: Tensor, _ engine: Engine) throws(PEFTError) -> [Double]? {
        let (rows, features) = (x.rows, x.columns)
        let values = try x.floats(engine)
        var batchMean = [Double](repeating: 0, count: features)
        for row in 0..<rows { for column in 0..<features { batchMean[column] += Double(values[row * features + column]) / Double(rows) } }
        let isFirst = components == nil
        if isFirst { (mean, scatter) = (batchMean, [Double](repeating: 0, count: features)) }
        let (before, new) = (Double(seen), Double(rows))
        var stacked: [Float] = []
        if let components {
            for (index, value) in try components.floats(engine).enumerated() { stacked.append(singularValues[index / features] * value) }
        }
        for row in 0..<rows {
            for column in 0..<features {
                let difference = Double(values[row * features + column]) - batchMean[column]
                scatter[column] += difference * difference
                stacked.append(Float(difference))
            }
        }
        if !isFirst {
            let factor = (before / (before + new) * new).squareRoot()
            for column in 0..<features {
                let difference = mean[column] - batchMean[column]
                stacked.append(Float(factor * difference))
                scatter[column] += before * new / (before + new) * difference * difference
                mean[column] = (mean[column] * before + batchMean[column] * new) / (before + new)
            }
        }
        seen += rows
        let matrix = try Tensor(engine, stacked, shape: [stacked.count / max(features, 1), features], .scratch)
        let (s, vh) = try largest(matrix, isFirst: isFirst, engine)
        let total = scatter.reduce(0, +)
        shares = s.prefix(count).map { total > 0 ? Double($0) * Double($0) / total : 0 }
        singularValues = Array(s.prefix(count))
        let found = try vh.rows(0..<min(count, vh.rows)).converted(to: .f32, engine, .adapters)
        found.makeLargestPositive()  // as in PEFT, and it matters: the random subspace sees the rows as they are
        defer { components = found }
        guard let components else { return nil }
        let (old, now) = (try components.floats(engine), try found.floats(engine))
        return (0..<found.rows).map { row in
            (row * features..<(row + 1) * features).reduce(0) { $0 + Double(old[$1]) * Double(now[$1]) }
        }
    }

    private func largest(_ matrix: Tensor, isFirst: Bool, _ engine: Engine) throws(PEFTError) -> (s: [Float], vh: Tensor) {
        let decompositions = try Decompositions(engine)
        let (m, n, q) = (matrix.rows, matrix.columns, 2 * count)
        guard q < min(m, n) else {
            let (_, s, vh) = try decompositions.singularValues(matrix)
            return (try s.floats(engine), vh)
        }
        var generator = TorchGenerator(seed: 42)
        let tall = m < n ? try matrix.transposed(engine) : matrix
        // From the second batch on PEFT computes in f64, whose random numbers are others.
        let drawn = isFirst ? generator.normal(tall.columns * q) : generator.normalDoubles(tall.columns * q).map { Float($0) }
        let start = try Tensor(engine, drawn, shape: [tall.columns, q], .scratch).transposed(engine)
        let (u, s, vh) = try decompositions.largestSingularValues(tall, start: start, power: 4)
        return (try s.floats(engine), m < n ? try u.transposed(engine) : vh)
    }
}

extension Tensor {
    /// Turns rows whose largest value is negative.
    fileprivate func makeLargestPositive() {
        let width = columns
        unsafe withMutableFloats { values in
            for start in stride(from: 0, to: values.count, by: max(width, 1)) {
                var largest: Float = 0
                for index in start..<start + width where unsafe abs(values[index]) > abs(largest) { unsafe largest = values[index] }
                if largest < 0 { for index in start..<start + width { unsafe values[index] = -values[index] } }
            }
        }
    }
}
