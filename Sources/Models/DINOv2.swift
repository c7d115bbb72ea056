package import Autograd
package import Platform
internal import Tensors

/// DINOv2 (arXiv:2304.07193), after transformers' `modeling_dinov2.py`: a Vision Transformer whose blocks scale what they add, and
/// whose classifier reads the class token beside the mean of the patches.
package final class DINOv2: Architecture {
    package static let modelTypes = ["dinov2"]

    package let task: ModelTask
    private let tokens: PictureTokens
    private let blocks: [PictureBlock]
    private let norm: LayerNorm
    private let classifier: Linear?

    /// transformers renamed the modules of attention in version 5; files have either.
    package static func moduleName(_ name: String) -> String {
        for (old, new) in [
            ("attention.attention.query", "attention.q_proj"), ("attention.attention.key", "attention.k_proj"), ("attention.attention.value", "attention.v_proj"),
            ("attention.output.dense", "attention.o_proj"),
        ] {
            guard let dot = name.lastIndex(of: "."), name[..<dot].hasSuffix("." + old) else { continue }
            return name[..<dot].dropLast(old.count) + new + name[dot...]
        }
        return name
    }

    package init(_ configuration: ModelConfiguration, _ build: LayerBuilder) throws(PEFTError) {
        let hidden = try configuration.size("hidden_size")
        let name = configuration.headClass ?? ""
        task = name.hasSuffix("ForImageClassification") ? .classification : .features
        guard task == .classification || name.hasSuffix("Model") else { throw configuration.unsupported("architectures", "…ForImageClassification, …Model") }
        try configuration.require("use_swiglu_ffn", .bool(false))
        try configuration.warnOfAttentionDropout("attention_probs_dropout_prob", build)
        let prefix = build.has("dinov2.layernorm.weight") ? "dinov2." : ""
        // For training with patches hidden.
        build.ignore { $0.hasSuffix("embeddings.mask_token") }
        tokens = try PictureTokens(prefix + "embeddings", kind: "Dinov2Embeddings", patchSize: 14, interpolates: true, hidden, configuration, build)
        let inner = Double(hidden) * (try configuration.number("mlp_ratio", or: 4))
        guard inner >= 1, inner <= 16_777_216 else { throw PEFTError(.format, "\(configuration.origin): mlp_ratio makes \(inner) of hidden_size \(hidden)") }
        blocks = try (0..<(try configuration.size("num_hidden_layers", most: 4096))).map { (layer) throws(PEFTError) in
            try PictureBlock(layer, prefix + "encoder.layer.\(layer)", norms: ("norm1", "norm2"), isScaled: true, hidden, Int(inner), configuration, build)
        }
        norm = try build.layerNorm(prefix + "layernorm", hidden, epsilon: try configuration.number("layer_norm_eps", or: 1e-6))
        classifier = task == .classification ? try build.linear("classifier", 2 * hidden, try configuration.labelCount(), bias: .required) : nil
    }

    package var blockCount: Int { blocks.count }
    package var featureShape: [Int]? { [tokens.channels] + tokens.imageSize }

    /// `[batch·(patches + 1), hiddenSize]`
    package func hidden(_ input: ModelInput, _ context: ForwardContext) throws(PEFTError) -> Variable {
        let (x, inner) = try tokens(input, context)
        return try norm(try blocks.run(x, inner), inner)
    }

    package func logits(_ hidden: Variable, of input: ModelInput, rows: LogitRows, _ context: ForwardContext) throws(PEFTError) -> Variable {
        guard let classifier else { return hidden }
        let each = hidden.value.rows / max(context.batch, 1)
        let patches = try context.tape.meanRows(hidden, (0..<context.batch).map { $0 * each + 1..<($0 + 1) * each })
        return try classifier(try context.tape.concatenateColumns([try PictureTokens.first(of: hidden, context), patches]), context, as: .f32)
    }

    package func pooled(_ hidden: Variable, _ context: ForwardContext) throws(PEFTError) -> Variable? {
        task == .features ? try PictureTokens.first(of: hidden, context) : nil
    }
}
