package import Platform
package import Tensors

/// A trainable tensor: f32, under the key it is saved with. Its gradient lives in the `GradientStore` of a computation.
package final class Parameter: @unchecked Sendable {
    // Sendable: `value` is replaced or written only by the holder of the model's write lock (trainer, load, merge).

    /// The key in the saved file, without the adapter's name.
    package let name: String
    /// f32.
    package var value: Tensor
    /// False: takes part in the forward pass only (frozen tensors of a method, an adapter loaded for inference).
    package var isTrainable: Bool

    package init(name: String, value: Tensor, isTrainable: Bool = true) {
        self.name = name
        self.value = value
        self.isTrainable = isTrainable
    }
}

/// The gradients of parameters, summed over all backward passes since `clear`.
package final class GradientStore {
    private var gradients: [ObjectIdentifier: Tensor] = [:]
    private let engine: Engine

    package init(_ engine: Engine) { self.engine = engine }

    /// The sum so far; nil when no backward pass reached the parameter.
    package func gradient(of parameter: Parameter) -> Tensor? { gradients[ObjectIdentifier(parameter)] }

    /// The buffer to add to; zero at first.
    package func buffer(for parameter: Parameter) throws(PEFTError) -> Tensor {
        if let present = gradients[ObjectIdentifier(parameter)] { return present }
        let fresh = try Tensor.zeros(engine, parameter.value.shape, .f32, .gradients)
        gradients[ObjectIdentifier(parameter)] = fresh
        return fresh
    }

    /// Drops the sums, as torch's `zero_grad(set_to_none=True)`: parameters that the next backward pass does not reach have none then
    /// (optimizers leave them alone), and activations may use the memory meanwhile.
    package func clear() { gradients.removeAll(keepingCapacity: true) }
}
