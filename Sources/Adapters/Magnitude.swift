internal import Autograd
internal import Models
internal import Platform
internal import Tensors

/// DoRA (Liu et al., arXiv:2402.09353): the magnitude of each output trains beside the direction,
///
///     y = m/n ⊙ (W·x + s·B·A·x) + b        n = ‖W + s·B·A‖ of each output's row, a constant in the backward pass
///
/// so the gradient to A and B passes `m/n` as a scale, and that to m is `Σ dy ⊙ (W·x + s·B·A·x) / n`.
final class Magnitude: Sendable {
    /// f32 `[out]`, `[1, out, 1…]` of a convolution: m.
    let parameter: Parameter
    private let model: Model
    /// 1/n, and what it was computed for. Norms read all of W, so they are kept until something is written under the model's
    /// lock: in generation and within an optimizer step they are computed once.
    private let known: Kept<Float, Tensor>

    init(key: String, shape: [Int], _ model: Model) throws(PEFTError) {
        parameter = Parameter(
            name: key + ".lora_magnitude_vector", value: try .zeros(model.engine, shape, .f32, .adapters))
        self.model = model
        known = Kept(model)
    }

    /// m = n, so that a fresh adapter changes nothing.
    func initialize(_ w: Tensor, isTransposed: Bool, _ factors: (b: Tensor, a: Tensor), scale: Float) throws(PEFTError) {
        let squares = try model.engine.rowNormsSquared(
            w: w, plus: factors.b, a: factors.a, scale: scale, transposed: isTransposed)
        unsafe squares.withFloats { squares in
            unsafe parameter.value.withMutableFloats { m in
                for index in 0..<min(squares.count, m.count) { unsafe m[index] = squares[index].squareRoot() }
            }
        }
    }

    /// 1/n as the parameters are now; the caller holds the model's lock.
    func inverseNorms(_ w: Tensor, isTransposed: Bool, b: Tensor, a: Tensor, scale: Float, _ engine: Engine)
        throws(PEFTError) -> Tensor
    {
        try known(scale, engine) { () throws(PEFTError) in
            try Magnitude.inverseNorms(w, isTransposed: isTransposed, b: b, a: a, scale: scale, engine)
        }
    }

    /// m/n: what the layer's output, its bias aside, is multiplied with. The caller holds the model's lock.
    func factors(_ w: Tensor, isTransposed: Bool, _ factors: (b: Tensor, a: Tensor), scale: Float, _ engine: Engine) throws(PEFTError) -> Tensor {
        let m = Variable(try parameter.value.reshaped([parameter.value.count]))
        return try Tape(engine, .f32).multiply(m, Variable(try inverseNorms(w, isTransposed: isTransposed, b: factors.b, a: factors.a, scale: scale, engine))).value
    }

    private static func inverseNorms(
        _ w: Tensor, isTransposed: Bool, b: Tensor, a: Tensor, scale: Float, _ engine: Engine
    ) throws(PEFTError) -> Tensor {
        let squares = try engine.rowNormsSquared(w: w, plus: b, a: a, scale: scale, transposed: isTransposed)
        let inverse = try Tensor(engine, [squares.count], .f32, .adapters)
        unsafe squares.withFloats { squares in
            unsafe inverse.withMutableFloats { inverse in
                // An output without weights has no direction: it stays zero.
                for index in 0..<min(squares.count, inverse.count) {
                    unsafe inverse[index] = squares[index] > 0 ? 1 / squares[index].squareRoot() : 0
                }
            }
        }
        return inverse
    }

    /// What a linear layer's output becomes. With dropout the branch and the change of scale see `drop(x)`, the layer itself x:
    /// `y + (m/n − 1)⊙W·drop(x) + m/n⊙s·B·A·drop(x)`.
    func add(
        to y: consuming Variable, input x: Variable, _ w: Tensor, bias: Variable?, isTransposed: Bool, a: Variable,
        b: Variable, scale: Float, dropout: Float,
        _ tape: Tape
    ) throws(PEFTError) -> Variable {
        let inverse = try inverseNorms(w, isTransposed: isTransposed, b: b.value, a: a.value, scale: scale, tape.engine)
        let ratio = try tape.multiply(try tape.vector(parameter), Variable(inverse))
        if tape.isTraining, dropout > 0 {
            let dropped = try tape.dropout(x, dropout)
            let product = try tape.linear(dropped, frozen: w, transposed: isTransposed, as: y.value.dtype)
            let branch = try tape.addLowRank(to: product, input: dropped, a: a, b: b, scale: scale)
            let rest = try tape.add(y, try tape.scaled(product, by: -1))
            return try tape.add(rest, try tape.scaleColumns(branch, scale: ratio))
        }
        let sum = try tape.addLowRank(to: y, input: x, a: a, b: b, scale: scale)
        // The bias stands outside: m/n⊙(Wx + b + …) + (1 − m/n)⊙b.
        let shift = try bias.map { (bias) throws(PEFTError) in
            try tape.add(bias, try tape.scaled(try tape.multiply(ratio, bias), by: -1))
        }
        return try tape.scaleColumns(sum, scale: ratio, shift: shift)
    }

    /// What the rows of an embedding become: `m/n ⊙ (row + s·B·A[id])`, n over the vocabulary.
    func add(to y: consuming Variable, ids: Tensor, _ w: Tensor, a: Variable, b: Variable, scale: Float, _ tape: Tape)
        throws(PEFTError) -> Variable
    {
        let inverse = try inverseNorms(w, isTransposed: true, b: b.value, a: a.value, scale: scale, tape.engine)
        let ratio = try tape.multiply(try tape.vector(parameter), Variable(inverse))
        return try tape.scaleColumns(
            try tape.addLowRankEmbedding(to: y, ids: ids, a: a, b: b, scale: scale), scale: ratio)
    }

    /// `m/n ⊙ w`; n of the weight as it was before any adapter was merged.
    func scaled(_ w: Tensor, _ original: Tensor, isTransposed: Bool, _ factors: (b: Tensor, a: Tensor), scale: Float)
        throws(PEFTError) -> Tensor
    {
        let engine = model.engine
        let inverse = try Magnitude.inverseNorms(
            original, isTransposed: isTransposed, b: factors.b, a: factors.a, scale: scale, engine)
        let tape = Tape(engine, .f32)
        let ratio = try tape.multiply(try tape.vector(parameter), Variable(inverse))
        return try isTransposed
            ? tape.scaleColumns(Variable(w), scale: ratio).value : tape.scaleRows(Variable(w), ratio).value
    }
}
