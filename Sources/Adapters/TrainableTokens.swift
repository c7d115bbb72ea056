internal import Autograd
package import Models
package import Platform
internal import Tensors

/// Trainable tokens: some rows of an embedding train, and the same rows of the head that shares its matrix (`TokenRows`).
package struct TrainableTokens: AdapterMethod {
    package static let peftType = "TRAINABLE_TOKENS"
    package static let layerKinds = ["Embedding", "Linear"]
    package static let defaults: JSONObject = [
        "init_weights": .bool(true), "target_modules": .null, "token_indices": .array([]),
    ]

    private let indices: JSONValue
    private let isRandom: Bool

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        indices = configuration.values["token_indices"] ?? .null
        isRandom = try !configuration.flag("init_weights")
        guard configuration.values["target_modules"]?.isNull ?? true else { return }
        guard let embedding = model.layers.first(where: { $0 is Embedding }) else {
            throw PEFTError(.argument, "TRAINABLE_TOKENS: the model has no embedding; target_modules must name a matrix")
        }
        configuration.values["target_modules"] = .string(embedding.name)
    }

    package func module(for layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule {
        let isMatrix = layer is Embedding || (layer as? Linear).map { !$0.isTransposed && $0.tiedEmbedding == nil } ?? false
        guard isMatrix else {
            throw PEFTError(
                .unsupported, "'\(layer.name)' is \(layer.kind); TRAINABLE_TOKENS adapts Embedding, and Linear that is not tied to one")
        }
        let rows = try TokenRows.indices(indices, of: layer, key: "token_indices")
        return try TokenRows.module(layer, rows, end: TrainableTokens.end, isRandom: isRandom, model)
    }

    private static let end = ".trainable_tokens_delta"

    package func others(beside modules: [any AdapterModule], _ model: Model) throws(PEFTError) -> [any AdapterModule] {
        modules.compactMap { $0 as? TokenRows }.flatMap { $0.heads(end: TrainableTokens.end, model) }
    }
}
