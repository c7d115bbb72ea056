internal import Autograd
internal import Platform
internal import Tensors

/// One node of a host's graph, under torch's name for it.
struct GraphNode: Sendable {
    private enum Operation: Sendable {
        case linear(Linear)
        case convolution(Convolution)
        case embedding(Embedding)
        case layerNorm(LayerNorm)
        case channelNorm(ChannelNorm)
        case activation(ActivationKind)
        case pool(PatchGeometry, isMaximum: Bool)
        case mean
        case flatten
        case add
        case concatenate
        case dropout(Float)
    }

    let name: String
    /// Indices of the nodes whose results it works on; −1: the network's input.
    let inputs: [Int]
    private let operation: Operation

    private static let activations: [String: ActivationKind] = [
        "ReLU": .relu, "GELU": .gelu, "GELUTanh": .geluTanh, "SiLU": .silu, "Tanh": .tanh, "Sigmoid": .sigmoid, "QuickGELU": .quickGelu,
    ]
    private static let others = [
        "Linear", "Conv1d", "Conv2d", "Conv3d", "Embedding", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "LayerNorm", "GroupNorm", "MaxPool1d", "MaxPool2d",
        "MaxPool3d", "AvgPool1d", "AvgPool2d", "AvgPool3d", "GlobalAvgPool", "Flatten", "Add", "Concat", "Dropout",
    ]

    /// - Parameter names: of the nodes before.
    init(_ node: ModelConfiguration, _ index: Int, _ names: [String], _ build: LayerBuilder) throws(PEFTError) {
        let kind = try node.text("kind")
        name = try node.text("name", or: "\(index)")
        guard !names.contains(name) else { throw PEFTError(.format, "\(node.origin): there is a node \"\(name)\" already") }
        let given: [String]? = if let one = node.json["input"]?.stringValue { [one] } else { try node.texts("input") }
        inputs = try given?.map { (input) throws(PEFTError) in
            guard input != "x" else { return -1 }
            guard let place = names.firstIndex(of: input) else { throw PEFTError(.format, "\(node.origin): input \"\(input)\" is no node before this one; there are x, \(names.joined(separator: ", "))") }
            return place
        } ?? [index - 1]
        operation = try GraphNode.operation(kind, name, node, build)
        let isJoin = kind == "Add" || kind == "Concat"
        guard isJoin ? inputs.count >= 2 : inputs.count == 1 else {
            throw PEFTError(.format, "\(node.origin): \(kind) has \(inputs.count) inputs; \(isJoin ? "two or more are" : "one is") needed")
        }
    }

    private static func operation(_ kind: String, _ name: String, _ node: ModelConfiguration, _ build: LayerBuilder) throws(PEFTError) -> Operation {
        if let activation = activations[kind] { return .activation(activation) }
        let dimensions = Int(kind.dropLast().suffix(1)) ?? 0
        switch kind {
        case "Linear":
            let shape = try build.shape(of: name + ".weight", rank: 2)
            return .linear(try build.linear(name, shape[1], shape[0], bias: .optional))
        case "Conv1d", "Conv2d", "Conv3d":
            let shape = try build.shape(of: name + ".weight", rank: 2 + dimensions)
            let groups = try node.size("groups", or: 1)
            let (channels, wrong) = shape[1].multipliedReportingOverflow(by: groups)
            guard !wrong, channels <= 1 << 31 else { throw PEFTError(.format, "\(node.origin): groups is \(groups)") }
            let geometry = PatchGeometry(
                kernel: Array(shape.dropFirst(2)), stride: try node.sizes("stride", dimensions, from: 1, or: 1), padding: try node.sizes("padding", dimensions, from: 0, or: 0),
                dilation: try node.sizes("dilation", dimensions, from: 1, or: 1))
            guard geometry.kernel.allSatisfy({ $0 <= 1 << 15 }) else { throw PEFTError(.format, "\(node.origin): a kernel of \(geometry.kernel)") }
            return .convolution(try build.convolution(name, channels, shape[0], geometry, groups: groups, bias: .optional))
        case "Embedding":
            let shape = try build.shape(of: name + ".weight", rank: 2)
            return .embedding(try build.embedding(name, shape[0], shape[1]))
        case "LayerNorm":
            return .layerNorm(try build.layerNorm(name, try build.shape(of: name + ".weight", rank: 1)[0], epsilon: try node.number("eps", or: 1e-5)))
        case "BatchNorm1d", "BatchNorm2d", "BatchNorm3d":
            return .channelNorm(try build.channelNorm(name, kind, groups: nil, channels: try build.shape(of: name + ".running_mean", rank: 1)[0], epsilon: try node.number("eps", or: 1e-5)))
        case "GroupNorm":
            let (groups, channels) = (try node.size("groups"), try build.shape(of: name + ".weight", rank: 1)[0])
            guard channels % groups == 0 else { throw PEFTError(.format, "\(node.origin): \(channels) channels do not divide into \(groups) groups") }
            return .channelNorm(try build.channelNorm(name, kind, groups: groups, channels: channels, epsilon: try node.number("eps", or: 1e-5)))
        case "MaxPool1d", "MaxPool2d", "MaxPool3d", "AvgPool1d", "AvgPool2d", "AvgPool3d":
            let kernel = try node.sizes("kernel", dimensions, from: 1, or: nil)
            let stride = node.has("stride") ? try node.sizes("stride", dimensions, from: 1, or: nil) : kernel
            let padding = try node.sizes("padding", dimensions, from: 0, or: 0)
            // As torch has it: else there would be windows of nothing but padding.
            guard zip(padding, kernel).allSatisfy({ 2 * $0 <= $1 }) else { throw node.unsupported("padding", "at most half of the kernel") }
            return .pool(PatchGeometry(kernel: kernel, stride: stride, padding: padding, dilation: kernel.map { _ in 1 }), isMaximum: kind.hasPrefix("Max"))
        case "GlobalAvgPool": return .mean
        case "Flatten": return .flatten
        case "Add": return .add
        case "Concat": return .concatenate
        case "Dropout": return .dropout(Float(try node.number("p", or: 0.5)))
        default: throw node.unsupported("kind", (others + activations.keys.sorted()).joined(separator: ", "))
        }
    }

