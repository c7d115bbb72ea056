package import Platform
package import Tensors

/// A named module that adapters can address: the leaves of the module tree, under Hugging Face's names.
package protocol Layer: AnyObject, Sendable {
    /// "model.layers.0.self_attn.q_proj"
    var name: String { get }
    /// Position in `Model.layers`.
    var index: Int { get }
    /// The class name PEFT would see: "Linear", "Conv1D", "Embedding", "RMSNorm", "LayerNorm".
    var kind: String { get }
    /// The layer's own tensors by their short names ("weight", "bias"), as stored.
    var tensors: [(name: String, tensor: Tensor)] { get }
    /// Replaces one of them (merge, unmerge, residual initialisations); the caller holds the model's write lock.
    /// - Throws: `.mismatch` when the shape differs or the format is none the kernels read.
    func setTensor(_ name: String, _ tensor: Tensor) throws(PEFTError)
}

extension Layer {
    /// The tensor of that short name.
    package func tensor(_ name: String) -> Tensor? { tensors.first { $0.name == name }?.tensor }

    func checkReplacement(_ tensor: Tensor, like present: Tensor, _ tensorName: String) throws(PEFTError) {
        guard tensor.shape == present.shape, tensor.dtype.isWeightFormat else {
            throw PEFTError(.mismatch, "\(name).\(tensorName): \(tensor.dtype.name) \(tensor.shape) cannot replace \(present.dtype.name) \(present.shape)")
        }
    }

    /// Vectors (biases, norm weights) are f32 everywhere.
    func checkReplacement(_ tensor: Tensor, size: Int, _ tensorName: String) throws(PEFTError) {
        guard tensor.count == size, tensor.dtype == .f32 else {
            throw PEFTError(.mismatch, "\(name).\(tensorName): \(tensor.dtype.name) \(tensor.shape) cannot replace f32 [\(size)]")
        }
    }

    func noTensor(_ tensorName: String) -> PEFTError {
        PEFTError(.notFound, "\(name) (\(kind)) has no tensor \"\(tensorName)\"; it has \(tensors.map(\.name))")
    }
}
