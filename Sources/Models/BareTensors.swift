package import Autograd
package import Platform
package import Tensors

/// Parameters that a module holds by itself, without a layer around them: a class token, learned positions.
package final class BareTensors: Layer, @unchecked Sendable {
    // Sendable: the tensors are replaced only by the holder of the model's write lock.

    package let name: String
    package let index: Int
    package let kind: String
    package private(set) var tensors: [(name: String, tensor: Tensor)]

    package init(name: String, index: Int, kind: String, tensors: [(name: String, tensor: Tensor)]) {
        self.name = name
        self.index = index
        self.kind = kind
        self.tensors = tensors
    }

    package func setTensor(_ name: String, _ tensor: Tensor) throws(PEFTError) {
        guard let place = tensors.firstIndex(where: { $0.name == name }) else { throw noTensor(name) }
        try checkReplacement(tensor, like: tensors[place].tensor, name)
        tensors[place].tensor = tensor
    }

    /// One of them in this computation, or what stands in for it.
    package func variable(_ name: String, _ context: ForwardContext) throws(PEFTError) -> Variable {
        if let own = context.commonAdaptation?[self].own(name, context.tape) { return own }
        guard let tensor = tensor(name) else { throw noTensor(name) }
        return Variable(tensor)
    }
}
