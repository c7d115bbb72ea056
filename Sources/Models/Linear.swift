package import Platform
package import Tensors

/// `y = x·Wᵀ + b` with frozen W in any weight format, and whatever adapters hook around it.
package final class Linear: Layer, @unchecked Sendable {
    // Sendable: `weight` and `bias` are replaced only by the holder of the model's write lock.

    package let name: String
    package let index: Int
    package let inputSize: Int
    package let outputSize: Int
    /// The weight is stored `[in, out]` (GPT-2's Conv1D) instead of `[out, in]`.
    package let isTransposed: Bool
    /// `[out, in]`, or `[in, out]` when transposed; any weight format.
    package private(set) var weight: Tensor
    /// f32 `[out]`
    package private(set) var bias: Tensor?

    package init(name: String, index: Int, weight: Tensor, bias: Tensor?, isTransposed: Bool = false) {
        self.name = name
        self.index = index
        self.weight = weight
        self.bias = bias
        self.isTransposed = isTransposed
        inputSize = isTransposed ? weight.rows : weight.columns
        outputSize = isTransposed ? weight.columns : weight.rows
    }

    package var kind: String { isTransposed ? "Conv1D" : "Linear" }

    package var tensors: [(name: String, tensor: Tensor)] {
        [("weight", weight)] + (bias.map { [("bias", $0)] } ?? [])
    }

    package func setTensor(_ name: String, _ tensor: Tensor) throws(PEFTError) {
        switch name {
        case "weight":
            try checkReplacement(tensor, like: weight, name)
            weight = tensor
        case "bias":
            try checkReplacement(tensor, size: outputSize, name)
            bias = tensor
        default: throw noTensor(name)
        }
    }
}
