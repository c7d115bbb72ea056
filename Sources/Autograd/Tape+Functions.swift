internal import Glibc
package import Platform
package import Tensors

// Small operations that parameters are computed with before they meet an activation.
extension Tape {
    /// `y = e^x`. Keeps `y`.
    package func exponential(_ x: Variable) throws(PEFTError) -> Variable {
        let values = try x.value.converted(to: .f32, engine)
        unsafe values.withMutableFloats { values in
            for index in values.indices { unsafe values[index] = exp(values[index]) }
        }
        let y = x.value.dtype == .f32 ? values : try values.converted(to: x.value.dtype, engine)
        let output = result(y, of: x)
        record(output) { [engine, slot = x.slot] dY throws(PEFTError) in
            guard let slot else { return }
            let tape = Tape(engine, .f32)
            try slot.add(try tape.multiply(Variable(dY), Variable(y)).value, engine)
        }
        return output
    }

    /// RandLoRA's bases with their scales: `y[k·n + b, i] = λ[k, b]·a[k, i]·γ[b, i]`; all f32, a `[r, m]` frozen, λ `[r, n]`,
    /// γ `[n, m]`, y `[r·n, m]`.
    package func scaledBases(_ a: Tensor, _ lambda: Variable, _ gamma: Variable) throws(PEFTError) -> Variable {
        let (rank, count, m) = (a.rows, lambda.value.columns, a.columns)
        try require(
            lambda.value.rows == rank && gamma.value.rows == count && gamma.value.columns == m,
            "scaledBases: a \(a.shape), λ \(lambda.shape), γ \(gamma.shape)")
        let y = try Tensor(engine, [rank * count, m])
        engine.parallel(engine.shares(y.count)) { part, parts in
            let (a, lambda, gamma, y) = unsafe (a.floatPointer, lambda.value.floatPointer, gamma.value.floatPointer, y.floatPointer)
            for row in rank * count * Int(part) / Int(parts)..<rank * count * (Int(part) + 1) / Int(parts) {
                let (k, b) = (row / count, row % count)
                let factor = unsafe lambda[row]
                for i in 0..<m { unsafe y[row * m + i] = factor * a[k * m + i] * gamma[b * m + i] }
            }
        }
        let output = result(y, of: lambda, gamma)
        record(output) { [engine, lambda, gamma] dY throws(PEFTError) in
            let dLambda = try lambda.slot?.sum(engine), dGamma = try gamma.slot?.sum(engine)
            engine.parallel(engine.shares(dY.count)) { part, parts in  // each its bases, with all of their rows
                let (a, dY) = unsafe (a.floatPointer, dY.floatPointer)
                let (l, g) = unsafe (lambda.value.floatPointer, gamma.value.floatPointer)
                let (first, own) = (count * Int(part) / Int(parts), count * (Int(part) + 1) / Int(parts) - count * Int(part) / Int(parts))
                for index in 0..<rank * own {
                    let (k, b) = (index / own, first + index % own)
                    let row = k * count + b
                    if let dLambda {
                        var sum: Float = 0
                        for i in 0..<m { unsafe sum += dY[row * m + i] * a[k * m + i] * g[b * m + i] }
                        unsafe dLambda.floatPointer[row] += sum
                    }
                    if let dGamma {
                        let to = unsafe dGamma.floatPointer
                        let factor = unsafe l[row]
                        for i in 0..<m { unsafe to[b * m + i] += dY[row * m + i] * a[k * m + i] * factor }
                    }
                }
            }
        }
        return output
    }

    /// VB-LoRA's sub-vectors: each row of logits `[n, v]` picks its `k` largest, and their softmax weighs rows of the bank
    /// `[v, length]`; y `[n, length]`. All f32. Which are picked is a constant in the backward pass.
    package func topMixture(_ logits: Variable, _ bank: Variable, _ k: Int) throws(PEFTError) -> Variable {
        let (n, v, length) = (logits.value.rows, logits.value.columns, bank.value.columns)
        try require(k > 0 && k <= v && bank.value.rows == v, "topMixture: \(k) of \(logits.shape), bank \(bank.shape)")
        let y = try Tensor.zeros(engine, [n, length])
        // Parameters are there when planning too, the result is not.
        let picked = engine.isPlanning ? [] : Tape.top(k, of: logits.value)
        unsafe bank.value.withFloats { bank in
            unsafe y.withMutableFloats { y in
                for (row, choice) in picked.enumerated() {
                    for (index, weight) in zip(choice.indices, choice.weights) {
                        for i in 0..<length { unsafe y[row * length + i] += weight * bank[index * length + i] }
                    }
                }
            }
        }
        let output = result(y, of: logits, bank)
        record(output) { [engine, bank, slot = logits.slot] dY throws(PEFTError) in
            let dBank = try bank.slot?.sum(engine), dLogits = try slot?.sum(engine)
            engine.parallel(1) { _, _ in
                let (vectors, dY) = unsafe (bank.value.floatPointer, dY.floatPointer)
                for (row, choice) in picked.enumerated() {
                    var dots: [Float] = []
                    for (index, weight) in zip(choice.indices, choice.weights) {
                        var dot: Float = 0
                        for i in 0..<length {
                            unsafe dot += dY[row * length + i] * vectors[index * length + i]
                            if let dBank { unsafe dBank.floatPointer[index * length + i] += weight * dY[row * length + i] }
                        }
                        dots.append(dot)
                    }
                    guard let dLogits else { continue }
                    let mean = zip(dots, choice.weights).reduce(0) { $0 + $1.0 * $1.1 }
                    for place in choice.indices.indices {
                        unsafe dLogits.floatPointer[row * v + choice.indices[place]] += choice.weights[place] * (dots[place] - mean)
                    }
                }
            }
        }
        return output
    }

