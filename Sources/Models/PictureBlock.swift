internal import Autograd
internal import Platform
internal import Tensors

/// Pictures as tokens: their patches, with a class token in front, at learned positions.
final class PictureTokens: Sendable {
    let channels: Int
    let imageSize: [Int]
    private let embeddings: BareTensors
    private let projection: Convolution
    private let dropout: Float
    /// Pictures of other sizes are read too, at positions in between (bicubic).
    private let interpolates: Bool
    /// Patches of a picture of `imageSize`.
    private let grid: [Int]

    /// - Parameter kind: the class name of the module.
    init(_ name: String, kind: String, patchSize: Int, interpolates: Bool = false, _ hidden: Int, _ configuration: ModelConfiguration, _ build: LayerBuilder) throws(PEFTError) {
        channels = try configuration.size("num_channels", or: 3)
        imageSize = try configuration.sizes("image_size", 2, from: 1, or: 224)
        let patch = try configuration.sizes("patch_size", 2, from: 1, or: patchSize)
        dropout = Float(try configuration.number("hidden_dropout_prob", or: 0))
        grid = [imageSize[0] / patch[0], imageSize[1] / patch[1]]
        self.interpolates = interpolates
        let count = grid[0] * grid[1]
        embeddings = try build.bare(name, kind: kind, [("cls_token", [1, 1, hidden]), ("position_embeddings", [1, count + 1, hidden])])
        let geometry = PatchGeometry(kernel: patch, stride: patch, padding: [0, 0], dilation: [1, 1])
        projection = try build.convolution(name + ".patch_embeddings.projection", channels, hidden, geometry, bias: .required)
    }

    /// `[batch·(patches + 1), hiddenSize]`, and the pass over so many tokens.
    func callAsFunction(_ input: ModelInput, _ context: ForwardContext) throws(PEFTError) -> (x: Variable, context: ForwardContext) {
        guard case .features(let pictures) = input else { throw PEFTError(.argument, "this model reads pictures (pixel_values), not tokens") }
        let (shape, tape) = (pictures.shape, context.tape)
        guard shape.count == 4, shape[1] == channels, interpolates || Array(shape[2...]) == imageSize else {
            throw PEFTError(.argument, "pixel_values has the shape \(shape); [batch, \(channels), \(imageSize[0]), \(imageSize[1])] is needed (peft_model_preprocess makes it of pictures)")
        }
        let activation = tape.precision.activation
        let (patches, size) = try projection(try tape.cast(pictures, to: activation), size: Array(shape[2...]), layout: .channelsFirst, context)
        let (batch, count, width) = (context.batch, patches.value.rows / max(context.batch, 1), patches.value.columns)
        let first = try tape.cast(try tape.reshaped(try embeddings.variable("cls_token", context), [1, width]), to: activation)
        let all = try tape.concatenateRows([first, patches])
        let order = (0..<batch).flatMap { picture in (0...count).map { Int32(clamping: $0 == 0 ? 0 : 1 + picture * count + $0 - 1) } }
        let places = try tape.cast(try self.places(size, width, context), to: activation)
        let positions = (0..<batch).flatMap { _ in 0...Int32(clamping: count) }
        let sum = try tape.add(try tape.gatherRows(all, order), try tape.gatherRows(places, positions))
        return (try tape.dropout(sum, dropout), context.tokens(count + 1))
    }

    /// `[patches + 1, hiddenSize]`: where the class token and each patch of a picture of `size` patches stand.
    private func places(_ size: [Int], _ width: Int, _ context: ForwardContext) throws(PEFTError) -> Variable {
        let (tape, count) = (context.tape, grid[0] * grid[1])
        let learned = try tape.reshaped(try embeddings.variable("position_embeddings", context), [count + 1, width])
        guard size != grid else { return learned }
        let (rows, columns) = (PictureTokens.weights(from: grid[0], to: size[0]), PictureTokens.weights(from: grid[1], to: size[1]))
        var weights: [Float] = []
        for row in rows { for column in columns { weights += row.flatMap { r in column.map { r * $0 } } } }
        let matrix = try Tensor(tape.engine, weights, shape: [size[0] * size[1], count])
        let between = try tape.linear(Variable(matrix), try tape.rows(learned, 1..<count + 1), bias: nil, transposed: true)
        return try tape.concatenateRows([try tape.rows(learned, 0..<1), between])
    }

    /// What each of `new` places in a row takes of `old` ones: cubic convolution with a = −0.75, as torch's `interpolate`.
    private static func weights(from old: Int, to new: Int) -> [[Float]] {
        func weight(_ distance: Double) -> Double {
            let (x, a) = (abs(distance), -0.75)
            return x <= 1 ? ((a + 2) * x - (a + 3)) * x * x + 1 : x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0
        }
        return (0..<new).map { place in
            let position = (Double(place) + 0.5) * Double(old) / Double(new) - 0.5
            let first = Int(position.rounded(.down))
            var row = [Float](repeating: 0, count: old)
            for tap in first - 1...first + 2 { row[min(max(tap, 0), old - 1)] += Float(weight(position - Double(tap))) }
            return row
        }
    }

    /// The class token of each picture.
    static func first(of hidden: Variable, _ context: ForwardContext) throws(PEFTError) -> Variable {
        let each = hidden.value.rows / max(context.batch, 1)
        return try context.tape.gatherRows(hidden, (0..<context.batch).map { Int32(clamping: $0 * each) })
    }
}