    func callAsFunction(_ inputs: [GraphValue], _ context: ForwardContext) throws(PEFTError) -> GraphValue {
        let tape = context.tape
        guard var x = inputs.first else { throw PEFTError(.internal, "a node without input") }
        switch operation {
        case .linear(let layer):
            try check(x.rows.value.columns, layer.inputSize)
            x.rows = try layer(x.rows, context)
        case .convolution(let layer):
            try check(x.rows.value.columns, layer.inputChannels)
            try check(x, dimensions: layer.geometry.kernel.count)
            (x.rows, x.size) = try layer(x.rows, size: x.size, layout: .channelsLast, context)
        case .embedding(let layer):
            guard x.rows.value.dtype == .i32 else { throw PEFTError(.argument, "'\(name)' looks up ids (input_ids)") }
            x = GraphValue(rows: try layer(x.rows.value, context), size: [x.rows.value.count / max(context.batch, 1)])
        case .layerNorm(let layer):
            try check(x.rows.value.columns, layer.weight.count)
            x.rows = try layer(x.rows, context)
        case .channelNorm(let layer):
            try check(x.rows.value.columns, layer.channels)
            x.rows = try layer(x.rows, context)
        case .activation(let kind): x.rows = try tape.activation(x.rows, kind)
        case .pool(let geometry, let isMaximum): x = try pooled(x, geometry, isMaximum, context)
        case .mean:
            let positions = x.size.reduce(1, *)
            x = GraphValue(rows: try tape.meanRows(x.rows, (0..<context.batch).map { $0 * positions..<($0 + 1) * positions }), size: [])
        case .flatten: x = GraphValue(rows: try x.flat(context.batch, tape), size: [])
        case .add:
            for other in inputs.dropFirst() {
                try check(other, like: x, columns: true)
                x.rows = try tape.add(x.rows, other.rows)
            }
        case .concatenate:
            for other in inputs.dropFirst() { try check(other, like: x, columns: false) }
            x.rows = try tape.concatenateColumns(inputs.map(\.rows))
        case .dropout(let p): x.rows = try tape.dropout(x.rows, p)
        }
        return x
    }

    private func pooled(_ x: GraphValue, _ geometry: PatchGeometry, _ isMaximum: Bool, _ context: ForwardContext) throws(PEFTError) -> GraphValue {
        let (tape, channels, taps) = (context.tape, x.rows.value.columns, geometry.kernel.reduce(1, *))
        try check(x, dimensions: geometry.kernel.count)
        guard let size = geometry.outputSize(x.size) else { throw PEFTError(.argument, "'\(name)': a window of \(geometry.kernel) does not fit in a picture of \(x.size)") }
        let patches = try tape.patches(x.rows, batch: context.batch, channels: channels, size: x.size, layout: .channelsLast, geometry)
        var windows = try tape.reshaped(patches, [patches.value.count / taps, taps])
        let values: Variable
        if isMaximum {
            if geometry.padding.contains(where: { $0 > 0 }) { windows = try tape.add(windows, try padding(like: x, windows, geometry, context)) }
            values = try tape.cast(try tape.rowMaxima(try tape.cast(windows, to: .f32)), to: windows.value.dtype)
        } else {
            values = try tape.linear(windows, frozen: try Tensor(tape.engine, Array(repeating: 1 / Float(taps), count: taps), shape: [1, taps]))
        }
        return GraphValue(rows: try tape.reshaped(values, [context.batch * size.reduce(1, *), channels]), size: size)
    }

    /// −∞ for what windows see of the padding, else 0.
    private func padding(like x: GraphValue, _ windows: Variable, _ geometry: PatchGeometry, _ context: ForwardContext) throws(PEFTError) -> Variable {
        let (engine, dtype) = (context.tape.engine, windows.value.dtype)
        guard !engine.isPlanning else { return Variable(try Tensor(engine, windows.shape, dtype)) }
        let ones = try Tensor(engine, [Float](repeating: 1, count: x.rows.value.count), shape: x.rows.shape)
        let seen = try Tape(engine, .f32).patches(Variable(ones), batch: context.batch, channels: x.rows.value.columns, size: x.size, layout: .channelsLast, geometry)
        let marks = try Tensor(engine, try seen.value.floats(engine).map { $0 == 0 ? -Float.infinity : 0 }, shape: windows.shape)
        return Variable(dtype == .f32 ? marks : try marks.converted(to: dtype, engine))
    }

    private func check(_ columns: Int, _ wanted: Int) throws(PEFTError) {
        guard columns == wanted else { throw PEFTError(.argument, "'\(name)' reads \(wanted) values a row, is given \(columns)") }
    }

    private func check(_ x: GraphValue, dimensions: Int) throws(PEFTError) {
        guard x.size.count == dimensions else { throw PEFTError(.argument, "'\(name)' reads pictures with \(dimensions) sizes, is given \(x.size)") }
    }

    private func check(_ x: GraphValue, like other: GraphValue, columns: Bool) throws(PEFTError) {
        guard x.size == other.size, x.rows.value.rows == other.rows.value.rows, !columns || x.rows.value.columns == other.rows.value.columns else {
            throw PEFTError(.argument, "'\(name)' joins \(other.size) × \(other.rows.value.columns) channels with \(x.size) × \(x.rows.value.columns)")
        }
    }
}
