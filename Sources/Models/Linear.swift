package import Autograd
package import Platform
package import Tensors

/// `y = x·Wᵀ + b` with frozen W in any weight format, and whatever adapters hook around it.
package final class Linear: Layer, @unchecked Sendable {
    // Sendable: `weight` and `bias` are replaced only by the holder of the model's write lock.

    package let name: String
    package let index: Int
    package let inputSize: Int
    package let outputSize: Int
    /// The weight is stored `[in, out]` (GPT-2's Conv1D) instead of `[out, in]`.
    package let isTransposed: Bool
    /// The embedding whose table is the weight (tied heads); nil: the layer has its own.
    package let tiedEmbedding: Embedding?
    private var ownWeight: Tensor
    /// f32 `[out]`
    package private(set) var bias: Tensor?

    package init(name: String, index: Int, weight: Tensor, bias: Tensor?, isTransposed: Bool = false) {
        self.name = name
        self.index = index
        ownWeight = weight
        self.bias = bias
        self.isTransposed = isTransposed
        tiedEmbedding = nil
        inputSize = isTransposed ? weight.rows : weight.columns
        outputSize = isTransposed ? weight.columns : weight.rows
    }

    /// A head that multiplies by an embedding's table.
    package init(name: String, index: Int, tiedTo embedding: Embedding) {
        self.name = name
        self.index = index
        ownWeight = embedding.weight
        isTransposed = false
        tiedEmbedding = embedding
        inputSize = embedding.dimension
        outputSize = embedding.count
    }

    /// `[out, in]`, or `[in, out]` when transposed; any weight format.
    package var weight: Tensor { tiedEmbedding?.weight ?? ownWeight }

    package var kind: String { isTransposed ? "Conv1D" : "Linear" }

    package var tensors: [(name: String, tensor: Tensor)] {
        [("weight", weight)] + (bias.map { [("bias", $0)] } ?? [])
    }

    package func setTensor(_ name: String, _ tensor: Tensor) throws(PEFTError) {
        switch name {
        case "weight":
            try checkReplacement(tensor, like: weight, name)
            // A tied matrix is one: who changes the head changes the embedding.
            if let tiedEmbedding { try tiedEmbedding.setTensor(name, tensor) } else { ownWeight = tensor }
        case "bias":
            try checkReplacement(tensor, size: outputSize, name)
            bias = tensor
        default: throw noTensor(name)
        }
    }

    /// `x` `[rows, in]`; the result is `[rows, out]`, of type `dtype` (nil: that of `x`).
    package func callAsFunction(_ x: Variable, _ context: ForwardContext, as dtype: DType? = nil) throws(PEFTError) -> Variable {
        let tape = context.tape
        guard case .samples(let groups) = context.routing, groups.contains(where: { $0.adaptation[self] != nil }) else {
            let adaptation = context.commonAdaptation?[self]
            return try around(x, try product(try input(x, adaptation, tape), adaptation, tape, dtype), adaptation, tape)
        }
        let parts = try groups.map { (group) throws(PEFTError) in
            Part(x: try tape.rows(x, try context.rows(of: group.range, in: x.value.rows)), adaptation: group.adaptation[self])
        }
        return try tape.concatenateRows(try products(of: x, parts, tape, dtype).enumerated().map { (index, y) throws(PEFTError) in
            try around(parts[index].x, y, parts[index].adaptation, tape)
        })
    }

    /// The rows of samples with the same adapters.
    private struct Part {
        let x: Variable
        let adaptation: LayerAdaptation?
    }

    /// The base products of all parts: one product for those that use the layer's own weights.
    private func products(of x: Variable, _ parts: [Part], _ tape: Tape, _ dtype: DType?) throws(PEFTError) -> [Variable] {
        let inputs = try parts.map { (part) throws(PEFTError) in try input(part.x, part.adaptation, tape) }
        guard parts.allSatisfy({ $0.adaptation?.replacements.isEmpty ?? true }) else {
            return try zip(inputs, parts).map { (input, part) throws(PEFTError) in try product(input, part.adaptation, tape, dtype) }
        }
        let isChanged = zip(inputs, parts).contains { $0.value.storage !== $1.x.value.storage }
        let y = try product(isChanged ? try tape.concatenateRows(inputs) : x, nil, tape, dtype)
        var start = 0
        return try parts.map { (part) throws(PEFTError) in
            defer { start += part.x.value.rows }
            return try tape.rows(y, start..<start + part.x.value.rows)
        }
    }

    private func input(_ x: Variable, _ adaptation: LayerAdaptation?, _ tape: Tape) throws(PEFTError) -> Variable {
        var input = x
        for hook in adaptation?.hooks ?? [] { input = try hook.input(input, of: self, tape) }
        return input
    }

    private func product(_ x: Variable, _ adaptation: LayerAdaptation?, _ tape: Tape, _ dtype: DType?) throws(PEFTError) -> Variable {
        try tape.linear(
            x, adaptation.own("weight", tape) ?? Variable(weight), bias: adaptation.own("bias", tape) ?? bias.map { Variable($0) }, transposed: isTransposed,
            as: dtype)
    }

    private func around(_ x: Variable, _ y: consuming Variable, _ adaptation: LayerAdaptation?, _ tape: Tape) throws(PEFTError) -> Variable {
        var y = y
        for hook in adaptation?.hooks ?? [] { y = try hook.add(to: y, input: x, of: self, tape) }
        for hook in adaptation?.hooks ?? [] { y = try hook.output(y, input: x, of: self, tape) }
        return y
    }
}