/// One layer of an encoder of pictures; DINOv2 scales what each half adds, by a learned vector.
///
///     x ← x + s₁·drop(o(attention(q(n), k(n), v(n))))    n = norm(x)
///     x ← x + s₂·drop(fc2(f(fc1(n))))                    n = norm(x)
final class PictureBlock: Sendable {
    private let query: Linear, key: Linear, value: Linear, output: Linear
    private let attentionNorm: LayerNorm, feedForwardNorm: LayerNorm
    private let expansion: Linear, contraction: Linear
    private let scales: [BareTensors]
    private let attention: SelfAttention
    private let activation: ActivationKind
    private let dropout: Float
    /// Under the names of transformers 4, which the `adapters` library has.
    let places: (attention: BlockPlace, output: BlockPlace)

    /// - Parameters:
    ///   - norms: of attention, of the feed-forward.
    ///   - isScaled: in modules "layer_scale1" and "layer_scale2".
    init(
        _ layer: Int, _ name: String, norms: (attention: String, feedForward: String), isScaled: Bool, _ hidden: Int, _ inner: Int, _ configuration: ModelConfiguration, _ build: LayerBuilder
    ) throws(PEFTError) {
        let module = "\(name.split(separator: ".").first == "vit" ? "vit." : "")encoder.layer.\(layer)."
        places = (BlockPlace(.attention, layer, module + "attention_adapters"), BlockPlace(.output, layer, module + "output.output_adapters"))
        let heads = try configuration.size("num_attention_heads")
        guard hidden % heads == 0 else { throw PEFTError(.format, "\(configuration.origin): hidden_size \(hidden) does not divide into \(heads) heads") }
        let epsilon = try configuration.number("layer_norm_eps", or: isScaled ? 1e-6 : 1e-12)
        let bias: LayerBuilder.Bias = try configuration.flag("qkv_bias", or: true) ? .required : .none
        attentionNorm = try build.layerNorm("\(name).\(norms.attention)", hidden, epsilon: epsilon)
        query = try build.linear(name + ".attention.q_proj", hidden, hidden, bias: bias)
        key = try build.linear(name + ".attention.k_proj", hidden, hidden, bias: bias)
        value = try build.linear(name + ".attention.v_proj", hidden, hidden, bias: bias)
        output = try build.linear(name + ".attention.o_proj", hidden, hidden, bias: .required)
        feedForwardNorm = try build.layerNorm("\(name).\(norms.feedForward)", hidden, epsilon: epsilon)
        expansion = try build.linear(name + ".mlp.fc1", hidden, inner, bias: .required)
        contraction = try build.linear(name + ".mlp.fc2", inner, hidden, bias: .required)
        scales = try (isScaled ? ["1", "2"] : []).map { (half) throws(PEFTError) in
            try build.bare("\(name).layer_scale\(half)", kind: "Dinov2LayerScale", [("lambda1", [hidden])])
        }
        attention = SelfAttention(layer: layer, heads: heads, keyValueHeads: heads, headSize: hidden / heads, isCausal: false)
        activation = try ActivationKind("hidden_act", of: configuration, or: "gelu")
        dropout = Float(try configuration.number("hidden_dropout_prob", or: 0))
    }

    func callAsFunction(_ x: consuming Variable, _ context: ForwardContext) throws(PEFTError) -> Variable {
        let tape = context.tape
        let normed = try attentionNorm(x, context)
        let attended = try output(try attention(try query(normed, context), try key(normed, context), try value(normed, context), context), context)
        let middle = try context.join(try scaled(attended, by: 0, context), to: x, at: places.attention)
        let inner = try tape.activation(try expansion(try feedForwardNorm(middle, context), context), activation)
        return try context.join(try scaled(try contraction(inner, context), by: 1, context), to: middle, at: places.output)
    }

    private func scaled(_ y: Variable, by half: Int, _ context: ForwardContext) throws(PEFTError) -> Variable {
        let dropped = try context.tape.dropout(y, dropout)
        guard half < scales.count else { return dropped }
        return try context.tape.scaleColumns(dropped, scale: try scales[half].variable("lambda1", context), shift: nil)
    }
}

/// What networks of pictures have in front of their heads: tokens, blocks, a norm.
final class PictureEncoder: Sendable {
    let task: ModelTask
    let blocks: [PictureBlock]
    private let tokens: PictureTokens
    private let norm: LayerNorm

    /// - Parameter layers: what the blocks are under.
    init(
        _ prefix: String, _ tokens: PictureTokens, layers: String, norms: (attention: String, feedForward: String), isScaled: Bool, _ hidden: Int, _ inner: Int,
        _ configuration: ModelConfiguration, _ build: LayerBuilder
    ) throws(PEFTError) {
        let name = configuration.headClass ?? ""
        task = name.hasSuffix("ForImageClassification") ? .classification : .features
        guard task == .classification || name.hasSuffix("Model") else { throw configuration.unsupported("architectures", "…ForImageClassification, …Model") }
        try configuration.warnOfAttentionDropout("attention_probs_dropout_prob", build)
        self.tokens = tokens
        blocks = try (0..<(try configuration.size("num_hidden_layers", most: 4096))).map { (layer) throws(PEFTError) in
            try PictureBlock(layer, "\(prefix)\(layers).\(layer)", norms: norms, isScaled: isScaled, hidden, inner, configuration, build)
        }
        norm = try build.layerNorm(prefix + "layernorm", hidden, epsilon: try configuration.number("layer_norm_eps", or: isScaled ? 1e-6 : 1e-12))
    }

    var featureShape: [Int] { [tokens.channels] + tokens.imageSize }

    /// `[batch·(patches + 1), hiddenSize]`
    func callAsFunction(_ input: ModelInput, _ context: ForwardContext) throws(PEFTError) -> Variable {
        let (tokens, inner) = try self.tokens(input, context)
        var x = tokens
        for (number, block) in blocks.enumerated() {
            x = try inner.block(number, consume x) { (x, _, context) throws(PEFTError) in try block(x, context) }
        }
        return try norm(x, inner)
    }
}
