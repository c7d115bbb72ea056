internal import Autograd
internal import Platform
internal import Tensors

/// The second half of a block.
protocol FeedForwardPart: Sendable {
    func callAsFunction(_ x: Variable, _ context: ForwardContext) throws(PEFTError) -> Variable
}

/// `down(f(gate(x))·up(x))`, the gate and up in a matrix each, or in one.
final class FeedForward: FeedForwardPart {
    private enum Input {
        case each(gate: Linear, up: Linear)
        /// Gate first.
        case fused(Linear)
    }

    private let input: Input
    private let down: Linear
    private let activation: ActivationKind

    init(_ name: String, _ settings: DecoderSettings, _ build: LayerBuilder) throws(PEFTError) {
        let (hidden, inner) = (settings.hiddenSize, settings.intermediateSize)
        if settings.isFused {
            input = .fused(try build.linear(name + ".gate_up_proj", hidden, 2 * inner))
        } else {
            let gate = try build.linear(name + ".gate_proj", hidden, inner, bias: settings.feedForwardBias)
            input = .each(gate: gate, up: try build.linear(name + ".up_proj", hidden, inner, bias: settings.feedForwardBias))
        }
        down = try build.linear(name + ".down_proj", inner, hidden, bias: settings.feedForwardBias)
        activation = settings.activation
    }

    func callAsFunction(_ x: Variable, _ context: ForwardContext) throws(PEFTError) -> Variable {
        let tape = context.tape
        switch input {
        case .each(let gate, let up):
            if let few = try Linear.together([gate, up], x, context), let first = few.first, let second = few.last {
                return try down(try tape.glu(first, second, activation), context)
            }
            return try down(try tape.glu(try gate(x, context), try up(x, context), activation), context)
        case .fused(let linear):
            let parts = try tape.splitColumns(try linear(x, context), [down.inputSize, down.inputSize])
            return try down(try tape.glu(parts[0], parts[1], activation), context)
        }
    }
}
