internal import Adapters
internal import Glibc
internal import Platform
internal import Tensors

/// The change of one layer that several adapters make, with the weight of each.
struct LayerChanges {
    let name: String
    let form: LoRAFile.Form
    var parts: [(adapter: String, weight: Double, change: WeightChange)]
}

extension Combination {
    /// What the layer's new factors are.
    /// - Parameter rank: of all layers together: of the sum for `cat`, else the largest.
    func factors(_ layer: LayerChanges, rank: Int, _ engine: Engine) throws(PEFTError) -> LowRank {
        guard let first = layer.parts.first else { throw PEFTError(.internal, "nothing changes '\(layer.name)'") }
        for part in layer.parts where part.change.matrix.shape != first.change.matrix.shape {
            throw PEFTError(
                .mismatch,
                "'\(layer.name)' is \(first.change.matrix.shape) for '\(first.adapter)' and \(part.change.matrix.shape) for '\(part.adapter)'; they are for different base models")
        }
        var result: LowRank
        switch space {
        case .factors: result = try combinedFactors(layer, engine)
        case .concatenated: result = try concatenated(try products(layer).map { ($0.b, $0.a, $0.weight * $0.scale) }, engine).padded(to: rank, engine)
        case .changes, .arc:
            let choice = self.rank ?? .fixed(rank)
            let sum = try sum(layer, engine)
            result = try Decompositions(engine).lowRank(sum, choice)
            if case .fixed(let rank) = choice { result = try result.padded(to: rank, engine) }
            if let clamp {
                result.clamp(at: clamp)
                let made = WeightChange.Matrix.product(b: result.b, a: result.a, scale: 1)
                result.lost = max(result.square - 2 * (try sum.inner(made, engine)) + (try made.inner(made, engine)), 0)
            }
        }
        result.bias = try bias(layer, engine)
        return result
    }

    /// Σ wᵢ·biasᵢ; nil where there is none.
    private func bias(_ layer: LayerChanges, _ engine: Engine) throws(PEFTError) -> Tensor? {
        let weights = space == .arc ? try arc(layer, engine) : layer.parts.map(\.weight)
        var sum: Tensor?
        for (part, weight) in zip(layer.parts, weights) {
            guard let bias = part.change.bias else { continue }
            let total = if let sum { sum } else { try Tensor.zeros(engine, bias.shape, .f32, .scratch) }
            engine.axpby(Float(weight), bias, 1, into: total)
            sum = total
        }
        return sum
    }

    // MARK: Factors

    private typealias Product = (b: Tensor, a: Tensor, scale: Double, weight: Double)

    private func products(_ layer: LayerChanges) throws(PEFTError) -> [Product] {
        try layer.parts.map { (part) throws(PEFTError) in
            guard case .product(let b, let a, let scale) = part.change.matrix else {
                throw PEFTError(
                    .unsupported,
                    "'\(part.adapter)' has no factors at '\(layer.name)' that '\(name)' could combine; svd, ties_svd and others that work on the whole change can")
            }
            return (b, a, scale, part.weight)
        }
    }

    private func combinedFactors(_ layer: LayerChanges, _ engine: Engine) throws(PEFTError) -> LowRank {
        let products = try products(layer)
        let rank = products.first?.a.rows ?? 0
        if let other = products.first(where: { $0.a.rows != rank }) {
            throw PEFTError(
                .argument, "the adapters have ranks \(rank) and \(other.a.rows) at '\(layer.name)'; \(name) needs one rank (cat and the _svd types do not)")
        }
        let roots = products.map { abs($0.weight * $0.scale).squareRoot() }
        let signed = zip(products, roots).map { $0.weight * $0.scale < 0 ? -$1 : $1 }
        let names = layer.parts.map(\.adapter)
        return LowRank(
            b: try mixed(products.map(\.b), roots, layer.name + ".B", names, engine),
            a: try mixed(products.map(\.a), signed, layer.name + ".A", names, engine))
    }

    private func concatenated(_ products: [(b: Tensor, a: Tensor, scale: Double)], _ engine: Engine) throws(PEFTError) -> LowRank {
        let rank = products.reduce(0) { $0 + $1.a.rows }
        guard let first = products.first else { throw PEFTError(.internal, "nothing to concatenate") }
        let result = LowRank(b: try Tensor(engine, [first.b.rows, rank], .f32, .scratch), a: try Tensor(engine, [rank, first.a.columns], .f32, .scratch))
        var start = 0
        for product in products {
            result.b.copyColumns(of: product.b, at: start)
            engine.axpby(Float(product.scale), product.a, 0, into: try result.a.rows(start..<start + product.a.rows))
            start += product.a.rows
        }
        return result
    }

    // MARK: Changes

    /// What the combination defines before its rank is cut.
    private func sum(_ layer: LayerChanges, _ engine: Engine) throws(PEFTError) -> WeightChange.Matrix {
        let weights = space == .arc ? try arc(layer, engine) : layer.parts.map(\.weight)
        let products = layer.parts.compactMap { part in if case .product(let b, let a, let scale) = part.change.matrix { (b, a, scale) } else { nil } }
        if case .none = pruning, election == .none, products.count == layer.parts.count {
            let together = try concatenated(zip(products, weights).map { ($0.0, $0.1, $0.2 * $1) }, engine)
            return .product(b: together.b, a: together.a, scale: 1)
        }
        let dense = try layer.parts.map { (part) throws(PEFTError) in try part.change.matrix.dense(engine) }
        return .dense(try mixed(dense, weights, layer.name, layer.parts.map(\.adapter), engine, areOwn: true))
    }

