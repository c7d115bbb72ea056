import Glibc
import Kernels
import Testing

@Suite struct ActivationTests {
    static let kinds = [PK_SILU, PK_GELU, PK_GELU_TANH, PK_RELU, PK_TANH, PK_SIGMOID, PK_QUICK_GELU]

    /// f and f′ in double.
    private func reference(_ kind: Int32, _ x: Double) -> (value: Double, slope: Double) {
        let sigmoid = { (x: Double) in 1 / (1 + exp(-x)) }
        switch kind {
        case PK_SILU:
            let s = sigmoid(x)
            return (x * s, s + x * s * (1 - s))
        case PK_GELU:
            let p = erfc(-x / 2.0.squareRoot()) / 2
            return (x * p, p + x * exp(-x * x / 2) / (2 * Double.pi).squareRoot())
        case PK_GELU_TANH:
            let c = (2 / Double.pi).squareRoot(), t = tanh(c * (x + 0.044715 * x * x * x))
            return (x / 2 * (1 + t), (1 + t) / 2 + x / 2 * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x))
        case PK_RELU: return (max(x, 0), x > 0 ? 1 : 0)
        case PK_TANH: return (tanh(x), 1 - tanh(x) * tanh(x))
        case PK_SIGMOID: return (sigmoid(x), sigmoid(x) * (1 - sigmoid(x)))
        default:
            let s = sigmoid(1.702 * x)
            return (x * s, s + 1.702 * x * s * (1 - s))
        }
    }

    private static let inputs: [Float] = {
        var random = Random(1)
        return random.values(300, scale: 6) + [0, -0.0, 1e-20, -1e-20, 20, -20, 88, -88, 100, -100, 1000, -1000, 0.624, 0.626]
    }()

    @Test("values and slopes over the whole range", arguments: kinds, levels)
    func plain(_ kind: Int32, _ level: Int32) {
        for act in activationTypes {
            let x = Buffer(act, ActivationTests.inputs), count = x.count
            var random = Random(2)
            let dY = Buffer(act, random.values(count)), old = Buffer(act, random.values(count)).values
            let expected = x.doubles.map { reference(kind, $0) }
            let y = sameBits(act, old) { y, part, parts in pk_activation_forward(level, act, kind, x.bytes, y, count, part, parts) }
            expectClose(y, expected.map(\.value), act, relative: 3e-6, absolute: 1e-6, "kind \(kind)")
            for accumulate: Int32 in [0, 1] {
                let dX = sameBits(act, old) { dX, part, parts in
                    pk_activation_backward(level, act, kind, x.bytes, dY.bytes, dX, accumulate, count, part, parts)
                }
                let slopes = zip(expected, dY.doubles).map { $0.slope * $1 }
                expectClose(dX, zip(slopes, old).map { $0 + (accumulate == 1 ? Double($1) : 0) }, act, relative: 1e-5, absolute: 3e-6, "kind \(kind) slope")
            }
        }
    }

    @Test("gated products and their gradients, in place too", arguments: [PK_SILU, PK_GELU, PK_GELU_TANH], levels)
    func gated(_ kind: Int32, _ level: Int32) {
        for act in activationTypes {
            let gate = Buffer(act, ActivationTests.inputs), count = gate.count
            var random = Random(3)
            let up = Buffer(act, random.values(count)), dY = Buffer(act, random.values(count)), zero = [Float](repeating: 0, count: count)
            let f = gate.doubles.map { reference(kind, $0) }, ups = up.doubles, dYs = dY.doubles
            let y = sameBits(act, zero) { y, part, parts in pk_glu_forward(level, act, kind, gate.bytes, up.bytes, y, count, part, parts) }
            expectClose(y, zip(f, ups).map { $0.value * $1 }, act, relative: 3e-6, absolute: 1e-6)
            var dGate = Buffer(act, gate.values), dUp = Buffer(act, up.values), again = Buffer(act, zero)
            dGate.bytes.withUnsafeMutableBytes { gate in
                dUp.bytes.withUnsafeMutableBytes { up in
                    inParts(3) {
                        pk_glu_backward(level, act, kind, gate.baseAddress, up.baseAddress, dY.bytes, gate.baseAddress, up.baseAddress, &again.bytes, count, $0, $1)
                    }
                }
            }
            expectClose(dGate.values, (0..<count).map { f[$0].slope * ups[$0] * dYs[$0] }, act, relative: 1e-5, absolute: 3e-6)
            expectClose(dUp.values, (0..<count).map { f[$0].value * dYs[$0] }, act, relative: 3e-6, absolute: 1e-6)
            #expect(again.values == y)
        }
    }

    @Test("NaN stays NaN", arguments: kinds, levels)
    func nan(_ kind: Int32, _ level: Int32) {
        let x = [Float](repeating: .nan, count: 20)
        var y = [Float](repeating: 0, count: 20)
        pk_activation_forward(level, PK_F32, kind, x, &y, 20, 0, 1)
        #expect(y.allSatisfy { $0.isNaN })
    }
}
