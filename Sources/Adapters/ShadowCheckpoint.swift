internal import Checkpoints
internal import Models
internal import Platform
internal import Tensors

/// A trained decoder that becomes the network beside: `shadow_model` is its folder, a decoder's (whose head is not read) or one of
/// "causal_lm_with_hidden_projection", a decoder with the matrix that leads from its states to the base model's.
struct ShadowCheckpoint {
    let config: JSONObject
    let hiddenSize: Int
    /// `[base's size, its own]`
    let projection: Tensor?
    private let tensors: TensorSource
    private let prefix: String

    init(_ path: String, _ configuration: AdapterConfiguration, _ model: Model) throws(PEFTError) {
        let sizes = ["shadow_hidden_size", "shadow_intermediate_size", "shadow_num_attention_heads", "shadow_num_hidden_layers"]
        if let key = sizes.first(where: { configuration.isSet($0) }) {
            throw PEFTError(.argument, "\(key) is for shadow_model 'mirror'; '\(path)' has sizes of its own")
        }
        let folder = try ModelFolder(path: path, budget: model.engine.budget)
        tensors = folder.tensors
        var config = folder.config
        if config["model_type"] == .string("causal_lm_with_hidden_projection") {
            guard let inner = config["shadow_model_config"]?.objectValue else { throw PEFTError(.format, "\(path): config.json has no object \"shadow_model_config\"") }
            config = inner
            prefix = "shadow_model."
            projection = try tensors.tensor(named: "shadow_hidden_projection.weight")
        } else {
            prefix = tensors.contains("model.embed_tokens.weight") ? "model." : ""
            projection = nil
        }
        config["architectures"] = .array([.string("ShadowModel")])  // any name without a head
        self.config = config
        hiddenSize = try ModelConfiguration(config, origin: path).size("hidden_size")
    }

    /// Fills a tensor of the network.
    func read(_ name: String, into value: Tensor, _ engine: Engine) throws(PEFTError) {
        let tensor = try tensors.tensor(named: prefix + name)
        guard tensor.shape == value.shape, tensor.dtype.isWeightFormat else {
            throw PEFTError(.mismatch, "\(tensors.origin): '\(prefix + name)' is \(tensor.dtype.name) \(tensor.shape); \(value.shape) is needed")
        }
        engine.axpby(1, try tensor.converted(to: .f32, engine, .scratch), 0, into: value)
    }
}
