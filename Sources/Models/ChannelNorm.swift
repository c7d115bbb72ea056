package import Autograd
package import Platform
package import Tensors

/// What convolutional networks normalise with, over `[batch·positions, channels]`:
///
///     BatchNorm (evaluation)  y = (x − mean) / √(var + ε) · weight + bias      mean, var of the training, per channel
///     GroupNorm               the same, mean and var of a sample's values in each group of channels
package final class ChannelNorm: Layer, @unchecked Sendable {
    // Sendable: the tensors are replaced only by the holder of the model's write lock.

    package enum Statistics: Sendable {
        /// f32 `[channels]` each.
        case fixed(mean: Tensor, variance: Tensor)
        case groups(Int)
    }

    package let name: String
    package let index: Int
    package let kind: String
    package let channels: Int
    private let statistics: Statistics
    private let epsilon: Float
    /// f32 `[channels]`; nil: 1 and 0.
    private var weight: Tensor?
    private var bias: Tensor?

    package init(name: String, index: Int, kind: String, channels: Int, statistics: Statistics, weight: Tensor?, bias: Tensor?, epsilon: Float) {
        self.name = name
        self.index = index
        self.kind = kind
        self.channels = channels
        self.statistics = statistics
        self.weight = weight
        self.bias = bias
        self.epsilon = epsilon
    }

    package var tensors: [(name: String, tensor: Tensor)] {
        var all: [(name: String, tensor: Tensor)] = []
        if let weight { all.append(("weight", weight)) }
        if let bias { all.append(("bias", bias)) }
        if case .fixed(let mean, let variance) = statistics { all += [("running_mean", mean), ("running_var", variance)] }
        return all
    }

    package func setTensor(_ name: String, _ tensor: Tensor) throws(PEFTError) {
        guard name == "weight" && weight != nil || name == "bias" && bias != nil else { throw noTensor(name) }
        try checkReplacement(tensor, size: channels, name)
        if name == "weight" { weight = tensor } else { bias = tensor }
    }

    /// `x` `[batch·positions, channels]`.
    package func callAsFunction(_ x: Variable, _ context: ForwardContext) throws(PEFTError) -> Variable {
        let batch = context.batch
        return try context.applied(to: x, self) { (x, adaptation, tape) throws(PEFTError) in
            let scale = adaptation.own("weight", tape) ?? weight.map { Variable($0) }
            let shift = adaptation.own("bias", tape) ?? bias.map { Variable($0) }
            return try tape.scaleColumns(try normed(x, batch, tape), scale: scale, shift: shift)
        }
    }

    private func normed(_ x: Variable, _ batch: Int, _ tape: Tape) throws(PEFTError) -> Variable {
        switch statistics {
        case .fixed(let mean, let variance):
            let engine = tape.engine
            guard !engine.isPlanning else { return try tape.scaleColumns(x, scale: Variable(mean), shift: Variable(mean)) }
            let inverse = try variance.floats(engine).map { 1 / ($0 + epsilon).squareRoot() }
            let shift = zip(try mean.floats(engine), inverse).map { -$0 * $1 }
            return try tape.scaleColumns(
                x, scale: Variable(try Tensor(engine, inverse, shape: [channels])), shift: Variable(try Tensor(engine, shift, shape: [channels])))
        case .groups(let count):
            let (rows, width) = (x.value.rows, channels / count)
            // A sample's rows lie one after the other, so its values of a group are one row.
            let parts = try tape.splitColumns(x, Array(repeating: width, count: count)).map { (part) throws(PEFTError) in
                let one = try tape.layerNorm(try tape.reshaped(part, [batch, rows / max(batch, 1) * width]), weight: nil, bias: nil, eps: epsilon)
                return try tape.reshaped(one, [rows, width])
            }
            return try tape.concatenateColumns(parts)
        }
    }
}
