internal import Autograd
internal import Platform
internal import Tensors

/// How much the values p of a parameter matter for the loss: a mean over the steps of |p·∂L/∂p|, Ī, and its own variation, Ū (AdaLoRA, AdaMSS).
struct Importance {
    let parameter: Parameter
    let mean: Tensor
    let variation: Tensor

    init(_ parameter: Parameter, _ engine: Engine) throws(PEFTError) {
        self.parameter = parameter
        mean = try .zeros(engine, parameter.value.shape, .f32, .optimizer)
        variation = try .zeros(engine, parameter.value.shape, .f32, .optimizer)
    }

    var state: [(name: String, tensor: Tensor)] { [(parameter.name + ".importance", mean), (parameter.name + ".variation", variation)] }

    func clear() {
        mean.clear()
        variation.clear()
    }

    /// - Parameters:
    ///   - factor: what clipping made of the gradients.
    ///   - beta, gamma: what stays of mean and variation.
    ///   - isAroundNew: the variation is the distance from the new mean, not from the one before.
    func observe(_ gradients: GradientStore, _ factor: Double, beta: Float, gamma: Float, isAroundNew: Bool) {
        guard let gradient = gradients.gradient(of: parameter) else { return }
        let factor = Float(factor)
        unsafe parameter.value.withFloats { p in
            unsafe gradient.withFloats { g in
                unsafe mean.withMutableFloats { mean in
                    unsafe variation.withMutableFloats { variation in
                        for i in 0..<min(p.count, g.count, mean.count, variation.count) {
                            let now = unsafe abs(p[i] * g[i] * factor), old = unsafe mean[i], new = beta * old + (1 - beta) * now
                            unsafe variation[i] = gamma * variation[i] + (1 - gamma) * abs(now - (isAroundNew ? new : old))
                            unsafe mean[i] = new
                        }
                    }
                }
            }
        }
    }
}
