package import Autograd
package import Platform
internal import Tensors

/// A plain network of a host, after the conformance kit's descriptor `{"model_type": "mlp", "layers": [16, 32, 8],
/// "activation": "relu"}`: linear layers `layers.<i>` with the activation between them, logits at the end.
package final class MultilayerPerceptron: Architecture {
    package static let modelTypes = ["mlp"]

    package let task = ModelTask.classification
    private let linears: [Linear]
    private let activation: ActivationKind

    package init(_ configuration: ModelConfiguration, _ build: LayerBuilder) throws(PEFTError) {
        let sizes = configuration.json["layers"]?.arrayValue?.compactMap(\.intValue) ?? []
        guard sizes.count >= 2, sizes.count == configuration.json["layers"]?.arrayValue?.count, sizes.allSatisfy({ $0 > 0 }) else {
            throw PEFTError(.format, "\(configuration.origin): config \"layers\" is \(configuration.json["layers"]?.text() ?? "missing"); two or more sizes are needed")
        }
        activation = try ActivationKind("activation", of: configuration, or: "relu")
        var linears: [Linear] = []
        for (layer, (inputs, outputs)) in zip(sizes, sizes.dropFirst()).enumerated() {
            linears.append(try build.linear("layers.\(layer)", inputs, outputs, bias: .optional))
        }
        self.linears = linears
    }

    /// The input of the last layer.
    package func hidden(_ input: ModelInput, _ context: ForwardContext) throws(PEFTError) -> Variable {
        guard case .features(let features) = input else { throw PEFTError(.argument, "this model reads vectors (x), not tokens") }
        guard features.value.columns == linears.first?.inputSize else {
            throw PEFTError(.argument, "x has \(features.value.columns) values a row; this model reads \(linears.first?.inputSize ?? 0)")
        }
        var x = try context.tape.cast(features, to: context.tape.precision.activation)
        for linear in linears.dropLast() { x = try context.tape.activation(try linear(x, context), activation) }
        return x
    }

    package func logits(_ hidden: Variable, of input: ModelInput, rows: LogitRows, _ context: ForwardContext) throws(PEFTError) -> Variable {
        guard let last = linears.last else { throw PEFTError(.internal, "a perceptron without layers") }
        return try last(hidden, context, as: .f32)
    }
}
