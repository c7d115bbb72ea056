internal import Autograd
internal import Models
internal import Platform
internal import Tensors

/// The invertible adapters of AdapterHub's library, x cut in two halves and with small networks (linear, function, linear) between them:
///
///     nice:  y₁ = x₁ + F(x₂)                y₂ = x₂ + G(y₁)                            (Dinh et al., arXiv:1410.8516)
///     glow:  y₁ = e(s)·x₁ + t,  s, t = s2(x₂)   y₂ = e(s)·x₂ + t,  s, t = s1(y₁)       (Kingma and Dhariwal, arXiv:1807.03039)
///
/// with e(s) = exp(5·0.636·atan(s/5)). The library's own `glow` reads x₁ where it means s2(x₂), and has no inverse; this one has.
final class InvertibleAdapter: Coupling {
    private struct Subnet: Sendable {
        let first: (weight: Parameter, bias: Parameter), second: (weight: Parameter, bias: Parameter)
        var parameters: [Parameter] { [first.weight, first.bias, second.weight, second.bias] }
    }

    private let isGlow: Bool
    /// Of the second half for the first, and the other way round.
    private let forFirst: Subnet, forSecond: Subnet
    private let halves: [Int]
    private let activation: ActivationKind

    init(_ prefix: String, width: Int, isGlow: Bool, factor: Double, _ activation: ActivationKind, _ engine: Engine) throws(PEFTError) {
        guard width > 1 else { throw PEFTError(.unsupported, "inv_adapter for states of \(width) value") }
        let (first, second) = (width / 2, width - width / 2)
        (self.isGlow, halves, self.activation) = (isGlow, [first, second], activation)
        func subnet(_ name: String, _ inputs: Int, _ outputs: Int) throws(PEFTError) -> Subnet {
            let size = max(Int((Double(inputs) / factor).rounded(.down)), 1)
            func linear(_ slot: Int, _ inputs: Int, _ outputs: Int) throws(PEFTError) -> (weight: Parameter, bias: Parameter) {
                let key = "\(prefix)\(name).\(slot)."
                return (Parameter(name: key + "weight", value: try .zeros(engine, [outputs, inputs], .f32, .adapters)), Parameter(name: key + "bias", value: try .zeros(engine, [outputs], .f32, .adapters)))
            }
            return Subnet(first: try linear(0, inputs, size), second: try linear(2, size, outputs))
        }
        forSecond = try subnet(isGlow ? "s1" : "G", first, isGlow ? 2 * second : second)
        forFirst = try subnet(isGlow ? "s2" : "F", second, isGlow ? 2 * first : first)
    }

    var parameters: [Parameter] { (isGlow ? [forSecond, forFirst] : [forFirst, forSecond]).flatMap(\.parameters) }

    func initialize(_ random: inout RandomStream) {
        for subnet in [forFirst, forSecond] {
            for layer in [subnet.first, subnet.second] { layer.weight.value.fillNormal(0.02, &random) }
        }
    }

    func entering(_ x: Variable, _ tape: Tape) throws(PEFTError) -> Variable {
        let parts = try tape.splitColumns(x, halves)
        let first = try coupled(parts[0], by: forFirst, of: parts[1], tape)
        return try tape.concatenateColumns([first, try coupled(parts[1], by: forSecond, of: first, tape)])
    }

    func leaving(_ x: Variable, _ tape: Tape) throws(PEFTError) -> Variable {
        let parts = try tape.splitColumns(x, halves)
        let second = try uncoupled(parts[1], by: forSecond, of: parts[0], tape)
        return try tape.concatenateColumns([try uncoupled(parts[0], by: forFirst, of: second, tape), second])
    }

    private func coupled(_ x: Variable, by subnet: Subnet, of other: Variable, _ tape: Tape) throws(PEFTError) -> Variable {
        let made = try value(subnet, other, tape)
        guard isGlow else { return try tape.add(x, made) }
        let parts = try tape.splitColumns(made, [x.value.columns, x.value.columns])
        return try tape.add(try tape.multiply(x, try stretch(parts[0], 1, tape)), parts[1])
    }

    private func uncoupled(_ y: Variable, by subnet: Subnet, of other: Variable, _ tape: Tape) throws(PEFTError) -> Variable {
        let made = try value(subnet, other, tape)
        guard isGlow else { return try tape.add(y, try tape.scaled(made, by: -1)) }
        let parts = try tape.splitColumns(made, [y.value.columns, y.value.columns])
        return try tape.multiply(try tape.add(y, try tape.scaled(parts[1], by: -1)), try stretch(parts[0], -1, tape))
    }

    /// e(s), or 1/e(s).
    private func stretch(_ s: Variable, _ sign: Float, _ tape: Tape) throws(PEFTError) -> Variable {
        let angle = try tape.arctangent(try tape.scaled(try tape.cast(s, to: .f32), by: 0.2))
        return try tape.cast(try tape.exponential(try tape.scaled(angle, by: sign * 5 * 0.636)), to: s.value.dtype)
    }

    private func value(_ subnet: Subnet, _ x: Variable, _ tape: Tape) throws(PEFTError) -> Variable {
        let inner = try tape.activation(try tape.linear(x, tape.variable(subnet.first.weight), bias: tape.variable(subnet.first.bias)), activation)
        return try tape.linear(inner, tape.variable(subnet.second.weight), bias: tape.variable(subnet.second.bias))
    }
}
