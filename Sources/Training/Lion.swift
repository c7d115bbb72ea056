internal import Autograd
internal import Kernels
internal import Platform
internal import Tensors

/// Lion (Chen et al., arXiv:2302.06675):
///
///     w ← w − lr·λ·w − lr·sign(β₁·m + (1−β₁)·g)        m ← β₂·m + (1−β₂)·g
///
/// State: 4 bytes a parameter. Its rate is a third to a tenth of AdamW's; β is (0.9, 0.99) unless given.
final class Lion: Optimizer {
    private var shared: OptimizedParameters
    private let options: OptimizerOptions
    private let mean: [Tensor]
    private let engine: Engine

    init(_ parameters: [Parameter], _ rates: [ParameterRates], _ options: OptimizerOptions, _ engine: Engine) throws(PEFTError) {
        shared = OptimizedParameters(parameters, rates)
        self.options = options
        self.engine = engine
        mean = try shared.zeros(engine)
    }

    var parameters: [Parameter] { shared.parameters }
    var updateCounts: [Int] {
        get { shared.updateCounts }
        set { shared.updateCounts = newValue }
    }
    var moments: [(name: String, tensors: [Tensor])] { [("exp_avg", mean)] }

    func update(_ gradients: GradientStore, gradientScale: Double, rateFactor: Double) {
        for (index, parameter, gradient) in shared.withGradients(gradients) {
            let (rates, weight, m) = (shared.rates[index], parameter.value, mean[index])
            engine.parallel(engine.shares(weight.count)) { part, parts in
                unsafe pk_lion(
                    weight.floatPointer, gradient.floatPointer, m.floatPointer, weight.count, Float(gradientScale), Float(rates.learningRate * rateFactor),
                    Float(options.beta1), Float(options.beta2), Float(rates.weightDecay), part, parts)
            }
        }
    }
}
