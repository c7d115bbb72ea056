internal import Autograd
internal import Glibc
package import Models
package import Platform
internal import Tensors

/// P-tuning (Liu et al., arXiv:2103.10385): learned embeddings in front of the input, which a small network makes while they
/// are trained.
package struct PTuning: PromptMethod {
    package static let peftType = "P_TUNING"
    package static let defaults: JSONObject = {
        var keys = PromptSettings.defaults
        keys["encoder_dropout"] = .number(0)
        keys["encoder_hidden_size"] = .null
        keys["encoder_num_layers"] = .integer(2)
        keys["encoder_reparameterization_type"] = .string("MLP")
        keys["prompt_token_ids"] = .null
        return keys
    }()

    package let encoder: PromptEncoder
    package let placed: PlacedPrompt?

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        let settings = try PromptSettings(&configuration, model)
        try settings.checkWidth()
        if configuration.values["encoder_hidden_size"]?.isNull ?? true { configuration.values["encoder_hidden_size"] = .integer(Int64(settings.width)) }
        let hidden = try configuration.positive("encoder_hidden_size")
        guard hidden <= 1 << 20 else { throw PEFTError(.argument, "encoder_hidden_size is \(hidden); 1 to \(1 << 20) are possible") }
        let layers = try configuration.positive("encoder_num_layers")
        let dropout = try configuration.probability("encoder_dropout")
        let network: any PromptNetwork
        if try configuration.choice("encoder_reparameterization_type", ["MLP", "LSTM"]) == "MLP" {
            if isNew, layers != 2 { model.engine.warn("encoder_num_layers is \(layers); the MLP of P_TUNING always has 2 hidden layers, as in PEFT") }
            network = try PromptMLP("mlp_head", [settings.width, hidden, hidden, settings.width], .relu, model.engine)
        } else {
            guard layers <= 64 else { throw PEFTError(.argument, "encoder_num_layers is \(layers); 1 to 64 are possible") }
            network = try PromptLSTM(width: settings.width, hidden: hidden, layers: layers, dropout: dropout, model.engine)
        }
        encoder = try PromptEncoder(
            PTuning.peftType, count: settings.count, rows: try settings.rows(), width: settings.width, network: network, start: .random, isNew: isNew, model)
        placed = try PlacedPrompt(configuration, encoder, settings.embedding)
    }
}

/// Linear layers with a function between them: `prompt_encoder.<name>.0`, `.2` …
final class PromptMLP: PromptNetwork {
    private let layers: [(weight: Parameter, bias: Parameter)]
    private let activation: ActivationKind
    /// The last layer starts from zero.
    private let endsInZero: Bool
    let outputSize: Int

    init(_ name: String, _ sizes: [Int], _ activation: ActivationKind, endsInZero: Bool = false, _ engine: Engine) throws(PEFTError) {
        layers = try zip(sizes, sizes.dropFirst()).enumerated().map { (index, sizes) throws(PEFTError) in
            let key = "\(PromptEncoder.prefix)\(name).\(2 * index)"
            return (
                Parameter(name: key + ".weight", value: try Tensor.zeros(engine, [sizes.1, sizes.0], .f32, .adapters)),
                Parameter(name: key + ".bias", value: try Tensor.zeros(engine, [sizes.1], .f32, .adapters))
            )
        }
        self.activation = activation
        self.endsInZero = endsInZero
        outputSize = sizes.last ?? 0
    }

    var parameters: [Parameter] { layers.flatMap { [$0.weight, $0.bias] } }

    func initialize(_ random: inout RandomStream) {
        for (index, layer) in layers.enumerated() {
            let bound = endsInZero && index == layers.count - 1 ? 0 : 1 / Float(max(layer.weight.value.columns, 1)).squareRoot()
            for parameter in [layer.weight, layer.bias] { parameter.value.fill(within: bound, &random) }
        }
    }

    func callAsFunction(_ x: Variable, _ tape: Tape) throws(PEFTError) -> Variable {
        var x = x
        for (index, layer) in layers.enumerated() {
            if index > 0 { x = try tape.activation(x, activation) }
            x = try tape.linear(x, tape.variable(layer.weight), bias: tape.variable(layer.bias))
        }
        return x
    }
}

