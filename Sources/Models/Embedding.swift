package import Autograd
package import Platform
package import Tensors

/// A table of rows, looked up by token id.
package final class Embedding: Layer, @unchecked Sendable {
    // Sendable: `weight` is replaced only by the holder of the model's write lock.

    package let name: String
    package let index: Int
    /// Rows of the table.
    package let count: Int
    /// Values of a row.
    package let dimension: Int
    /// `[count, dimension]`, any weight format.
    package private(set) var weight: Tensor

    package init(name: String, index: Int, weight: Tensor) {
        self.name = name
        self.index = index
        self.weight = weight
        count = weight.rows
        dimension = weight.columns
    }

    package var kind: String { "Embedding" }
    package var tensors: [(name: String, tensor: Tensor)] { [("weight", weight)] }

    package func setTensor(_ name: String, _ tensor: Tensor) throws(PEFTError) {
        guard name == "weight" else { throw noTensor(name) }
        try checkReplacement(tensor, like: weight, name)
        weight = tensor
    }

    /// Rows `ids` (i32 `[count]`): `[count, dimension]`.
    package func callAsFunction(_ ids: Tensor, _ context: ForwardContext, scale: Float = 1) throws(PEFTError) -> Variable {
        try context.applied(toIDs: ids, self) { (ids, adaptation, tape) throws(PEFTError) in
            var y = try tape.embedding(ids, adaptation.own("weight", tape) ?? Variable(weight), scale: scale)
            for hook in adaptation?.hooks ?? [] { y = try hook.output(y, ids: ids, of: self, tape) }
            return y
        }
    }
}
