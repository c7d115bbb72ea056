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
        case "awq": return try GroupQuantization.restored(tensors, settings, .awq, engine)
        case "gptq":
            let versions = ["gptq": 1, "gptq_v2": 0], version = settings["checkpoint_format"]?.stringValue ?? "gptq"
            guard let offset = versions[version] else { throw PEFTError(.unsupported, "\(tensors.origin): GPTQ of the form \"\(version)\"; \"gptq\" and \"gptq_v2\" are read") }
            return try GroupQuantization.restored(tensors, settings, .gptq(zeroOffset: offset), engine)
        default:
            throw PEFTError(.unsupported, "\(tensors.origin): the weights were quantised by \"\(method)\"; this version reads bitsandbytes, gptq and awq")
        }
    }
}
