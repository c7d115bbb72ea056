package import Autograd
package import Platform
internal import Tensors

/// One layer of an encoder that normalises after each half, as the first transformers did (arXiv:1706.03762):
///
///     x ← norm(x + drop(o(attention(q(x), k(x), v(x)))))
///     x ← norm(x + drop(down(f(up(x)))))
package final class PostNormBlock: Sendable {
    /// What the modules are called, behind the layer's name.
    package struct Names: Sendable {
        package var query, key, value, output, attentionNorm, up, down, outputNorm: String
    }

    private let query: Linear, key: Linear, value: Linear, output: Linear
    private let attentionNorm: LayerNorm
    private let up: Linear, down: Linear
    private let outputNorm: LayerNorm
    private let attention: SelfAttention
    private let activation: ActivationKind
    private let dropout: Float
    let places: (attention: BlockPlace, output: BlockPlace)

    package init(
        _ layer: Int, _ name: String, _ names: Names, hiddenSize: Int, intermediateSize: Int, heads: Int, activation: ActivationKind, epsilon: Double, dropout: Float,
        _ build: LayerBuilder
    ) throws(PEFTError) {
        func linear(_ module: String, _ inputs: Int, _ outputs: Int) throws(PEFTError) -> Linear {
            try build.linear("\(name).\(module)", inputs, outputs, bias: .required)
        }
        /// The `adapters` library keeps them in the module that has the norm, or in modules of their own.
        func module(_ norm: String, or other: String) -> String {
            let parts = norm.split(separator: ".")
            return name + "." + (parts.count > 1 ? parts.dropLast().joined(separator: ".") : other)
        }
        places = (
            BlockPlace(.attention, layer, module(names.attentionNorm, or: "attention_adapters")), BlockPlace(.output, layer, module(names.outputNorm, or: "output_adapters"))
        )
        query = try linear(names.query, hiddenSize, hiddenSize)
        key = try linear(names.key, hiddenSize, hiddenSize)
        value = try linear(names.value, hiddenSize, hiddenSize)
        output = try linear(names.output, hiddenSize, hiddenSize)
        attentionNorm = try build.layerNorm("\(name).\(names.attentionNorm)", hiddenSize, epsilon: epsilon)
        up = try linear(names.up, hiddenSize, intermediateSize)
        down = try linear(names.down, intermediateSize, hiddenSize)
        outputNorm = try build.layerNorm("\(name).\(names.outputNorm)", hiddenSize, epsilon: epsilon)
        attention = SelfAttention(layer: layer, heads: heads, keyValueHeads: heads, headSize: hiddenSize / heads, isCausal: false)
        self.activation = activation
        self.dropout = dropout
    }

    package func callAsFunction(_ x: Variable, _ context: ForwardContext) throws(PEFTError) -> Variable {
        let tape = context.tape
        let attended = try output(try attention(try query(x, context), try key(x, context), try value(x, context), of: x, context), context)
        let middle = try context.join(try tape.dropout(attended, dropout), to: x, at: places.attention, attentionNorm)
        let inner = try tape.activation(try up(middle, context), activation)
        return try context.join(try tape.dropout(try down(inner, context), dropout), to: middle, at: places.output, outputNorm)
    }
}

extension [PostNormBlock] {
    /// One after the other, recomputed in the backward pass where the context says so.
    func run(_ x: Variable, _ context: ForwardContext) throws(PEFTError) -> Variable {
        var x = try context.entered(x)
        for (number, block) in enumerated() {
            x = try context.block(number, consume x) { (x, _, context) throws(PEFTError) in try block(x, context) }
        }
        return x
    }
}
