package import Autograd
internal import Kernels
package import Platform
package import Tensors

/// Stochastic gradient descent as `torch.optim.SGD`, dampening 0, no Nesterov:
///
///     g ← g + λ·w        b ← μ·b + g  (b = g at the first update)        w ← w − lr·b
package final class SGD: Optimizer {
    private var shared: OptimizedParameters
    private let options: OptimizerOptions
    /// Empty without momentum.
    private let momentum: [Tensor]
    private let engine: Engine

    package init(_ parameters: [Parameter], _ rates: [ParameterRates], _ options: OptimizerOptions, _ engine: Engine) throws(PEFTError) {
        shared = OptimizedParameters(parameters, rates)
        self.options = options
        self.engine = engine
        momentum = options.momentum == 0 ? [] : try shared.zeros(engine)
    }

    package var parameters: [Parameter] { shared.parameters }
    package var updateCounts: [Int] {
        get { shared.updateCounts }
        set { shared.updateCounts = newValue }
    }
    package var moments: [(name: String, tensors: [Tensor])] { momentum.isEmpty ? [] : [("momentum_buffer", momentum)] }

    package func update(_ gradients: GradientStore, gradientScale: Double, rateFactor: Double) {
        for (index, parameter, gradient) in shared.withGradients(gradients) {
            let rates = shared.rates[index]
            let (weight, step) = (parameter.value, Int64(shared.updateCounts[index]))
            let buffer = unsafe momentum.isEmpty ? nil : momentum[index].floatPointer
            engine.parallel(engine.shares(weight.count)) { part, parts in
                unsafe pk_sgd(
                    engine.level, weight.floatPointer, gradient.floatPointer, buffer, weight.count, Float(gradientScale),
                    Float(rates.learningRate * rateFactor), Float(options.momentum), Float(rates.weightDecay), step, part, parts)
            }
        }
    }
}
