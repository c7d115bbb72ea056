internal import Autograd
internal import Models
internal import Platform
internal import Tensors

/// CorDA (Yang et al., arXiv:2406.05223): singular directions of W seen through the covariance C of the layer's inputs,
///
///     W·C = U·S·Vᵀ    A = √S·Vᵀ·C⁻¹    B = U·√S    W' = W − s·B·A        S := S/s
///
/// of the largest ("ipm": what the data needs is learned) or the smallest ("kpm": what it needs is kept). After PEFT's `corda.py`.
struct CovarianceStart: Sendable, Equatable {
    let takesLargest: Bool

    init(_ configuration: AdapterConfiguration) throws(PEFTError) {
        let options = try configuration.values.object("corda_config") ?? JSONObject()
        for key in ["cache_file", "covariance_file", "use_float16_for_covariance"] where !(options[key]?.isNull ?? true) && options[key] != .bool(false) {
            throw PEFTError(.unsupported, "corda_config: \(key) is not in this version; the covariance is computed from calibration batches, in f32")
        }
        for key in options.keys where !["cache_file", "covariance_file", "use_float16_for_covariance", "corda_method", "verbose", "prune_temporary_fields"].contains(key) {
            throw PEFTError(.argument, "corda_config has no key \"\(key)\"")
        }
        switch try options.text("corda_method") ?? "ipm" {
        case "ipm": takesLargest = true
        case "kpm": takesLargest = false
        case let other: throw PEFTError(.argument, "corda_config: corda_method is '\(other)'; it can be ipm or kpm")
        }
    }
}

extension LinearLoRA {
    /// Sets A and B; what they take out of W is `start`'s part.
    /// - Parameter c: f32 `[in, in]`, the mean over batches; overwritten.
    func begin(along c: Tensor, _ start: CovarianceStart) throws(PEFTError) {
        let most = min(linear.inputSize, linear.outputSize)
        guard rank <= most else {
            throw PEFTError(.argument, "init_lora_weights 'corda': r is \(rank), and '\(linear.name)' has only \(most) singular values")
        }
        guard c.squaredNorm.isFinite else { throw PEFTError(.numeric, "the inputs of '\(linear.name)' have a covariance that is NaN or infinite") }
        let decompositions = try Decompositions(engine)
        let inverse = try decompositions.dampedInverse(of: c)
        let product = try Tensor(engine, [linear.outputSize, linear.inputSize], .f32, .scratch)
        try engine.multiply(.inputGradient, try weight(), c, into: product, compute: .f32)
        let (u, s, vh) = try decompositions.singularValues(product)
        let values = try s.floats(engine)
        let chosen = start.takesLargest ? 0..<rank : values.count - rank..<values.count
        let right = try Tensor(engine, [rank, linear.inputSize], .f32, .scratch)
        try engine.multiply(.inputGradient, try vh.rows(chosen), inverse, into: right, compute: .f32)
        let roots = chosen.map { (max(values[$0], 0) / Float(factor)).squareRoot() }
        setFactors(a: roots.enumerated().map { ($0, $1) }, of: right, b: zip(chosen, roots).map { ($0, $1) }, of: u)
    }
}

extension Decompositions {
    /// The inverse of a covariance, to whose diagonal a share of its mean is added (0.01, twice as much until C·C⁻¹ is the identity
    /// within 0.05). `c` becomes what was inverted.
    fileprivate func dampedInverse(of c: Tensor) throws(PEFTError) -> Tensor {
        let size = c.rows
        var mean: Float = 0
        unsafe c.withFloats { c in
            for index in 0..<size { unsafe mean += c[index * size + index] / Float(size) }
        }
        guard mean > 0 else { throw PEFTError(.numeric, "a covariance is zero: the calibration batches have no inputs") }
        var damping: Float = 0.01
        var added: Float = 0
        while damping < 1e6 {
            c.addToDiagonal(mean * damping - added)
            added = mean * damping
            damping *= 2
            guard let inverse = try inverse(ofSymmetric: c) else { continue }
            let identity = try Tensor(engine, [size, size], .f32, .scratch)
            try engine.multiply(.inputGradient, c, inverse, into: identity, compute: .f32)
            var error = 0.0
            unsafe identity.withFloats { identity in
                for index in identity.indices {
                    let difference = unsafe Double(identity[index]) - (index % (size + 1) == 0 ? 1 : 0)
                    error += difference * difference
                }
            }
            if error.squareRoot() < 0.05 { return inverse }
        }
        throw PEFTError(.numeric, "a covariance cannot be inverted")
    }
}
