package import Autograd
package import Platform
package import Tensors

/// One layer by itself, for hosts that compute the rest of the network.
extension Model {
    /// What a run of a layer leaves for its backward pass.
    package struct LayerRun {
        /// nil: ids, which have no gradient.
        package let input: Variable?
        /// f32, in the host's layout.
        package let output: Variable
    }

    /// - Parameter x: f32 `[rows, in]` or `[batch, channels, sizes…]`; i32 for an embedding.
    /// - Throws: `.notFound`, `.argument` for a shape that is not the layer's, `.unsupported` for a kind without a forward pass.
    package func run(layer name: String, _ x: Tensor, _ adaptation: Adaptation, _ tape: Tape) throws(PEFTError) -> LayerRun {
        guard let layer = layer(named: name) else {
            throw PEFTError(.notFound, "the model has no layer \"\(name)\"; it has \(layers.prefix(8).map(\.name).joined(separator: ", "))\(layers.count > 8 ? ", …" : "")")
        }
        let ids = layer is Embedding
        guard !x.shape.isEmpty, x.count > 0, x.dtype == (ids ? .i32 : .f32) else {
            throw PEFTError(.argument, "'\(name)' is given \(x.dtype.name) \(x.shape); \(ids ? "integers" : "f32 values") are needed")
        }
        guard adaptation.invocations.isEmpty, adaptation.later.isEmpty else {
            throw PEFTError(.unsupported, "alora_invocation_tokens or a Split in a layer by itself, which sees no tokens")
        }
        let context = ForwardContext(
            tape: tape, routing: .all(adaptation), batch: x.shape[0], length: 1, positions: try Tensor(tape.engine, [Int32(0)], shape: [1]))
        if let embedding = layer as? Embedding {
            return LayerRun(input: nil, output: try tape.cast(try embedding(try x.reshaped([x.count]), context), to: .f32))
        }
        let leaf = tape.leaf(x)
        if let convolution = layer as? Convolution {
            let dimensions = convolution.geometry.kernel.count
            guard x.shape.count == dimensions + 2, x.shape[1] == convolution.inputChannels else {
                throw PEFTError(.argument, "'\(name)' is given \(x.shape); [batch, \(convolution.inputChannels)] and \(dimensions) sizes are needed")
            }
            let value = try GraphValue(.features(leaf), context)
            let (y, size) = try convolution(value.rows, size: value.size, layout: .channelsLast, context)
            let positions = size.reduce(1, *)
            let turned = try tape.turned(y, batch: x.shape[0], rows: positions, columns: convolution.outputChannels, shape: [x.shape[0], convolution.outputChannels] + size)
            return LayerRun(input: leaf, output: try tape.cast(turned, to: .f32))
        }
        let width: Int, run: (Variable) throws(PEFTError) -> Variable
        switch layer {
        case let linear as Linear: (width, run) = (linear.inputSize, { (x) throws(PEFTError) in try linear(x, context) })
        case let norm as LayerNorm: (width, run) = (norm.weight.count, { (x) throws(PEFTError) in try norm(x, context) })
        case let norm as RMSNorm: (width, run) = (norm.weight.count, { (x) throws(PEFTError) in try norm(x, context) })
        default: throw PEFTError(.unsupported, "'\(name)' is a \(layer.kind), which does not run by itself; Linear, Conv1d to Conv3d, Embedding and norms do")
        }
        guard x.shape.last == width else { throw PEFTError(.argument, "'\(name)' is given \(x.shape); rows of \(width) are needed") }
        let rows = try tape.cast(try tape.reshaped(leaf, [x.count / width, width]), to: tape.precision.activation)
        return LayerRun(input: leaf, output: try tape.cast(try run(rows), to: .f32))
    }
}