/// torch's bidirectional LSTM over the virtual tokens, then two linear layers.
///
///     i, f, g, o = W_ih·x + b_ih + W_hh·h + b_hh
///     c ← σ(f)·c + σ(i)·tanh(g)    h ← σ(o)·tanh(c)
private final class PromptLSTM: PromptNetwork {
    /// One direction of one layer, under torch's names.
    private struct Direction {
        let inputWeight: Parameter, stateWeight: Parameter, inputBias: Parameter, stateBias: Parameter

        init(_ end: String, width: Int, hidden: Int, _ engine: Engine) throws(PEFTError) {
            func parameter(_ name: String, _ shape: [Int]) throws(PEFTError) -> Parameter {
                Parameter(name: "\(PromptEncoder.prefix)lstm_head.\(name)_\(end)", value: try Tensor.zeros(engine, shape, .f32, .adapters))
            }
            inputWeight = try parameter("weight_ih", [4 * hidden, width])
            stateWeight = try parameter("weight_hh", [4 * hidden, hidden])
            inputBias = try parameter("bias_ih", [4 * hidden])
            stateBias = try parameter("bias_hh", [4 * hidden])
        }

        var parameters: [Parameter] { [inputWeight, stateWeight, inputBias, stateBias] }
    }

    private let layers: [(forward: Direction, backward: Direction)]
    private let head: PromptMLP
    private let hidden: Int
    private let dropout: Float
    let outputSize: Int

    init(width: Int, hidden: Int, layers: Int, dropout: Float, _ engine: Engine) throws(PEFTError) {
        self.layers = try (0..<layers).map { (layer) throws(PEFTError) in
            let size = layer == 0 ? width : 2 * hidden
            return (try Direction("l\(layer)", width: size, hidden: hidden, engine), try Direction("l\(layer)_reverse", width: size, hidden: hidden, engine))
        }
        head = try PromptMLP("mlp_head", [2 * hidden, 2 * hidden, width], .relu, engine)
        (self.hidden, self.dropout, outputSize) = (hidden, dropout, width)
    }

    var parameters: [Parameter] { layers.flatMap { $0.forward.parameters + $0.backward.parameters } + head.parameters }

    func initialize(_ random: inout RandomStream) {
        let bound = 1 / Float(max(hidden, 1)).squareRoot()
        for layer in layers {
            for parameter in layer.forward.parameters + layer.backward.parameters { parameter.value.fill(within: bound, &random) }
        }
        head.initialize(&random)
    }

    func callAsFunction(_ x: Variable, _ tape: Tape) throws(PEFTError) -> Variable {
        var x = x
        for (index, layer) in layers.enumerated() {
            if index > 0 { x = try tape.dropout(x, dropout) }
            x = try tape.concatenateColumns([try run(layer.forward, x, isReversed: false, tape), try run(layer.backward, x, isReversed: true, tape)])
        }
        return try head(x, tape)
    }

    /// The states of all steps, `[count, hidden]`, in the order of the tokens.
    private func run(_ direction: Direction, _ x: Variable, isReversed: Bool, _ tape: Tape) throws(PEFTError) -> Variable {
        let count = x.value.rows
        let inputs = try tape.linear(x, tape.variable(direction.inputWeight), bias: tape.variable(direction.inputBias))
        let (weight, bias) = (tape.variable(direction.stateWeight), tape.variable(direction.stateBias))
        var (h, c) = (Variable(try Tensor.zeros(tape.engine, [1, hidden])), Variable(try Tensor.zeros(tape.engine, [1, hidden])))
        var states: [Variable] = []
        for step in 0..<count {
            let row = isReversed ? count - 1 - step : step
            let sum = try tape.add(try tape.linear(h, weight, bias: bias), try tape.rows(inputs, row..<row + 1))
            let gates = try tape.splitColumns(sum, [hidden, hidden, hidden, hidden])
            let added = try tape.multiply(try tape.activation(gates[0], .sigmoid), try tape.activation(gates[2], .tanh))
            c = try tape.add(try tape.multiply(try tape.activation(gates[1], .sigmoid), c), added)
            h = try tape.multiply(try tape.activation(gates[3], .sigmoid), try tape.activation(c, .tanh))
            states.append(h)
        }
        return try tape.concatenateRows(isReversed ? states.reversed() : states)
    }
}

extension Tensor {
    /// Uniform in ±`bound`: how torch begins its layers.
    func fill(within bound: Float, _ random: inout RandomStream) {
        unsafe withMutableFloats { values in
            for index in values.indices { unsafe values[index] = (2 * random.uniform() - 1) * bound }
        }
    }
}