    /// Of each row of f32 logits the `k` largest, and the softmax over them; nothing when planning.
    package static func top(_ k: Int, of logits: Tensor) -> [(indices: [Int], weights: [Float])] {
        let v = logits.columns
        guard k > 0, k <= v else { return [] }
        return unsafe logits.withFloats { values in
            (0..<values.count / v).map { unsafe softmax(of: k, UnsafeBufferPointer(rebasing: values[$0 * v..<($0 + 1) * v])) }
        }
    }

    /// The `k` largest values' places, largest first (of equals the first), and the softmax over them.
    private static func softmax(of k: Int, _ values: UnsafeBufferPointer<Float>) -> (indices: [Int], weights: [Float]) {
        var indices: [Int] = []
        for index in values.indices {
            let value = unsafe values[index]
            if indices.count == k, unsafe !(value > values[indices[k - 1]]) { continue }
            let place = indices.firstIndex { unsafe value > values[$0] } ?? indices.count
            indices.insert(index, at: place)
            if indices.count > k { indices.removeLast() }
        }
        let largest = unsafe values[indices[0]]
        let powers = indices.map { unsafe exp(values[$0] - largest) }
        let sum = powers.reduce(0, +)
        return (indices, powers.map { $0 / sum })
    }
}

extension Tape {
    /// The softmax of each row, and their mean: `[rows, n]` to `[1, n]`, f32. Keeps the softmax.
    package func meanSoftmax(_ x: Variable) throws(PEFTError) -> Variable {
        let (rows, n) = (x.value.rows, x.value.columns)
        let shares = try Tensor(engine, [rows, n]), y = try Tensor.zeros(engine, [1, n])
        unsafe x.value.withFloats { x in
            unsafe shares.withMutableFloats { shares in
                unsafe y.withMutableFloats { y in
                    for row in 0..<x.count / max(n, 1) {
                        var (largest, sum) = (-Float.infinity, Float(0))
                        for i in 0..<n { unsafe largest = max(largest, x[row * n + i]) }
                        for i in 0..<n {
                            unsafe shares[row * n + i] = exp(x[row * n + i] - largest)
                            unsafe sum += shares[row * n + i]
                        }
                        for i in 0..<n {
                            unsafe shares[row * n + i] /= sum
                            unsafe y[i] += shares[row * n + i] / Float(rows)
                        }
                    }
                }
            }
        }
        let output = result(y, of: x)
        record(output) { [engine, slot = x.slot] dY throws(PEFTError) in
            guard let slot else { return }
            let dX = try Tensor(engine, [rows, n])
            unsafe shares.withFloats { shares in
                unsafe dY.withFloats { dY in
                    unsafe dX.withMutableFloats { dX in
                        for row in 0..<shares.count / max(n, 1) {
                            var mean: Float = 0
                            for i in 0..<n { unsafe mean += shares[row * n + i] * dY[i] }
                            for i in 0..<n { unsafe dX[row * n + i] = shares[row * n + i] * (dY[i] - mean) / Float(rows) }
                        }
                    }
                }
            }
            try slot.add(dX, engine)
        }
        return output
    }

