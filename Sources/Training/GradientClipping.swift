package import Autograd
internal import Kernels
package import Tensors

/// The norm of all gradients together, and clipping by it.
package enum GradientClipping {
    /// √Σ g² over all parameters that received a gradient: each tensor's squares are summed in double in a fixed order,
    /// then the tensors', so the result does not depend on the number of threads. 0 when planning.
    package static func norm(of parameters: [Parameter], in gradients: GradientStore, scaledBy scale: Double = 1, _ engine: Engine) -> Double {
        guard !engine.isPlanning else { return 0 }
        var sum = 0.0
        for parameter in parameters where parameter.isTrainable {
            guard let gradient = gradients.gradient(of: parameter) else { continue }
            sum += unsafe pk_sumsq(engine.level, UnsafePointer(gradient.pointer.assumingMemoryBound(to: Float.self)), gradient.count)
        }
        return sum.squareRoot() * scale
    }

    /// The factor of `torch.nn.utils.clip_grad_norm_`: maximum/(norm + 1e-6) if that is below 1, else 1.
    package static func factor(norm: Double, maximum: Double?) -> Double {
        guard let maximum else { return 1 }
        return min(1, maximum / (norm + 1e-6))
    }
}
