internal import Glibc
package import Platform
package import Tensors

// Small operations that parameters are computed with before they meet an activation.
extension Tape {
    /// `y = e^x`. Keeps `y`.
    package func exponential(_ x: Variable) throws(PEFTError) -> Variable {
        let y = try Tensor(engine, try x.value.floats(engine).map { exp($0) }, shape: x.shape).converted(to: x.value.dtype, engine)
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
            engine.parallel(1) { _, _ in
                let (a, dY) = unsafe (a.floatPointer, dY.floatPointer)
                let (l, g) = unsafe (lambda.value.floatPointer, gamma.value.floatPointer)
                for row in 0..<rank * count {
                    let (k, b) = (row / count, row % count)
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
        let picked = Tape.top(k, of: logits.value)
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