    /// `x` itself; its gradient keeps only what lies in the span of `basis` (or outside, `isComplement`), whose vectors are
    /// orthonormal: columns of `[rows of x, k]` from the left, rows of `[k, columns of x]` from the right. All f32.
    package func confined(_ x: Variable, to basis: Tensor, isComplement: Bool, fromLeft: Bool) throws(PEFTError) -> Variable {
        let output = result(x.value, of: x)
        record(output) { [engine, slot = x.slot] dY throws(PEFTError) in
            guard let slot else { return }
            let k = fromLeft ? basis.columns : basis.rows
            let inside = try Tensor(engine, fromLeft ? [k, dY.columns] : [dY.rows, k])
            let part = try Tensor(engine, dY.shape)
            if fromLeft {
                try engine.multiply(.weightGradient, basis, dY, into: inside, compute: .f32)
                try engine.multiply(.inputGradient, basis, inside, into: part, compute: .f32)
            } else {
                try engine.multiply(.forward, dY, basis, into: inside, compute: .f32)
                try engine.multiply(.inputGradient, inside, basis, into: part, compute: .f32)
            }
            guard isComplement else { return try slot.add(part, engine) }
            try slot.add(dY, engine)
            try slot.add(-1, times: part, engine)
        }
        return output
    }

    /// Q of `x = Q·R` `[n, k]`, n ≥ k, by Householder's reflections, with LAPACK's signs. With the lower half of `M = −dQᵀ·Q`
    /// mirrored, `dX = (dQ + Q·M)·R⁻ᵀ`. f32, for few columns.
    package func orthonormalized(_ x: Variable) throws(PEFTError) -> Variable {
        let (n, k) = (x.value.rows, x.value.columns)
        try require(n >= k && x.value.dtype == .f32, "orthonormalized: \(x.shape)")
        let parts = Orthonormal(try x.value.floats(engine), n, k)
        let output = result(try Tensor(engine, engine.isPlanning ? [Float](repeating: 0, count: n * k) : parts.q, shape: [n, k]), of: x)
        record(output) { [engine, slot = x.slot] dY throws(PEFTError) in
            guard let slot, !engine.isPlanning else { return }
            try slot.add(try Tensor(engine, parts.gradient(try dY.floats(engine)), shape: [n, k]), engine)
        }
        return output
    }
}

/// The QR factors of a matrix of few columns.
private struct Orthonormal {
    let n: Int
    let k: Int
    private(set) var q: [Float] = []
    private var r: [Double] = []

    init(_ x: [Float], _ n: Int, _ k: Int) {
        (self.n, self.k) = (n, k)
        guard x.count == n * k else { return }
        var a = x.map(Double.init)
        var vectors: [[Double]] = []
        func reflect(_ v: [Double], _ first: Int, _ a: inout [Double]) {
            for column in 0..<k {
                var dot = 0.0
                for row in first..<n { dot += v[row] * a[row * k + column] }
                for row in first..<n { a[row * k + column] -= 2 * dot * v[row] }
            }
        }
        for column in 0..<k {
            var v = (0..<n).map { $0 < column ? 0 : a[$0 * k + column] }
            // Nothing below the diagonal, as in the last column of a square: nothing to reflect, and no change of sign.
            guard v.dropFirst(column + 1).contains(where: { $0 != 0 }) else {
                vectors.append([Double](repeating: 0, count: n))
                continue
            }
            let norm = v.reduce(0) { $0 + $1 * $1 }.squareRoot()
            v[column] += v[column] < 0 ? -norm : norm
            let length = v.reduce(0) { $0 + $1 * $1 }.squareRoot()
            v = v.map { $0 / length }
            reflect(v, column, &a)
            vectors.append(v)
        }
        r = (0..<k * k).map { $0 % k >= $0 / k ? a[$0] : 0 }
        var basis = (0..<n * k).map { $0 / k == $0 % k ? 1.0 : 0.0 }
        for column in (0..<k).reversed() { reflect(vectors[column], column, &basis) }
        q = basis.map { Float($0) }
    }

    func gradient(_ dQ: [Float]) -> [Float] {
        var m = [Double](repeating: 0, count: k * k)
        for i in 0..<k {
            for j in 0...i {
                var dot = 0.0
                for row in 0..<n { dot -= Double(dQ[row * k + i]) * Double(q[row * k + j]) }
                m[i * k + j] = dot
                m[j * k + i] = dot
            }
        }
        var result = [Float](repeating: 0, count: n * k)
        for row in 0..<n {
            // One row of dX·Rᵀ = dQ + Q·M, from the last column on.
            var line = (0..<k).map { column in
                (0..<k).reduce(Double(dQ[row * k + column])) { $0 + Double(q[row * k + $1]) * m[$1 * k + column] }
            }
            for column in (0..<k).reversed() {
                for other in column + 1..<max(k, column + 1) { line[column] -= line[other] * r[column * k + other] }
                line[column] = r[column * k + column] == 0 ? 0 : line[column] / r[column * k + column]
                result[row * k + column] = Float(line[column])
            }
        }
        return result
    }
}
