internal import Autograd
internal import Models
internal import Platform
internal import Tensors

/// A gate of UniPELT (Mao et al., arXiv:2110.07577), after AdapterHub's `use_gating`: `g = mean_t σ(w·x_t + b)`, a number (or two) for each
/// text. The mean is over all rows of a text, padding too, so that what comes later changes what an earlier token sees.
struct TextGate: Sendable {
    /// f32 `[outputs, inputs]` and `[outputs]`
    let weight: Parameter, bias: Parameter

    init(_ key: String, inputs: Int, outputs: Int = 1, _ engine: Engine) throws(PEFTError) {
        weight = Parameter(name: key + ".weight", value: try .zeros(engine, [outputs, inputs], .f32, .adapters))
        bias = Parameter(name: key + ".bias", value: try .zeros(engine, [outputs], .f32, .adapters))
    }

    var parameters: [Parameter] { [weight, bias] }

    func initialize(_ random: inout RandomStream) { weight.value.fillNormal(0.02, &random) }

    /// f32 `[texts, outputs]` of texts of `length` rows each.
    /// - Parameter isFrozen: nothing of it is learned.
    func means(_ x: Variable, length: Int, isFrozen: Bool = false, _ tape: Tape) throws(PEFTError) -> Variable {
        guard length > 0, x.value.rows % length == 0 else { throw PEFTError(.unsupported, "use_gating where \(x.value.rows) rows are no whole texts") }
        let (w, b) = isFrozen ? (Variable(weight.value), Variable(bias.value)) : (tape.variable(weight), tape.variable(bias))
        let values = try tape.cast(try tape.activation(try tape.linear(x, w, bias: b), .sigmoid), to: .f32)
        return try tape.meanRows(values, (0..<x.value.rows / length).map { $0 * length..<($0 + 1) * length })
    }
}

extension Tape {
    /// `y`, whose texts have `length` rows each, times a number for each text: `factors` `[texts, 1]`.
    func scaleTexts(_ y: Variable, _ factors: Variable, length: Int) throws(PEFTError) -> Variable {
        let each = try gatherRows(factors, (0..<y.value.rows).map { Int32(clamping: $0 / max(length, 1)) })
        return try scaleRows(y, try reshaped(each, [y.value.rows]))
    }
}
