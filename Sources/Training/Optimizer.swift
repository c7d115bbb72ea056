package import Autograd
internal import Platform
package import Tensors

/// Changes parameters by their gradients and keeps what it must remember between updates.
///
/// All memory is taken when the optimizer is made, so an update cannot fail half way.
package protocol Optimizer: AnyObject {
    /// What it updates, in a fixed order.
    var parameters: [Parameter] { get }
    /// Per parameter: how many updates it has had (bias correction counts those, as torch does).
    var updateCounts: [Int] { get set }
    /// Per parameter, under torch's names ("exp_avg", "exp_avg_sq", "momentum_buffer"): what a checkpoint keeps.
    var moments: [(name: String, tensors: [Tensor])] { get }

    /// One update. `gradientScale` multiplies every gradient first (clipping); `rateFactor` comes from the schedule.
    /// A parameter without a gradient is left alone. The caller holds the model's write lock.
    func update(_ gradients: GradientStore, gradientScale: Double, rateFactor: Double)
}

/// What the optimizers share: parameters, their rates, and one tensor of state per parameter.
struct OptimizedParameters {
    let parameters: [Parameter]
    let rates: [ParameterRates]
    var updateCounts: [Int]

    init(_ parameters: [Parameter], _ rates: [ParameterRates]) {
        self.parameters = parameters
        self.rates = rates
        updateCounts = Array(repeating: 0, count: parameters.count)
    }

    /// A zero tensor like each parameter.
    func zeros(_ engine: Engine) throws(PEFTError) -> [Tensor] {
        var tensors: [Tensor] = []
        for parameter in parameters { tensors.append(try Tensor.zeros(engine, parameter.value.shape, .f32, .optimizer)) }
        return tensors
    }

    /// The parameters that have a gradient, with its index and tensor; their update counts go up by one.
    mutating func withGradients(_ gradients: GradientStore) -> [(index: Int, parameter: Parameter, gradient: Tensor)] {
        var found: [(index: Int, parameter: Parameter, gradient: Tensor)] = []
        for (index, parameter) in parameters.enumerated() {
            guard parameter.isTrainable, let gradient = gradients.gradient(of: parameter) else { continue }
            updateCounts[index] += 1
            found.append((index, parameter, gradient))
        }
        return found
    }
}

extension Tensor {
    /// Into another of the same type and shape.
    func copyBytes(to target: Tensor) {
        guard storage.isReal, target.storage.isReal, byteCount == target.byteCount else { return }
        unsafe target.pointer.copyMemory(from: pointer, byteCount: byteCount)
    }

    /// First value of an f32 tensor, for kernels.
    var floatPointer: UnsafeMutablePointer<Float> { unsafe pointer.assumingMemoryBound(to: Float.self) }
}