    /// Prunes, elects, and adds up: Σ wᵢ·pᵢ, or with an election of signs, each value being the mean of those that agree with it,
    ///
    ///     σ = sgn Σ pᵢ (total) or sgn Σ sgn pᵢ (frequency), 0 counting as +    Σ wᵢ·pᵢ·[sgn pᵢ = σ] / max(1, Σ [sgn pᵢ = σ])
    private func mixed(_ tensors: [Tensor], _ weights: [Double], _ place: String, _ names: [String], _ engine: Engine, areOwn: Bool = false)
        throws(PEFTError) -> Tensor
    {
        var pruned = tensors
        if case .none = pruning {} else {
            for (index, name) in names.enumerated() {
                if !areOwn { pruned[index] = try tensors[index].converted(to: .f32, engine, .scratch) }
                var random = RandomStream(seed: seed, purpose: "\(place)|\(name)")
                pruning(pruned[index], density: density, &random)
            }
        }
        let result = try Tensor.zeros(engine, tensors[0].shape, .f32, .scratch)
        if election == .none {
            for (tensor, weight) in zip(pruned, weights) { engine.axpby(Float(weight), tensor, 1, into: result) }
            return result
        }
        let votes = try Tensor.zeros(engine, result.shape, .f32, .scratch)
        for tensor in pruned { votes.vote(tensor, isTotal: election == .total) }
        let counts = try Tensor.zeros(engine, result.shape, .f32, .scratch)
        for (tensor, weight) in zip(pruned, weights) { result.addAgreeing(tensor, weight: Float(weight), votes, counts) }
        result.divide(byCounts: counts)
        return result
    }

    /// Coefficients of the arc from ΔW₁ to ΔW₂ at t = w₂/(w₁ + w₂), Ω being the angle between them:
    ///
    ///     sin((1 − t)·Ω)/sin Ω    sin(t·Ω)/sin Ω        (1 − t, t where they are parallel)
    private func arc(_ layer: LayerChanges, _ engine: Engine) throws(PEFTError) -> [Double] {
        // A layer that one of them leaves alone has the other's share: there is no angle to nothing.
        guard layer.parts.count == 2 else { return layer.parts.map(\.weight) }
        let total = layer.parts.reduce(0) { $0 + $1.weight }
        guard total != 0 else { throw PEFTError(.argument, "the weights of slerp add up to 0 at '\(layer.name)'") }
        let t = layer.parts[1].weight / total
        let (first, second) = (layer.parts[0].change.matrix, layer.parts[1].change.matrix)
        let norms = try first.inner(first, engine).squareRoot() * second.inner(second, engine).squareRoot()
        let cosine = norms > 0 ? min(max(try first.inner(second, engine) / norms, -1), 1) : 1
        let angle = acos(cosine)
        guard sin(angle) > 1e-4 else { return [1 - t, t] }
        return [sin((1 - t) * angle) / sin(angle), sin(t * angle) / sin(angle)]
    }
}

extension Tensor {
    /// Adds values, or their signs.
    fileprivate func vote(_ other: Tensor, isTotal: Bool) {
        unsafe other.withFloats { values in
            unsafe withMutableFloats { votes in
                for index in 0..<min(values.count, votes.count) {
                    let value = unsafe values[index]
                    unsafe votes[index] += isTotal ? value : value > 0 ? 1 : value < 0 ? -1 : 0
                }
            }
        }
    }

    /// Adds values that have the elected sign, and counts them.
    fileprivate func addAgreeing(_ other: Tensor, weight: Float, _ votes: Tensor, _ counts: Tensor) {
        unsafe other.withFloats { values in
            unsafe votes.withFloats { votes in
                unsafe counts.withMutableFloats { counts in
                    unsafe withMutableFloats { sums in
                        for index in 0..<min(values.count, votes.count, counts.count, sums.count) {
                            let value = unsafe values[index]
                            guard unsafe votes[index] >= 0 ? value > 0 : value < 0 else { continue }
                            unsafe sums[index] += weight * value
                            unsafe counts[index] += 1
                        }
                    }
                }
            }
        }
    }

    fileprivate func divide(byCounts counts: Tensor) {
        unsafe counts.withFloats { counts in
            unsafe withMutableFloats { sums in
                for index in 0..<min(counts.count, sums.count) where unsafe counts[index] > 1 { unsafe sums[index] /= counts[index] }
            }
        }
    }
}

extension LowRank {
    /// Cuts values of both factors off at a quantile of them all (PEFT's `svd_clamp`).
    fileprivate func clamp(at quantile: Double) {
        var values: [Float] = []
        for tensor in [b, a] { unsafe tensor.withFloats { unsafe values += $0 } }
        values.sort()
        guard let last = values.indices.last else { return }
        let place = quantile * Double(last)
        let low = Int(place)
        let share = Float(place - Double(low))
        let limit = values[low] + share * (values[min(low + 1, last)] - values[low])
        for tensor in [b, a] {
            unsafe tensor.withMutableFloats { values in
                for index in values.indices { unsafe values[index] = min(max(values[index], -limit), limit) }
            }
        }
    }
}
