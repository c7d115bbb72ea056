package import Autograd
package import Platform
package import Tensors

/// `y = (x − mean) / √(var + ε) · weight + bias` over the last dimension.
package final class LayerNorm: Layer, @unchecked Sendable {
    // Sendable: `weight` and `bias` are replaced only by the holder of the model's write lock.

    package let name: String
    package let index: Int
    package let epsilon: Float
    /// f32 `[size]` each.
    package private(set) var weight: Tensor
    package private(set) var bias: Tensor

    package init(name: String, index: Int, weight: Tensor, bias: Tensor, epsilon: Float) {
        self.name = name
        self.index = index
        self.weight = weight
        self.bias = bias
        self.epsilon = epsilon
    }

    package var kind: String { "LayerNorm" }
    package var tensors: [(name: String, tensor: Tensor)] { [("weight", weight), ("bias", bias)] }

    package func setTensor(_ name: String, _ tensor: Tensor) throws(PEFTError) {
        switch name {
        case "weight":
            try checkReplacement(tensor, size: weight.count, name)
            weight = tensor
        case "bias":
            try checkReplacement(tensor, size: bias.count, name)
            bias = tensor
        default: throw noTensor(name)
        }
    }

    /// `x` `[rows, size]`.
    package func callAsFunction(_ x: Variable, _ context: ForwardContext) throws(PEFTError) -> Variable {
        try context.applied(to: x, self) { (x, adaptation, tape) throws(PEFTError) in
            try tape.layerNorm(x, weight: adaptation.own("weight", tape) ?? Variable(weight), bias: adaptation.own("bias", tape) ?? Variable(bias), eps: epsilon)
        }
    }
}
