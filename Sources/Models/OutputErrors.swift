internal import Autograd
internal import Platform
internal import Quantization
internal import Synchronization
internal import Tensors

/// What rounding a layer's weight does to its outputs, on the inputs that the model as it is gives it.
private final class OutputComparison: LayerHook {
    private let format: WeightFormat
    /// `BlockScaling.followsCPU`
    private let followsCPU: Bool
    /// Σ(y − ŷ)² and Σy².
    private let sums = Mutex((errors: 0.0, squares: 0.0))

    init(_ format: WeightFormat, followsCPU: Bool) { (self.format, self.followsCPU) = (format, followsCPU) }

    func output(_ y: consuming Variable, input x: Variable, of layer: Linear, _ tape: Tape) throws(PEFTError) -> Variable {
        let stored = try layer.weight.encoded(as: format.dtype, scaling: format.scaling.following(followsCPU), tape.engine, .scratch)
        let rounded = try tape.linear(x, frozen: stored, bias: layer.bias, transposed: layer.isTransposed, as: .f32)
        let exact = try y.value.converted(to: .f32, tape.engine, .scratch)
        var (errors, squares) = (0.0, 0.0)
        unsafe exact.withFloats { exact in
            unsafe rounded.value.withFloats { rounded in
                for index in 0..<min(exact.count, rounded.count) {
                    let (value, error) = unsafe (Double(exact[index]), Double(exact[index]) - Double(rounded[index]))
                    errors += error * error
                    squares += value * value
                }
            }
        }
        sums.withLock { $0 = ($0.errors + errors, $0.squares + squares) }
        return y
    }

    var relative: Double { sums.withLock { $0.errors == 0 ? 0 : ($0.errors / $0.squares).squareRoot() } }
}

extension Model {
    /// Tokens of a text that are read, in rows that see only themselves.
    package static let calibrationTokens = (rows: 8, length: 256)

    /// ‖y − ŷ‖/‖y‖ of linear layers over a text, y being a layer's outputs and ŷ those with its weight in the format it shall get. The
    /// weights stay; one rounded weight is held at a time.
    func outputErrors(_ formats: [(layer: any Layer, format: WeightFormat)], on ids: [Int32]) throws(PEFTError) -> [String: Double] {
        guard !network.readsSource, let vocabulary = configuration["vocab_size"]?.intValue else {
            throw PEFTError(.unsupported, "a calibration_text is for models that read one text; a \(architecture) model does not")
        }
        // Positions of some encoders begin at 2.
        let longest = network.cacheShape?.maximumLength ?? configuration["max_position_embeddings"]?.intValue.map { $0 - 2 } ?? .max
        let length = min(Model.calibrationTokens.length, ids.count, longest)
        let rows = length > 0 ? min(Model.calibrationTokens.rows, ids.count / length) : 0
        guard rows > 0, length > 1 else { throw PEFTError(.argument, "the calibration_text has \(ids.count) tokens; two or more are needed") }
        guard ids.allSatisfy({ $0 >= 0 && Int($0) < vocabulary }) else { throw PEFTError(.format, "the tokenizer has ids beyond the model's \(vocabulary)") }
        var adaptation = unadapted
        var hooks: [(name: String, hook: OutputComparison)] = []
        for (layer, format) in formats {
            guard let linear = layer as? Linear else { continue }
            let hook = OutputComparison(format, followsCPU: followsCPU)
            adaptation.layers[linear.index].hooks.append(hook)
            hooks.append((linear.name, hook))
        }
        try lock.read { () throws(PEFTError) in
            let all = Array(ids.prefix(rows * length)), input = ModelInput.ids(try Tensor(engine, all, shape: [rows, length]))
            let context = ForwardContext(
                tape: Tape(engine, .f32), routing: .all(adaptation), batch: rows, length: length,
                positions: try Tensor(engine, (0..<rows).flatMap { _ in 0..<Int32(length) }, shape: [rows * length]))
            _ = try logits(try hidden(input, context), of: input, rows: .last, context)
        }
        return Dictionary(hooks.map { ($0.name, $0.hook.relative) }, uniquingKeysWith: { first, _ in first })
    }
}
