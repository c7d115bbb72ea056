package import Autograd
package import Platform
internal import Tensors

/// One attention of a host's, after the conformance kit's descriptor `{"model_type": "mha", "embed_dim": 16, "num_heads": 4, "classes": 3}`:
/// torch's nn.MultiheadAttention `attn` of a sequence over itself, the mean over its steps, `head`.
package final class AttentionNetwork: Architecture {
    package static let modelTypes = ["mha"]

    /// The packed projection is the attention module's own.
    package static func moduleName(_ name: String) -> String {
        switch name {
        case "attn.in_proj_weight": "attn.weight"
        case "attn.in_proj_bias": "attn.bias"
        default: name
        }
    }

    package let task = ModelTask.classification
    private let projection: Linear
    private let output: Linear
    private let last: Linear
    private let heads: Int
    private let size: Int

    package init(_ configuration: ModelConfiguration, _ build: LayerBuilder) throws(PEFTError) {
        size = try configuration.size("embed_dim", most: 1 << 20)
        heads = try configuration.size("num_heads", most: 1 << 20)
        guard size % heads == 0 else { throw PEFTError(.format, "\(configuration.origin): embed_dim \(size) does not divide into \(heads) heads") }
        projection = try build.linear("attn", size, 3 * size, bias: .optional, kind: "MultiheadAttention")
        output = try build.linear("attn.out_proj", size, size, bias: .optional)
        last = try build.linear("head", size, try configuration.size("classes"), bias: .optional)
    }

    package func hidden(_ input: ModelInput, _ context: ForwardContext) throws(PEFTError) -> Variable {
        let tape = context.tape
        guard case .features(let features) = input, features.shape.count == 3, features.value.columns == size else {
            throw PEFTError(.argument, "this model reads sequences of vectors, x [batch, steps, \(size)]")
        }
        let steps = features.shape[1]
        let context = context.tokens(steps)
        let x = try tape.cast(try tape.reshaped(features, [context.batch * steps, size]), to: tape.precision.activation)
        let parts = try tape.splitColumns(try projection(x, context), [size, size, size])
        var attention = SelfAttention(layer: 0, heads: heads, keyValueHeads: heads, headSize: size / heads)
        attention.isCausal = false
        let attended = try output(try attention(parts[0], parts[1], parts[2], context), context)
        return try tape.meanRows(attended, (0..<context.batch).map { $0 * steps..<($0 + 1) * steps })
    }

    package func logits(_ hidden: Variable, of input: ModelInput, rows: LogitRows, _ context: ForwardContext) throws(PEFTError) -> Variable {
        try last(hidden, context, as: .f32)
    }
}
