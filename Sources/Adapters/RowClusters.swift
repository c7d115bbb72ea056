internal import Tensors

/// Groups of similar rows, found by Lloyd's algorithm as scikit-learn's `KMeans(init="random", n_init=1)` runs it, with the starting
/// rows that its random state gives: PEFT's AdaMSS has its groups from there, and does not write them down.
struct RowClusters {
    /// Of each row.
    let labels: [Int]

    private let points: [Float]
    private let width: Int

    /// - Parameters:
    ///   - points: `[rows, width]`
    ///   - count: at most as many as there are rows.
    init(of points: [Float], width: Int, count: Int, iterations: Int, seed: UInt64) {
        let rows = points.count / max(width, 1)
        (self.width, self.points) = (width, RowClusters.centred(points, rows, width))
        labels = RowClusters.lloyd(self.points, rows, width, RowClusters.starts(rows, count, seed), iterations)
    }

    private static func centred(_ points: [Float], _ rows: Int, _ width: Int) -> [Float] {
        var means = [Double](repeating: 0, count: width)
        for index in points.indices { means[index % width] += Double(points[index]) / Double(max(rows, 1)) }
        return points.indices.map { points[$0] - Float(means[$0 % width]) }
    }

    /// numpy's `RandomState(seed).choice(rows, count, replace=False, p=1/rows)`: numbers from 0 to 1 into what is left.
    private static func starts(_ rows: Int, _ count: Int, _ seed: UInt64) -> [Int] {
        var generator = TorchGenerator(seed: seed)
        var found: [Int] = []
        while found.count < count {
            let left = Set(0..<rows).subtracting(found).sorted()
            for _ in 0..<count - found.count {
                let (high, low) = (generator.nextWord() >> 5, generator.nextWord() >> 6)
                let place = Int((Double(high) * 67_108_864 + Double(low)) / 9_007_199_254_740_992 * Double(left.count))
                if place < left.count, !found.contains(left[place]) { found.append(left[place]) }
            }
        }
        return found
    }

    private static func lloyd(_ points: [Float], _ rows: Int, _ width: Int, _ starts: [Int], _ iterations: Int) -> [Int] {
        let variance = points.reduce(0.0) { $0 + Double($1) * Double($1) } / Double(max(points.count, 1))
        var centres = starts.flatMap { points[$0 * width..<($0 + 1) * width].map(Double.init) }
        var labels: [Int] = []
        for _ in 0..<iterations {
            let (nearest, distances) = assigned(points, rows, width, centres)
            let moved = means(points, width, nearest, distances, count: starts.count)
            let shift = zip(moved, centres).reduce(0.0) { $0 + ($1.0 - $1.1) * ($1.0 - $1.1) }
            centres = moved
            if nearest == labels { return labels }
            labels = nearest
            if shift <= 1e-4 * variance { break }
        }
        return assigned(points, rows, width, centres).labels
    }

    /// The nearest centre of each row, and the squared distance to it.
    private static func assigned(_ points: [Float], _ rows: Int, _ width: Int, _ centres: [Double]) -> (labels: [Int], distances: [Double]) {
        var (labels, distances) = ([Int](repeating: 0, count: rows), [Double](repeating: .infinity, count: rows))
        for row in 0..<rows {
            for centre in 0..<centres.count / max(width, 1) {
                var distance = 0.0
                for column in 0..<width {
                    let difference = Double(points[row * width + column]) - centres[centre * width + column]
                    distance += difference * difference
                }
                if distance < distances[row] { (labels[row], distances[row]) = (centre, distance) }
            }
        }
        return (labels, distances)
    }

    /// A centre without rows takes the row that is farthest from its own.
    private static func means(_ points: [Float], _ width: Int, _ labels: [Int], _ distances: [Double], count: Int) -> [Double] {
        var (labels, members) = (labels, [Int](repeating: 0, count: count))
        for label in labels { members[label] += 1 }
        let far = labels.indices.sorted { distances[$0] > distances[$1] }
        for (row, empty) in zip(far, members.indices.filter { members[$0] == 0 }) where members[labels[row]] > 1 {
            members[labels[row]] -= 1
            (labels[row], members[empty]) = (empty, 1)
        }
        var sums = [Double](repeating: 0, count: count * width)
        for (row, label) in labels.enumerated() {
            for column in 0..<width { sums[label * width + column] += Double(points[row * width + column]) }
        }
        return sums.indices.map { sums[$0] / Double(max(members[$0 / max(width, 1)], 1)) }
    }
}
