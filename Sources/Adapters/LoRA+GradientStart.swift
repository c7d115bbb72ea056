internal import Autograd
internal import Models
internal import Platform
internal import Tensors

/// LoRA-GA (Wang et al., arXiv:2407.05000): the factors begin along the gradient G = U·S·Vᵀ of the calibration batches,
///
///     A = rows of Vᵀ    B = columns of U·S, scaled    W' = W − s·B·A
///
/// so that the first steps go where those of full fine-tuning would. After PEFT's `lora_ga_init`, with all singular vectors exact.
struct GradientStart: Sendable, Equatable {
    /// Which of the first 2r singular vectors A and B take.
    enum Direction: String {
        case alternating = "ArBr"
        case secondHalfFirst = "A2rBr"
        case firstHalfSecond = "ArB2r"
        case random
    }

    enum Scale: String {
        /// out^¼ / √γ
        case stable
        /// The largest singular value of W over that of B.
        case weight = "weight_svd"
        /// 1 / s, of both factors.
        case step = "gd_scale"
        case unit
    }

    let direction: Direction
    let scale: Scale
    let gamma: Float

    init(_ configuration: AdapterConfiguration) throws(PEFTError) {
        guard let options = configuration.values["lora_ga_config"]?.objectValue else {
            throw PEFTError(.argument, "init_lora_weights 'lora_ga' needs a lora_ga_config: {\"direction\": \"ArB2r\", \"scale\": \"stable\", \"stable_gamma\": 16}")
        }
        for key in options.keys where !["direction", "scale", "stable_gamma"].contains(key) {
            throw PEFTError(.argument, "lora_ga_config has the key \"\(key)\"; there are direction, scale and stable_gamma")
        }
        guard let direction = Direction(rawValue: options["direction"]?.stringValue ?? "ArB2r") else {
            throw PEFTError(.argument, "lora_ga_config's direction is \(options["direction"]?.text() ?? ""); it can be ArBr, A2rBr, ArB2r or random")
        }
        guard let scale = Scale(rawValue: options["scale"]?.stringValue ?? "stable") else {
            throw PEFTError(.argument, "lora_ga_config's scale is \(options["scale"]?.text() ?? ""); it can be stable, weight_svd, gd_scale or unit")
        }
        let gamma = options["stable_gamma"]?.doubleValue ?? 16
        guard gamma > 0, gamma.isFinite else { throw PEFTError(.argument, "lora_ga_config's stable_gamma is \(gamma); it must be above 0") }
        (self.direction, self.scale, self.gamma) = (direction, scale, Float(gamma))
    }

    /// The singular vectors that A and B take, for rank r.
    func indices(_ rank: Int, _ random: inout RandomStream) -> (a: [Int], b: [Int]) {
        switch direction {
        case .alternating: return ((0..<rank).map { 2 * $0 + 1 }, (0..<rank).map { 2 * $0 })
        case .secondHalfFirst: return (Array(rank..<2 * rank), Array(0..<rank))
        case .firstHalfSecond: return (Array(0..<rank), Array(rank..<2 * rank))
        case .random:
            var all = Array(0..<2 * rank)
            for index in all.indices.reversed() { all.swapAt(index, min(Int(random.uniform() * Float(index + 1)), index)) }
            let some = Array(all.prefix(rank))
            return (some, some)
        }
    }
}

extension LinearLoRA {
    /// Sets A and B along a gradient `[out, in]`; what they take out of W is `start`'s part.
    func begin(along gradient: Tensor, _ start: GradientStart, _ random: RandomStream) throws(PEFTError) {
        let most = min(linear.inputSize, linear.outputSize)
        guard 2 * rank <= most else {
            throw PEFTError(.argument, "init_lora_weights 'lora_ga': r is \(rank), and '\(linear.name)' has only \(most) singular values, not 2·r")
        }
        var random = random
        let decompositions = try Decompositions(engine)
        let (u, s, vh) = try decompositions.singularValues(gradient)
        let (left, right) = start.indices(rank, &random)
        let values = try s.floats(engine)
        let strengths = right.map { $0 < values.count ? values[$0] : 0 }
        var (aFactor, bFactor): (Float, Float) = (1, 1)
        switch start.scale {
        case .stable: bFactor = Float(linear.outputSize).squareRoot().squareRoot() / start.gamma.squareRoot()
        case .weight:
            let largest = try decompositions.singularValues(try weight()).s.floats(engine).first ?? 0
            if let first = strengths.first, first > 0 { bFactor = largest / first }
        case .step: (aFactor, bFactor) = (1 / Float(factor), 1 / Float(factor))
        case .unit: break
        }
        setFactors(
            a: left.map { ($0, aFactor) }, of: vh, b: zip(right, strengths).map { ($0, bFactor * $1) }, of: u)
    }
}
