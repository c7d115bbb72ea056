internal import Autograd
internal import Models
internal import Platform
internal import Quantization
internal import Tensors

/// How the factors of a linear layer begin (`init_lora_weights`).
///
/// PiSSA and OLoRA take a part of W out of the layer and into the adapter: `W' = W − s·B·A`. As in PEFT the residual is
/// written into the base model. Where the weights are quantised it is stored as q8_0: four bits would not keep it (the model
/// would answer differently from the start), and eight are twice as large at most.
enum LoRAStart: Sendable, Equatable {
    /// A uniform within ±1/√in, B zero; of an embedding A zero, B standard normal.
    case standard
    /// A normal with deviation 1/r, B zero.
    case gaussian
    /// Neither is zero: the adapter acts from the start (tests).
    case random
    /// Neither is zero, but their product is.
    case orthogonal
    /// The r largest singular values (Meng et al., arXiv:2404.02948); by that many power iterations, nil: exactly.
    case pissa(iterations: Int?)
    /// The first columns of W = Q·R (Büyükakyüz, arXiv:2406.01775).
    case olora
    /// Along the gradient of calibration batches (`GradientStart`).
    case gradient(GradientStart)
    /// Along what quantising the weight loses (`QuantizedStart`).
    case quantized(QuantizedStart)
    /// Along the directions of W that calibration batches need most or least (`CovarianceStart`).
    case covariance(CovarianceStart)
    /// A along the principal components of what layers see (`VarianceStart`), B zero.
    case variance(VarianceStart)
    /// B fixed to the r smallest left singular vectors, A zero (MiCA).
    case mica

    /// - Parameter isNew: for an adapter from a file it does not matter how values began that the file has.
    init(_ configuration: AdapterConfiguration, isNew: Bool) throws(PEFTError) {
        switch configuration.values["init_lora_weights"] {
        case .bool(true): self = .standard
        case .bool(false): self = .random
        case .string(let name) where name.lowercased() == "lora_ga" && isNew: self = .gradient(try GradientStart(configuration))
        case .string(let name) where name.lowercased() == "loftq": self = .quantized(try QuantizedStart(configuration, isPrincipal: false))
        case .string(let name) where name.lowercased() == "qpissa": self = .quantized(try QuantizedStart(configuration, isPrincipal: true))
        case .string(let name) where name.lowercased() == "corda" && !isNew:
            // As in PEFT: what the start took out of the base came from data, which no file has.
            throw PEFTError(.unsupported, "an adapter that began by 'corda' changed the base weights, and its file does not say how: begin it anew with its calibration batches, then set its state")
        case .string(let name) where name.lowercased() == "corda": self = .covariance(try CovarianceStart(configuration))
        case .string(let name) where name.lowercased() == "eva" && isNew: self = .variance(try VarianceStart(configuration))
        case .string(let name): self = try LoRAStart(named: name, isNew: isNew)
        case let other:
            throw PEFTError(
                .argument, "init_lora_weights is \(other?.text() ?? "null"); true, false or a name is expected")
        }
    }

    private init(named name: String, isNew: Bool) throws(PEFTError) {
        switch name.lowercased() {
        case "gaussian": self = .gaussian
        case "orthogonal": self = .orthogonal
        case "pissa": self = .pissa(iterations: nil)
        case "olora": self = .olora
        case "mica": self = .mica
        case "eva" where !isNew, "lora_ga" where !isNew: self = .standard
        default:
            guard name.hasPrefix("pissa_niter_"), let iterations = Int(name.dropFirst("pissa_niter_".count)),
                iterations >= 0, iterations <= 1000
            else {
                throw PEFTError(
                    .argument,
                    "there is no initialisation init_lora_weights '\(name)'; there are true, false, gaussian, orthogonal, pissa, pissa_niter_N, qpissa, olora, mica, loftq, lora_ga, corda, eva"
                )
            }
            self = .pissa(iterations: iterations)
        }
    }

    /// It is computed from data.
    var isCalibrated: Bool {
        switch self {
        case .gradient, .covariance, .variance: true
        default: false
        }
    }

    var changesBase: Bool {
        switch self {
        case .pissa, .olora, .gradient, .covariance, .quantized: true
        default: false
        }
    }
}

extension LinearLoRA {
    /// Sets A and B.
    /// - Returns: the residual of the layer's weight, where the start takes one.
    func start(_ random: RandomStream) throws(PEFTError) -> Tensor? {
        var random = random
        switch start {
        case .standard, .variance: a.value.fillUniform(fanIn: linear.inputSize, &random)
        case .gaussian: a.value.fillNormal(1 / Float(rank), &random)
        case .random:
            a.value.fillUniform(fanIn: linear.inputSize, &random)
            b.value.fillUniform(fanIn: rank, &random)
            bias?.value.fillUniform(fanIn: rank, &random)
        case .orthogonal: try startOrthogonal(&random)
        case .pissa(let iterations):
            try checkRank("pissa")
            let parts =
                if let iterations { try largestSingularValues(power: iterations) } else {
                    try Decompositions(engine).singularValues(try weight())
                }
            return try startWithResidual(parts.u, parts.s, parts.vh)
        case .olora:
            try checkRank("olora")
            let (q, r) = try Decompositions(engine).factors(try weight(), count: rank)
            engine.axpby(1, q, 0, into: b.value)
            engine.axpby(1, r, 0, into: a.value)
            return try residual()
        case .gradient, .covariance: return try residual()  // A and B are set already, by `calibrate`
        case .quantized(let start):
            try checkRank(start.isPrincipal ? "qpissa" : "loftq")
            return try begin(beside: start)
        case .mica:
            try checkRank("mica")
            let (u, _, _) = try Decompositions(engine).singularValues(try weight())
            u.copyColumns(from: u.columns - rank, to: b.value)
        }
        return nil
    }

