package import Autograd
package import Platform
internal import Tensors

/// Vision Transformer (arXiv:2010.11929), after transformers' `modeling_vit.py`: patches of a picture as tokens, a class token
/// in front, learned positions, blocks that normalise first.
package final class ViT: Architecture {
    package static let modelTypes = ["vit"]

    package let task: ModelTask
    private let embeddings: BareTensors
    private let projection: Convolution
    private let blocks: [ViTBlock]
    private let norm: LayerNorm
    /// `pooler.dense` of a bare model, or the classifier.
    private let pooler: Linear?
    private let classifier: Linear?
    private let channels: Int
    private let imageSize: [Int]
    private let dropout: Float

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
        let heads = try configuration.size("num_attention_heads")
        guard hidden % heads == 0 else { throw PEFTError(.format, "\(configuration.origin): hidden_size \(hidden) does not divide into \(heads) heads") }
        let epsilon = try configuration.number("layer_norm_eps", or: 1e-12)
        channels = try configuration.size("num_channels", or: 3)
        imageSize = try configuration.sizes("image_size", 2, from: 1, or: 224)
        let patch = try configuration.sizes("patch_size", 2, from: 1, or: 16)
        try configuration.warnOfAttentionDropout("attention_probs_dropout_prob", build)
        dropout = Float(try configuration.number("hidden_dropout_prob", or: 0))
        let name = configuration.headClass ?? ""
        task = name.hasSuffix("ForImageClassification") ? .classification : .features
        guard task == .classification || name.hasSuffix("Model") else { throw configuration.unsupported("architectures", "…ForImageClassification, …Model") }
        let prefix = build.has("vit.layernorm.weight") ? "vit." : ""
        let count = (imageSize[0] / patch[0]) * (imageSize[1] / patch[1])
        embeddings = try build.bare(prefix + "embeddings", kind: "ViTEmbeddings", [("cls_token", [1, 1, hidden]), ("position_embeddings", [1, count + 1, hidden])])
        let geometry = PatchGeometry(kernel: patch, stride: patch, padding: [0, 0], dilation: [1, 1])
        projection = try build.convolution(prefix + "embeddings.patch_embeddings.projection", channels, hidden, geometry, bias: .required)
        var blocks: [ViTBlock] = []
        for layer in 0..<(try configuration.size("num_hidden_layers", most: 4096)) {
            blocks.append(try ViTBlock(layer, prefix + "layers.\(layer)", hidden, heads, epsilon, dropout, configuration, build))
        }
        self.blocks = blocks
        norm = try build.layerNorm(prefix + "layernorm", hidden, epsilon: epsilon)
        let hasPooler = task == .features && build.has(prefix + "pooler.dense.weight")
        pooler = hasPooler ? try build.linear(prefix + "pooler.dense", hidden, hidden, bias: .required) : nil
        classifier = task == .classification ? try build.linear("classifier", hidden, try configuration.labelCount(), bias: .required) : nil
    }

    /// `[batch·(patches + 1), hiddenSize]`
    package var blockCount: Int { blocks.count }
    package func hidden(_ input: ModelInput, _ context: ForwardContext) throws(PEFTError) -> Variable {
        guard case .features(let pictures) = input else { throw PEFTError(.argument, "this model reads pictures (pixel_values), not tokens") }
        guard Array(pictures.shape.dropFirst()) == [channels] + imageSize else {
            throw PEFTError(.argument, "pixel_values has the shape \(pictures.shape); [batch, \(channels), \(imageSize[0]), \(imageSize[1])] is needed")
        }
        let tape = context.tape
        let activation = tape.precision.activation
        let (patches, _) = try projection(try tape.cast(pictures, to: activation), size: imageSize, layout: .channelsFirst, context)
        let (batch, count, width) = (context.batch, patches.value.rows / max(context.batch, 1), patches.value.columns)
        // The class token in front of each picture's patches, and everybody's position.
        let first = try tape.cast(try tape.reshaped(try embeddings.variable("cls_token", context), [1, width]), to: activation)
        let all = try tape.concatenateRows([first, patches])
        let order = (0..<batch).flatMap { picture in (0...count).map { Int32(clamping: $0 == 0 ? 0 : 1 + picture * count + $0 - 1) } }
        let places = try tape.cast(try tape.reshaped(try embeddings.variable("position_embeddings", context), [count + 1, width]), to: activation)
        let positions = (0..<batch).flatMap { _ in 0...Int32(clamping: count) }
        let sum = try tape.add(try tape.gatherRows(all, order), try tape.gatherRows(places, positions))
        var x = try tape.dropout(sum, dropout)
        let inner = context.tokens(count + 1)
        for (number, block) in blocks.enumerated() {
            x = try inner.block(number, consume x) { (x, _, inner) throws(PEFTError) in try block(x, inner) }
        }
        return try norm(x, inner)
    }

    package func logits(_ hidden: Variable, of input: ModelInput, rows: LogitRows, _ context: ForwardContext) throws(PEFTError) -> Variable {
        guard let classifier else { return hidden }
        return try classifier(try firstTokens(hidden, context), context, as: .f32)
    }

    package func pooled(_ hidden: Variable, _ context: ForwardContext) throws(PEFTError) -> Variable? {
        guard let pooler else { return nil }
        return try context.tape.activation(try pooler(try firstTokens(hidden, context), context), .tanh)
    }

    private func firstTokens(_ hidden: Variable, _ context: ForwardContext) throws(PEFTError) -> Variable {
        let each = hidden.value.rows / max(context.batch, 1)
        return try context.tape.gatherRows(hidden, (0..<context.batch).map { Int32(clamping: $0 * each) })
    }
}

