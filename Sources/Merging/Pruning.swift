internal import Platform
internal import Tensors

/// What is taken out of a change before changes are added up.
enum Pruning {
    case none
    /// The values of least magnitude (TIES).
    case magnitude
    /// Any, the rest grows by 1/density (DARE, Yu et al., arXiv:2311.03099).
    case random
    /// Any, small ones more often: within each row the chance to stay rises with the rank of the magnitude from density − ε to
    /// density + ε; what stays grows by 1/chance (DELLA, Deep et al., arXiv:2406.11617).
    case ranked(epsilon: Double)
    /// The largest share γ, then the smallest (Model Breadcrumbs, Davari & Belilovsky, arXiv:2312.06795).
    case band(gamma: Double)

    /// Random numbers that are made at once.
    private static let drawn = 1 << 14

    /// Changes an f32 matrix in place. `density`: the share of values that stay.
    func callAsFunction(_ x: Tensor, density: Double, _ random: inout RandomStream) {
        var stream = random
        let columns = max(x.columns, 1)
        unsafe x.withMutableFloats { values in
            let count = Int(density * Double(values.count))
            switch self {
            case .none: break
            case .magnitude:
                var kept = unsafe Largest(UnsafeBufferPointer(values), count)
                for index in values.indices where unsafe !kept.contains(values[index]) { unsafe values[index] = 0 }
            case .random where density < 1:
                let (border, factor) = (density * 0x1p32, Float(1 / density))
                for start in stride(from: 0, to: values.count, by: Pruning.drawn) {
                    for (index, word) in stream.words(min(Pruning.drawn, values.count - start)).enumerated() {
                        unsafe values[start + index] = Double(word) < border ? values[start + index] * factor : 0
                    }
                }
            case .random: break
            case .ranked(let epsilon):
                for start in stride(from: 0, to: values.count - columns + 1, by: columns) {
                    let row = unsafe UnsafeMutableBufferPointer(rebasing: values[start..<start + columns])
                    // Magnitude and place in one number each: what is sorted is plain.
                    let order = row.indices.map { unsafe UInt64(row[$0].magnitude.bitPattern) << 32 | UInt64($0) }.sorted()
                    let words = stream.words(columns)
                    for (rank, item) in order.enumerated() {
                        let (index, chance) = (Int(item & 0xffff_ffff), density - epsilon + 2 * epsilon * Double(rank) / Double(max(columns - 1, 1)))
                        unsafe row[index] = Double(words[rank]) < chance * 0x1p32 ? row[index] * Float(1 / chance) : 0
                    }
                }
            case .band(let gamma):
                let dropped = Int(gamma * Double(values.count))
                var outer = unsafe Largest(UnsafeBufferPointer(values), dropped)
                var kept = unsafe Largest(UnsafeBufferPointer(values), min(dropped + count, values.count))
                for index in values.indices {
                    let (isOuter, isKept) = unsafe (outer.contains(values[index]), kept.contains(values[index]))
                    if isOuter || !isKept { unsafe values[index] = 0 }
                }
            }
        }
        random = stream
    }
}

/// The `count` values of largest magnitude, of equal ones the first: asked for each value once, in order.
///
/// Magnitudes are ordered as the bits of floats are, so the border is found in two histograms of 16 bits; nothing is sorted.
private struct Largest {
    private var border: UInt32 = 0
    /// How many at the border are still to come.
    private var left = 0

    init(_ values: UnsafeBufferPointer<Float>, _ count: Int) {
        var wanted = min(max(count, 0), values.count)
        border = .max
        guard wanted > 0 else { return }
        var high: UInt32 = 0
        for isHigh in [true, false] {
            var histogram = [Int](repeating: 0, count: 1 << 16)
            for unsafe value in unsafe values {
                let bits = value.magnitude.bitPattern
                if isHigh { histogram[Int(bits >> 16)] += 1 } else if bits >> 16 == high { histogram[Int(bits & 0xffff)] += 1 }
            }
            var place = histogram.count - 1
            while place > 0, histogram[place] < wanted {
                wanted -= histogram[place]
                place -= 1
            }
            if isHigh { high = UInt32(place) } else { border = high << 16 | UInt32(place) }
        }
        left = wanted
    }

    mutating func contains(_ value: Float) -> Bool {
        let bits = value.magnitude.bitPattern
        if bits != border { return bits > border }
        guard left > 0 else { return false }
        left -= 1
        return true
    }
}
