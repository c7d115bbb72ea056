package import Autograd
package import Platform
internal import Tensors

/// DINOv2 (arXiv:2304.07193), after transformers' `modeling_dinov2.py`: a Vision Transformer whose blocks scale what they add, and
/// whose classifier reads the class token beside the mean of the patches.
package final class DINOv2: Architecture {
    package static let modelTypes = ["dinov2"]

    private let encoder: PictureEncoder
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
        try configuration.require("use_swiglu_ffn", .bool(false))
        let prefix = build.has("dinov2.layernorm.weight") ? "dinov2." : ""
        // For training with patches hidden.
        build.ignore { $0.hasSuffix("embeddings.mask_token") }
        let inner = Double(hidden) * (try configuration.number("mlp_ratio", or: 4))
        guard inner >= 1, inner <= 16_777_216 else { throw PEFTError(.format, "\(configuration.origin): mlp_ratio makes \(inner) of hidden_size \(hidden)") }
        let tokens = try PictureTokens(prefix + "embeddings", kind: "Dinov2Embeddings", patchSize: 14, interpolates: true, hidden, configuration, build)
        encoder = try PictureEncoder(prefix, tokens, layers: "encoder.layer", norms: ("norm1", "norm2"), isScaled: true, hidden, Int(inner), configuration, build)
        classifier = encoder.task == .classification ? try build.linear("classifier", 2 * hidden, try configuration.labelCount(), bias: .required) : nil
    }

    package var task: ModelTask { encoder.task }
    package var blockCount: Int { encoder.blocks.count }
    package var featureShape: [Int]? { encoder.featureShape }

    package func hidden(_ input: ModelInput, _ context: ForwardContext) throws(PEFTError) -> Variable { try encoder(input, context) }

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
