package import Autograd
package import Models
package import Platform
package import Tensors

/// The adapters of one model: which there are, which act, what is merged. Safe from several threads.
///
/// Values are changed under the model's write lock; the adaptation handed to a computation stays what it was.
package final class AdapterSet: Sendable {
    package let model: Model

    package init(_ model: Model) { self.model = model }

    /// A fresh adapter from PEFT's configuration. The first one becomes active.
    package func add(_ name: String, _ config: JSONObject, seed: UInt64 = 0, trainable: Bool = true) throws(PEFTError) { throw AdapterSet.missing }
    /// From a PEFT folder or an HDF5 file. The first one becomes active.
    package func load(_ name: String, path: String, trainable: Bool) throws(PEFTError) { throw AdapterSet.missing }
    /// A PEFT folder; a path that ends in ".h5": one HDF5 file.
    package func save(_ name: String, path: String) throws(PEFTError) { throw AdapterSet.missing }
    package func remove(_ name: String) throws(PEFTError) { throw AdapterSet.missing }
    package func rename(_ name: String, to newName: String) throws(PEFTError) { throw AdapterSet.missing }
    /// Which act, in this order.
    package func setActive(_ adapters: [(name: String, weight: Float)]) throws(PEFTError) { throw AdapterSet.missing }
    package func setEnabled(_ isEnabled: Bool) { }
    /// Relative to the configuration (PEFT's set_scale).
    package func setScale(_ name: String, _ factor: Float) throws(PEFTError) { throw AdapterSet.missing }
    package func setTrainable(_ name: String, _ isTrainable: Bool) throws(PEFTError) { throw AdapterSet.missing }
    /// As `peft_adapter_status` has it.
    package func status() -> JSONObject { JSONObject() }
    /// As it would be saved.
    package func configuration(of name: String) throws(PEFTError) -> JSONObject { throw AdapterSet.missing }
    /// What would be saved, by saved key. Copies: later steps do not change them.
    package func state(of name: String) throws(PEFTError) -> [(name: String, tensor: Tensor)] { throw AdapterSet.missing }
    /// Sets tensors (any float type) by saved key; all or nothing.
    package func setState(of name: String, _ tensors: [(name: String, tensor: Tensor)]) throws(PEFTError) { throw AdapterSet.missing }
    /// The trainable parameters of the active adapters, by saved key, "adapter|key" when several are active.
    package func trainableParameters() throws(PEFTError) -> [(key: String, parameter: Parameter)] { throw AdapterSet.missing }

    /// What the active adapters do now (nothing when disabled). Cheap: kept until something changes.
    package func activeAdaptation() throws(PEFTError) -> Adaptation { throw AdapterSet.missing }
    /// What these adapters do. Cheap for a list that was asked for before.
    package func adaptation(of adapters: [(name: String, weight: Float)]) throws(PEFTError) -> Adaptation { throw AdapterSet.missing }
    /// One adapter per sample of a batch; nil: the base model.
    package func routing(samples: [String?]) throws(PEFTError) -> Routing { throw AdapterSet.missing }

    /// Folds adapters (nil: the active ones) into the base weights, layer by layer.
    /// - Returns: as `peft_model_merge` reports it.
    package func merge(_ names: [String]?, safe: Bool) throws(PEFTError) -> JSONObject { throw AdapterSet.missing }
    /// Gives back the exact weights from before.
    package func unmerge() throws(PEFTError) { throw AdapterSet.missing }
    /// Merges the active adapters for good and removes all.
    package func mergeAndUnload() throws(PEFTError) { throw AdapterSet.missing }

    private static var missing: PEFTError { PEFTError(.unsupported, "adapters") }
}
