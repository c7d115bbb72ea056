package import Autograd
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
    func setTensor(_ name: String, _ tensor: Tensor) throws(PEFTError)
}