    /// W [out, in] in f32, in memory of its own.
    func weight() throws(PEFTError) -> Tensor {
        let w = try linear.weight.converted(to: .f32, engine, .scratch)
        return linear.isTransposed ? try w.transposed(engine) : w
    }

    private func checkRank(_ name: String) throws(PEFTError) {
        let most = min(linear.inputSize, linear.outputSize)
        guard rank <= most else {
            throw PEFTError(
                .argument,
                "init_lora_weights '\(name)': r is \(rank), and '\(linear.name)' has only \(most) singular values")
        }
    }

    /// A = √S·Vᵀ, B = U·√S of the largest r, with S := S/s so that s·B·A is that part of W.
    private func startWithResidual(_ u: Tensor, _ s: Tensor, _ vh: Tensor) throws(PEFTError) -> Tensor {
        let roots = try s.floats(engine).prefix(rank).map { (max($0, 0) / Float(factor)).squareRoot() }
        let parts = roots.enumerated().map { ($0, $1) }
        setFactors(a: parts, of: vh, b: parts, of: u)
        return try residual()
    }

    /// A takes rows of `vh` `[k, in]` and B columns of `u` `[out, k]`, each times a factor.
    func setFactors(a rows: [(index: Int, factor: Float)], of vh: Tensor, b columns: [(index: Int, factor: Float)], of u: Tensor) {
        let (width, count) = (linear.inputSize, u.columns)
        unsafe vh.withFloats { vh in
            unsafe a.value.withMutableFloats { a in
                for (row, source) in rows.enumerated() {
                    for column in 0..<width { unsafe a[row * width + column] = source.factor * vh[source.index * width + column] }
                }
            }
        }
        unsafe u.withFloats { u in
            unsafe b.value.withMutableFloats { b in
                for row in 0..<linear.outputSize {
                    for (column, source) in columns.enumerated() {
                        unsafe b[row * rank + column] = source.factor * u[row * count + source.index]
                    }
                }
            }
        }
    }

    /// W − s·B·A, in the format of W or, where that has few bits, in q8_0.
    private func residual() throws(PEFTError) -> Tensor {
        let left = try linear.weight.converted(to: .f32, engine, .scratch)
        try addProduct(to: left, scale: -Float(factor))
        return try left.encoded(as: linear.weight.dtype.isQuantized ? .q8_0 : linear.weight.dtype, engine, .weights)
    }

    /// The r largest singular values by power iterations on a subspace that is the same at every time, so that a loaded adapter
    /// finds the residual it was trained with.
    private func largestSingularValues(power: Int) throws(PEFTError) -> (u: Tensor, s: Tensor, vh: Tensor) {
        var random = RandomStream(seed: 0, purpose: linear.name)
        let start = try Tensor(engine, [rank, linear.inputSize], .f32, .scratch)
        start.fillNormal(1, &random)
        return try Decompositions(engine).largestSingularValues(try weight(), start: start, power: power)
    }

    /// With Q of a random [r, r] matrix, its odd rows in A and its even rows in B: B·A = 0.
    private func startOrthogonal(_ random: inout RandomStream) throws(PEFTError) {
        guard rank % 2 == 0 else {
            throw PEFTError(
                .argument, "init_lora_weights 'orthogonal' needs an even r; for '\(linear.name)' it is \(rank)")
        }
        let half = rank / 2
        let square = try Tensor(engine, [rank, rank], .f32, .scratch)
        square.fillNormal(1, &random)
        let q = try Decompositions(engine).factors(square, count: rank).q
        let pairs = try q.reshaped([half, 2 * rank])  // row i: rows 2i and 2i+1 of Q
        let left = try Tensor(engine, [half, linear.inputSize], .f32, .scratch)
        let right = try Tensor(engine, [half, linear.outputSize], .f32, .scratch)
        left.fillNormal(0.1, &random)
        right.fillNormal(0.1, &random)
        let (odd, even) = (
            try Tensor(engine, [half, rank], .f32, .scratch), try Tensor(engine, [half, rank], .f32, .scratch)
        )
        pairs.copyColumns(from: 0, to: odd)
        pairs.copyColumns(from: rank, to: even)
        try engine.multiply(.weightGradient, odd, left, into: a.value, compute: .f32)  // Q_oddᵀ·L
        try engine.multiply(.weightGradient, right, even, into: b.value, compute: .f32)  // Rᵀ·Q_even
    }
}

extension Tensor {
    /// Fills an f32 tensor of the caller's own, in order.
    func fill(_ next: () -> Float) {
        unsafe withMutableFloats { values in
            for index in values.indices { unsafe values[index] = next() }
        }
    }

    /// Within ±1/√fanIn: torch's default for linear layers.
    func fillUniform(fanIn: Int, _ random: inout RandomStream) {
        let bound = 1 / Float(max(fanIn, 1)).squareRoot()
        fill { (2 * random.uniform() - 1) * bound }
    }

    func fillNormal(_ deviation: Float, _ random: inout RandomStream) {
        fill { random.normal() * deviation }
    }

    /// Columns from `start` on, as many as `target` has; both f32 with the same number of rows.
    func copyColumns(from start: Int, to target: Tensor) {
        let (width, count) = (columns, target.columns)
        unsafe withFloats { from in
            unsafe target.withMutableFloats { to in
                guard start + count <= width, from.count / max(width, 1) == to.count / max(count, 1) else { return }
                for row in 0..<to.count / max(count, 1) {
                    for column in 0..<count { unsafe to[row * count + column] = from[row * width + start + column] }
                }
            }
        }
    }
}
