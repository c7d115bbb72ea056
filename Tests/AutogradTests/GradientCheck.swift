import Autograd
import Kernels
import Platform
import Tensors
import Testing

/// An operation with the shapes of its inputs; the same table feeds the tests of derivatives, types and recomputation.
struct OperationCase: Sendable, CustomTestStringConvertible {
    enum Role: Sendable {
        /// Of the tape's activation type.
        case activation
        /// f32 whatever the precision.
        case parameter
    }

    let name: String
    let inputs: [(shape: [Int], role: Role)]
    /// Step of the difference quotient: small where the function bends.
    var step: Float = 0.02
    /// How far bf16 may be from f32, relative to the largest value of the result.
    var bf16Tolerance: Float = 0.03
    let body: @Sendable (_ tape: Tape, _ inputs: [Variable]) throws -> Variable

    var testDescription: String { name }
}

/// Reproducible values around 0, away from 0 by a margin (so that relu has no kink within a step).
func samples(_ count: Int, seed: UInt64, scale: Float = 1) -> [Float] {
    var stream = RandomStream(seed: seed)
    return (0..<count).map { _ in
        let value = stream.normal() * 0.7 * scale
        return value + (value < 0 ? -0.1 : 0.1) * scale
    }
}

func tensor(_ engine: Engine, _ shape: [Int], seed: UInt64, scale: Float = 1) throws -> Tensor {
    try Tensor(engine, samples(shape.reduce(1, *), seed: seed, scale: scale), shape: shape)
}

/// A weight matrix encoded in blocks.
func quantized(_ engine: Engine, _ shape: [Int], _ dtype: DType, seed: UInt64, scale: Float = 1) throws -> Tensor {
    let values = samples(shape.reduce(1, *), seed: seed, scale: scale)
    let result = try Tensor(engine, shape, dtype, .weights)
    try #require(pk_format_of(dtype.rawValue)).pointee.encode(values, result.pointer, values.count)
    return result
}

extension OperationCase {
    func values(_ engine: Engine) throws -> [Tensor] {
        try inputs.enumerated().map { try tensor(engine, $1.shape, seed: UInt64($0) + 11) }
    }

    /// Result and gradients (as f32) for `Σ result · weights` with fixed random weights.
    func run(_ engine: Engine, _ precision: Precision, recompute: Bool = false) throws -> (result: [Float], gradients: [[Float]]) {
        let store = GradientStore(engine)
        let tape = Tape(engine, precision, gradients: store, isTraining: true, random: RandomStream(seed: 5))
        let leaves = try zip(values(engine), inputs).map { value, input in
            tape.leaf(input.role == .parameter ? value : try value.converted(to: precision.activation, engine))
        }
        let output: Variable
        if recompute {
            output = try tape.recomputed(leaves) { (tape, inputs) throws(PEFTError) in
                do { return try body(tape, inputs) } catch let error as PEFTError { throw error } catch { throw PEFTError(.internal, "\(error)") }
            }
        } else {
            output = try body(tape, leaves)
        }
        let weights = try tensor(engine, output.shape, seed: 99).converted(to: output.value.dtype, engine)
        try tape.backward(from: output, gradient: weights)
        let gradients = try leaves.map { leaf in
            let slot = try #require(leaf.slot)
            return try #require(slot.take(), "\(name): an input got no gradient").floats(engine)
        }
        return (try output.value.floats(engine), gradients)
    }

    /// `Σ result · weights` without a tape's records, in double.
    private func objective(_ engine: Engine, _ inputs: [Tensor]) throws -> Double {
        let tape = Tape(engine, .f32, isTraining: true, random: RandomStream(seed: 5))
        let output = try body(tape, inputs.map { Variable($0) })
        let weights = samples(output.value.count, seed: 99)
        return zip(try output.value.floats(engine), weights).reduce(0) { $0 + Double($1.0) * Double($1.1) }
    }

    /// The derivatives agree with difference quotients of fourth order:
    /// `f' ≈ (8·(f(x+h) − f(x−h)) − (f(x+2h) − f(x−2h))) / 12h`.
    func checkGradients(_ engine: Engine, tolerance: Double = 2e-3) throws {
        let gradients = try run(engine, .f32).gradients
        let base = try values(engine).map { try $0.floats(engine) }
        for (index, input) in inputs.enumerated() {
            let largest = Double(gradients[index].map(abs).max() ?? 0)
            for element in base[index].indices {
                func shifted(_ steps: Float) throws -> Double {
                    var changed = base
                    changed[index][element] += steps * step
                    return try objective(engine, zip(changed, inputs).map { try Tensor(engine, $0, shape: $1.shape) })
                }
                let numeric = try (8 * (shifted(1) - shifted(-1)) - (shifted(2) - shifted(-2))) / (12 * Double(step))
                let analytic = Double(gradients[index][element])
                let allowed = tolerance * max(1, largest)
                #expect(abs(numeric - analytic) < allowed, "\(name): input \(index) \(input.shape) element \(element): \(analytic), differences say \(numeric)")
            }
        }
    }
}
