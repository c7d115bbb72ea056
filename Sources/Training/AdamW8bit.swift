internal import Autograd
internal import Kernels
internal import Platform
internal import Tensors

/// AdamW with moments of eight bits (Dettmers et al., arXiv:2110.02861; bitsandbytes' `AdamW8bit`): codes of a dynamic type with a
/// scale for each 256. Parameters of fewer than 4096 values keep moments in f32, as there.
///
/// State: 2.03 bytes a parameter.
final class AdamW8bit: Optimizer {
    private var shared: OptimizedParameters
    private let options: OptimizerOptions
    private let engine: Engine
    /// Per parameter: u8 and its scales, or f32 and an empty one.
    private let mean, square: [(values: Tensor, scales: Tensor)]

    private static let (block, least) = (256, 4096)
    /// The codes of 0.
    private static let (zero, unsignedZero): (UInt8, UInt8) = (127, 0)

    init(_ parameters: [Parameter], _ rates: [ParameterRates], _ options: OptimizerOptions, _ engine: Engine) throws(PEFTError) {
        shared = OptimizedParameters(parameters, rates)
        self.options = options
        self.engine = engine
        mean = try AdamW8bit.state(parameters, AdamW8bit.zero, engine)
        square = try AdamW8bit.state(parameters, AdamW8bit.unsignedZero, engine)
    }

    private static func state(_ parameters: [Parameter], _ zero: UInt8, _ engine: Engine) throws(PEFTError) -> [(values: Tensor, scales: Tensor)] {
        try parameters.map { (parameter) throws(PEFTError) in
            let count = parameter.value.count, isSmall = count < least
            let values = try Tensor.zeros(engine, parameter.value.shape, isSmall ? .f32 : .u8, .optimizer)
            if !isSmall, values.storage.isReal {
                for index in 0..<count { unsafe values.pointer.storeBytes(of: zero, toByteOffset: index, as: UInt8.self) }
            }
            return (values, try Tensor.zeros(engine, [isSmall ? 1 : (count + block - 1) / block], .f32, .optimizer))
        }
    }

    var parameters: [Parameter] { shared.parameters }
    var updateCounts: [Int] {
        get { shared.updateCounts }
        set { shared.updateCounts = newValue }
    }
    var moments: [(name: String, tensors: [Tensor])] {
        [("exp_avg", mean.map(\.values)), ("exp_avg_absmax", mean.map(\.scales)), ("exp_avg_sq", square.map(\.values)), ("exp_avg_sq_absmax", square.map(\.scales))]
    }

    func update(_ gradients: GradientStore, gradientScale: Double, rateFactor: Double) {
        for (index, parameter, gradient) in shared.withGradients(gradients) {
            let (rates, weight, step) = (shared.rates[index], parameter.value, Int64(shared.updateCounts[index]))
            let (m, v) = (mean[index], square[index])
            let rate = Float(rates.learningRate * rateFactor)
            engine.parallel(engine.shares(weight.count)) { part, parts in
                if m.values.dtype == .f32 {
                    unsafe pk_adamw(
                        engine.level, weight.floatPointer, gradient.floatPointer, m.values.floatPointer, v.values.floatPointer, weight.count,
                        Float(gradientScale), rate, Float(options.beta1), Float(options.beta2), Float(options.epsilon), Float(rates.weightDecay), step, part, parts)
                } else {
                    unsafe pk_adamw8(
                        weight.floatPointer, gradient.floatPointer, m.values.pointer.assumingMemoryBound(to: UInt8.self),
                        v.values.pointer.assumingMemoryBound(to: UInt8.self), m.scales.floatPointer, v.scales.floatPointer, weight.count, Float(gradientScale),
                        rate, Float(options.beta1), Float(options.beta2), Float(options.epsilon), Float(rates.weightDecay), step, part, parts)
                }
            }
        }
    }
}
