package import Platform
package import Tensors

/// An adapter as it is stored: PEFT's configuration and its tensors under their saved names, from a PEFT folder or an
/// HDF5 file. Nothing is known here about methods or models.
package struct AdapterFiles: Sendable {
    /// Exactly the keys of `adapter_config.json`; none: a file of other makers', whose tensors' names say all.
    package let config: JSONObject
    package let tensors: TensorSource

    package static let configFile = "adapter_config.json"
    package static let weightsFile = "adapter_model.safetensors"
    /// The weights in a folder of AdapterHub's `adapters` library, whose adapter_config.json has no peft_type but a "config".
    package static let libraryWeightsFile = "adapter.safetensors"
    /// The same of the attention that fuses some.
    package static let fusionConfigFile = "adapter_fusion_config.json"
    package static let fusionWeightsFile = "model_adapter_fusion.safetensors"
    /// Frozen tensors that PEFT computes again from the base weights when it loads; with them the adapter is the same everywhere.
    package static let derivedFile = "adapter_derived.safetensors"
    private static let pickleFile = "adapter_model.bin"
    /// Group and attribute of an HDF5 file (docs/checkpoint-layout.md).
    package static let group = "adapter"
    package static let configAttribute = "adapter_config"

    package init(config: JSONObject, tensors: TensorSource) {
        self.config = config
        self.tensors = tensors
    }

    /// Opens a PEFT folder, a safetensors file without a configuration, or an HDF5 file written by `writeHDF5` or by a trainer.
    package static func open(path: String, budget: MemoryBudget) throws(PEFTError) -> AdapterFiles {
        switch try Files.kind(of: path) {
        case .folder: try openFolder(path, budget)
        case .file where path.hasSuffix(".safetensors"): AdapterFiles(config: JSONObject(), tensors: try Safetensors.open(path: path, budget: budget))
        case .file: try AdapterFiles(CheckpointFile.read(path: path, budget: budget), origin: path)
        default: throw PEFTError(.notFound, "there is no adapter at '\(path)': neither a folder nor an HDF5 file")
        }
    }

    /// The adapter inside a checkpoint.
    package init(_ checkpoint: CheckpointFile, origin: String) throws(PEFTError) {
        guard let config = checkpoint.attributes[AdapterFiles.configAttribute]?.objectValue, let tensors = checkpoint.groups[AdapterFiles.group] else {
            throw PEFTError(.format, "\(origin): no adapter in it (group '\(AdapterFiles.group)' and attribute '\(AdapterFiles.configAttribute)')")
        }
        self.init(config: config, tensors: try TensorSource(origin: origin, tensors))
    }

    private static func openFolder(_ path: String, _ budget: MemoryBudget) throws(PEFTError) -> AdapterFiles {
        let isFusion = !Files.isFile(Files.join(path, configFile)) && Files.isFile(Files.join(path, fusionConfigFile))
        let configPath = Files.join(path, isFusion ? fusionConfigFile : configFile)
        guard Files.isFile(configPath) else { throw PEFTError(.notFound, "'\(path)' has no \(configFile): not an adapter folder") }
        let config = try Files.jsonObject(at: configPath)
        let isLibrarys = config["peft_type"] == nil && config["config"]?.objectValue != nil
        let weightsFile = isFusion ? fusionWeightsFile : isLibrarys ? libraryWeightsFile : weightsFile
        let pickleFile = isFusion ? "pytorch_model_adapter_fusion.bin" : isLibrarys ? "pytorch_adapter.bin" : pickleFile
        let weightsPath = Files.join(path, weightsFile)
        guard Files.isFile(weightsPath) else {
            let isPickled = Files.isFile(Files.join(path, pickleFile))
            let reason = isPickled ? "; \(pickleFile) is a pickle, which can run code and is never read: save it again as safetensors (safe_serialization=True, use_safetensors=True)" : ""
            throw PEFTError(.notFound, "'\(path)' has no \(weightsFile)\(reason)")
        }
        let tensors = try Safetensors.open(path: weightsPath, budget: budget)
        let derivedPath = Files.join(path, derivedFile)
        guard Files.isFile(derivedPath) else { return AdapterFiles(config: config, tensors: tensors) }
        let derived = try Safetensors.open(path: derivedPath, budget: budget)
        return AdapterFiles(config: config, tensors: try TensorSource(origin: weightsPath, tensors.all + derived.all))
    }

    /// Writes a PEFT folder: `adapter_model.safetensors` and `adapter_config.json` (sorted keys, two spaces, UTF-8).
    ///
    /// A new folder appears complete or not at all. In an existing one both files are complete on the disk before the first
    /// is renamed; the weights go first, so that a crash between the two renames leaves a configuration under which the new
    /// weights either load or are refused by name and shape. Other files of the folder are left alone.
    package static func writeFolder(_ path: String, config: JSONObject, tensors: [NamedTensor], derived: [NamedTensor] = [], weightsFile: String = weightsFile, configFile: String = configFile) throws(PEFTError) {
        let folder = try AtomicFolder(path)
        if !derived.isEmpty {
            var file = try folder.file(derivedFile)
            try Safetensors.write(derived, metadata: Safetensors.pytorchMetadata, into: &file)
            try file.finish()
            try file.publish()
        }
        var weights = try folder.file(weightsFile)
        var settings = try folder.file(configFile)
        try Safetensors.write(tensors, metadata: Safetensors.pytorchMetadata, into: &weights)
        try settings.write(JSONValue.object(config).text(indent: 2, sortKeys: true))
        try weights.finish()
        try settings.finish()
        try weights.publish()
        try settings.publish()
        try folder.commit()
    }

    /// Writes the same as one HDF5 file.
    package static func writeHDF5(_ path: String, config: JSONObject, tensors: [NamedTensor], budget: MemoryBudget) throws(PEFTError) {
        let attributes = JSONObject([configAttribute: .object(config)])
        try CheckpointFile(kind: .adapter, attributes: attributes, groups: [group: tensors]).write(to: path, budget: budget)
    }
}
