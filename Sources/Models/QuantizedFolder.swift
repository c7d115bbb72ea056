internal import Checkpoints
internal import Platform
internal import Tensors

/// Folders whose weights a library for PyTorch has quantised: their tensors under the names and shapes of the plain model, in
/// weight formats with the same values.
enum QuantizedFolder {
    static func restored(_ tensors: TensorSource, _ config: JSONObject, _ engine: Engine) throws(PEFTError) -> TensorSource {
        guard let settings = config["quantization_config"]?.objectValue else { return tensors }
        // bitsandbytes was the first, and had no name then.
        let method = settings["quant_method"]?.stringValue ?? (settings["load_in_4bit"] ?? settings["load_in_8bit"] == nil ? "" : "bitsandbytes")
        switch method {
        case "bitsandbytes": return try BitsAndBytes.restored(tensors, engine)
        default:
            throw PEFTError(.unsupported, "\(tensors.origin): the weights were quantised by \"\(method)\"; this version reads bitsandbytes")
        }
    }
}
