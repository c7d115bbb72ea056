package import Autograd
package import Platform
internal import Tensors

/// Vision Transformer (arXiv:2010.11929), after transformers' `modeling_vit.py`: patches of a picture as tokens, a class token
/// in front, learned positions, blocks that normalise first.
package final class ViT: Architecture {
    package static let modelTypes = ["vit"]

    private let encoder: PictureEncoder
    /// `pooler.dense` of a bare model, or the classifier.
    private let pooler: Linear?
    private let classifier: Linear?

    /// transformers renamed the modules in version 5; files have either.
    package static func moduleName(_ name: String) -> String {
        let parts = name.split(separator: ".").map(String.init)
        guard let start = parts.firstIndex(of: "encoder"), parts.count > start + 4, parts[start + 1] == "layer" else { return name }
        let module = parts[(start + 3)..<(parts.count - 1)].joined(separator: ".")
        let new = [
            "attention.attention.query": "attention.q_proj", "attention.attention.key": "attention.k_proj", "attention.attention.value": "attention.v_proj",
            "attention.output.dense": "attention.o_proj", "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2",
        ][module]
        return (parts[..<start] + ["layers", parts[start + 2], new ?? module, parts[parts.count - 1]]).joined(separator: ".")
    }

    package init(_ configuration: ModelConfiguration, _ build: LayerBuilder) throws(PEFTError) {
        let hidden = try configuration.size("hidden_size")
        let prefix = build.has("vit.layernorm.weight") ? "vit." : ""
        let tokens = try PictureTokens(prefix + "embeddings", kind: "ViTEmbeddings", patchSize: 16, hidden, configuration, build)
        encoder = try PictureEncoder(
            prefix, tokens, layers: "layers", norms: ("layernorm_before", "layernorm_after"), isScaled: false, hidden, try configuration.size("intermediate_size"), configuration, build)
        let hasPooler = encoder.task == .features && build.has(prefix + "pooler.dense.weight")
        pooler = hasPooler ? try build.linear(prefix + "pooler.dense", hidden, hidden, bias: .required) : nil
        classifier = encoder.task == .classification ? try build.linear("classifier", hidden, try configuration.labelCount(), bias: .required) : nil
    }

    package var task: ModelTask { encoder.task }
    package var blockCount: Int { encoder.blocks.count }
    package var joins: [BlockPlace] { encoder.blocks.flatMap { [$0.places.attention, $0.places.output] } }
    package var featureShape: [Int]? { encoder.featureShape }

    package func hidden(_ input: ModelInput, _ context: ForwardContext) throws(PEFTError) -> Variable { try encoder(input, context) }

    package func logits(_ hidden: Variable, of input: ModelInput, rows: LogitRows, _ context: ForwardContext) throws(PEFTError) -> Variable {
        guard let classifier else { return hidden }
        return try classifier(try PictureTokens.first(of: hidden, context), context, as: .f32)
    }

    package func pooled(_ hidden: Variable, _ context: ForwardContext) throws(PEFTError) -> Variable? {
        guard let pooler else { return nil }
        return try context.tape.activation(try pooler(try PictureTokens.first(of: hidden, context), context), .tanh)
    }
}
