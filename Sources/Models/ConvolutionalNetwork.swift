package import Autograd
package import Platform
internal import Tensors

/// A plain convolutional network of a host, after the conformance kit's descriptor: `convs.<i>` (each with "out", "kernel",
/// "stride", "padding", "dilation", "groups") with the activation after each, the mean over all positions, `head`.
package final class ConvolutionalNetwork: Architecture {
    package static let modelTypes = ["cnn"]

    package let task = ModelTask.classification
    private let dimensions: Int
    private let convolutions: [Convolution]
    private let classifier: Linear
    private let activation: ActivationKind

    package init(_ configuration: ModelConfiguration, _ build: LayerBuilder) throws(PEFTError) {
        dimensions = try configuration.size("dims", or: 2, most: 3)
        activation = try ActivationKind("activation", of: configuration, or: "relu")
        guard let list = configuration.json["convs"]?.arrayValue, !list.isEmpty else {
            throw PEFTError(.format, "\(configuration.origin): config \"convs\" is \(configuration.json["convs"]?.text() ?? "missing"); a list of convolutions is needed")
        }
        var channels = try configuration.size("in_channels")
        var convolutions: [Convolution] = []
        for (index, item) in list.enumerated() {
            let settings = ModelConfiguration(item.objectValue ?? JSONObject(), origin: "\(configuration.origin): convs[\(index)]")
            let outputs = try settings.size("out")
            convolutions.append(
                try build.convolution("convs.\(index)", channels, outputs, try settings.geometry(dimensions), groups: try settings.size("groups", or: 1), bias: .optional))
            channels = outputs
        }
        self.convolutions = convolutions
        classifier = try build.linear("head", channels, try configuration.size("classes"), bias: .optional)
    }

    /// The means over all positions, `[batch, channels]`.
    package func hidden(_ input: ModelInput, _ context: ForwardContext) throws(PEFTError) -> Variable {
        guard case .features(let pictures) = input else { throw PEFTError(.argument, "this model reads pictures (x), not tokens") }
        let shape = pictures.shape
        guard shape.count == dimensions + 2, shape[1] == convolutions.first?.inputChannels else {
            throw PEFTError(.argument, "x has the shape \(shape); [batch, \(convolutions.first?.inputChannels ?? 0)] and \(dimensions) sizes are needed")
        }
        let tape = context.tape
        var x = try tape.cast(pictures, to: tape.precision.activation)
        var (size, layout) = (Array(shape.dropFirst(2)), PictureLayout.channelsFirst)
        for convolution in convolutions {
            let (y, smaller) = try convolution(x, size: size, layout: layout, context)
            x = try tape.activation(y, activation)
            (size, layout) = (smaller, .channelsLast)
        }
        let positions = size.reduce(1, *)
        return try tape.meanRows(x, (0..<context.batch).map { $0 * positions..<($0 + 1) * positions })
    }

    package func logits(_ hidden: Variable, of input: ModelInput, rows: LogitRows, _ context: ForwardContext) throws(PEFTError) -> Variable {
        try classifier(hidden, context, as: .f32)
    }
}

extension ModelConfiguration {
    /// "kernel", "stride", "padding", "dilation": a number for all dimensions, or one for each.
    func geometry(_ dimensions: Int) throws(PEFTError) -> PatchGeometry {
        PatchGeometry(
            kernel: try sizes("kernel", dimensions, from: 1, or: nil), stride: try sizes("stride", dimensions, from: 1, or: 1),
            padding: try sizes("padding", dimensions, from: 0, or: 0), dilation: try sizes("dilation", dimensions, from: 1, or: 1))
    }

    /// Sizes of pictures and kernels stay below this, so that their products fit.
    private static let longest = 1 << 15

    package func sizes(_ key: String, _ dimensions: Int, from least: Int, or fallback: Int?) throws(PEFTError) -> [Int] {
        let value = json[key] ?? .null
        let list = value.arrayValue?.map(\.intValue) ?? Array(repeating: value.isNull ? fallback : value.intValue, count: dimensions)
        let sizes = list.compactMap { $0 }.filter { $0 >= least && $0 <= ModelConfiguration.longest }
        guard sizes.count == dimensions, list.count == dimensions else {
            throw PEFTError(.format, "\(origin): config \"\(key)\" is \(json[key]?.text() ?? "missing"); \(dimensions) sizes from \(least) to \(ModelConfiguration.longest) are needed")
        }
        return sizes
    }
}
