package import Autograd
package import Platform
package import Tensors

/// `y = x / √(mean x² + ε) · (weight + offset)` over the last dimension.
package final class RMSNorm: Layer, @unchecked Sendable {
    // Sendable: `weight` is replaced only by the holder of the model's write lock.

    package let name: String
    package let index: Int
    package let epsilon: Float
    /// 1 for Gemma.
    package let offset: Float
    /// f32 `[size]`
    package private(set) var weight: Tensor

    package init(name: String, index: Int, weight: Tensor, epsilon: Float, offset: Float = 0) {
        self.name = name
        self.index = index
        self.weight = weight
        self.epsilon = epsilon
        self.offset = offset
    }

    package var kind: String { "RMSNorm" }
    package var tensors: [(name: String, tensor: Tensor)] { [("weight", weight)] }

    package func setTensor(_ name: String, _ tensor: Tensor) throws(PEFTError) {
        guard name == "weight" else { throw noTensor(name) }
        try checkReplacement(tensor, size: weight.count, name)
        weight = tensor
    }

    /// `x` `[rows, size]`.
    package func callAsFunction(_ x: Variable, _ context: ForwardContext) throws(PEFTError) -> Variable {
        try context.applied(to: x, self) { (x, adaptation, tape) throws(PEFTError) in
            try tape.rmsNorm(x, weight: adaptation.own("weight", tape) ?? Variable(weight), offset: offset, eps: epsilon)
        }
    }
}