/// One layer of the encoder:
///
///     x ← x + drop(o(attention(q(n), k(n), v(n))))    n = norm(x)
///     x ← x + drop(fc2(f(fc1(n))))                    n = norm(x)
private final class ViTBlock: Sendable {
    private let query: Linear, key: Linear, value: Linear, output: Linear
    private let attentionNorm: LayerNorm, feedForwardNorm: LayerNorm
    private let expansion: Linear, contraction: Linear
    private let attention: SelfAttention
    private let activation: ActivationKind
    private let dropout: Float

    init(
        _ layer: Int, _ name: String, _ hidden: Int, _ heads: Int, _ epsilon: Double, _ dropout: Float, _ configuration: ModelConfiguration, _ build: LayerBuilder
    ) throws(PEFTError) {
        let bias: LayerBuilder.Bias = try configuration.flag("qkv_bias", or: true) ? .required : .none
        query = try build.linear(name + ".attention.q_proj", hidden, hidden, bias: bias)
        key = try build.linear(name + ".attention.k_proj", hidden, hidden, bias: bias)
        value = try build.linear(name + ".attention.v_proj", hidden, hidden, bias: bias)
        output = try build.linear(name + ".attention.o_proj", hidden, hidden, bias: .required)
        attentionNorm = try build.layerNorm(name + ".layernorm_before", hidden, epsilon: epsilon)
        feedForwardNorm = try build.layerNorm(name + ".layernorm_after", hidden, epsilon: epsilon)
        let inner = try configuration.size("intermediate_size")
        expansion = try build.linear(name + ".mlp.fc1", hidden, inner, bias: .required)
        contraction = try build.linear(name + ".mlp.fc2", inner, hidden, bias: .required)
        attention = SelfAttention(layer: layer, heads: heads, keyValueHeads: heads, headSize: hidden / heads, isCausal: false)
        activation = try ActivationKind("hidden_act", of: configuration, or: "gelu")
        self.dropout = dropout
    }

    func callAsFunction(_ x: consuming Variable, _ context: ForwardContext) throws(PEFTError) -> Variable {
        let tape = context.tape
        let normed = try attentionNorm(x, context)
        let attended = try output(try attention(try query(normed, context), try key(normed, context), try value(normed, context), context), context)
        let middle = try tape.add(x, try tape.dropout(attended, dropout))
        let inner = try tape.activation(try expansion(try feedForwardNorm(middle, context), context), activation)
        return try tape.add(middle, try tape.dropout(try contraction(inner, context), dropout))
    }
}
