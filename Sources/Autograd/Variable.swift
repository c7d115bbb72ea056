package import Platform
package import Tensors

/// A value in a computation, and where its gradient goes.
package struct Variable {
    package var value: Tensor
    /// nil: no gradient is wanted, so no operation keeps anything for it.
    package let slot: GradientSlot?
    /// How to compute the value again, if that is cheaper than keeping it.
    var recipe: Recipe?

    /// A constant.
    package init(_ value: Tensor) {
        self.value = value
        slot = nil
    }

    package init(_ value: Tensor, _ slot: GradientSlot?) {
        self.value = value
        self.slot = slot
    }

    package var shape: [Int] { value.shape }
    package var needsGradient: Bool { slot != nil }
}

/// Where the gradient of one variable gathers during the backward pass. It does not keep the variable's value: an
/// operation that needs the value captures the tensor itself.
package final class GradientSlot {
    package let shape: [Int]
    /// Type of the gradient: that of the value for activations, f32 for parameters.
    package let dtype: DType
    private let parameter: Parameter?
    private let store: GradientStore?
    private var gradient: Tensor?

    package init(shape: [Int], dtype: DType) {
        self.shape = shape
        self.dtype = dtype
        parameter = nil
        store = nil
    }

    init(_ parameter: Parameter, _ store: GradientStore) {
        shape = parameter.value.shape
        dtype = .f32
        self.parameter = parameter
        self.store = store
    }

    /// Takes the gathered gradient out; nil when nothing arrived. For activations.
    package func take() -> Tensor? {
        defer { gradient = nil }
        return gradient
    }

    /// The buffer a kernel writes this gradient to, and whether it must add to what is there.
    package func buffer(_ engine: Engine) throws(PEFTError) -> (tensor: Tensor, accumulate: Bool) {
        if let parameter, let store { return (try store.buffer(for: parameter), true) }
        if var present = gradient {
            gradient = nil  // so that `present` is alone if nobody else holds it
            if !present.hasStorageAlone() { present = try GradientSlot.copy(of: present, engine) }
            gradient = present
            return (present, true)
        }
        let fresh = try Tensor(engine, shape, dtype)
        gradient = fresh
        return (fresh, false)
    }

    /// Adds a gradient that may be shared with others (it is not changed).
    package func add(_ tensor: Tensor, _ engine: Engine) throws(PEFTError) {
        guard tensor.count == shape.reduce(1, *), tensor.dtype == dtype else {
            throw PEFTError(.internal, "gradient \(tensor.dtype.name) \(tensor.shape) for a \(dtype.name) variable \(shape)")
        }
        if parameter == nil, gradient == nil {
            gradient = tensor.shape == shape ? tensor : try tensor.reshaped(shape)
            return
        }
        let (sum, _) = try buffer(engine)
        engine.axpby(1, tensor, 1, into: sum)
    }

    private static func copy(of tensor: Tensor, _ engine: Engine) throws(PEFTError) -> Tensor {
        let copy = try Tensor(engine, tensor.shape, tensor.dtype)
        engine.axpby(1, tensor, 0, into: copy)
        return copy
    }
}
