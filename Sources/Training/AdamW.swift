package import Autograd
internal import Glibc
internal import Kernels
package import Platform
package import Tensors

/// AdamW (arXiv:1711.05101) as `torch.optim.AdamW`, f32 state:
///
///     w ← w − lr·λ·w
///     m ← β₁·m + (1−β₁)·g        v ← β₂·v + (1−β₂)·g²
///     w ← w − lr/(1−β₁ᵗ) · m / (√(v/(1−β₂ᵗ)) + ε)
///
/// State: 8 bytes a parameter. LoRA+ is this rule with `ParameterRates` by name.
package final class AdamW: Optimizer {
    private var shared: OptimizedParameters
    private let options: OptimizerOptions
    private let mean: [Tensor]
    private let square: [Tensor]
    private let engine: Engine

    package init(_ parameters: [Parameter], _ rates: [ParameterRates], _ options: OptimizerOptions, _ engine: Engine) throws(PEFTError) {
        shared = OptimizedParameters(parameters, rates)
        self.options = options
        self.engine = engine
        mean = try shared.zeros(engine)
        square = try shared.zeros(engine)
    }

    package var parameters: [Parameter] { shared.parameters }
    package var updateCounts: [Int] {
        get { shared.updateCounts }
        set { shared.updateCounts = newValue }
    }
    package var moments: [(name: String, tensors: [Tensor])] { [("exp_avg", mean), ("exp_avg_sq", square)] }

    package func update(_ gradients: GradientStore, gradientScale: Double, rateFactor: Double) {
        for (index, parameter, gradient) in shared.withGradients(gradients) {
            let rates = shared.rates[index]
            let (weight, m, v, step) = (parameter.value, mean[index], square[index], Int64(shared.updateCounts[index]))
            engine.parallel(engine.shares(weight.count)) { part, parts in
                unsafe pk_adamw(
                    engine.level, weight.floatPointer, gradient.floatPointer, m.floatPointer, v.floatPointer, weight.count, Float(gradientScale),
                    Float(rates.learningRate * rateFactor), Float(options.beta1), Float(options.beta2), Float(options.epsilon),
                    Float(rates.weightDecay), step, part, parts)
            }
        }
    }
}
