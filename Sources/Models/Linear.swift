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
    /// Each of so many groups of outputs sees its own group of inputs (grouped convolutions); W is `[out, in/groups]`.
    package let groups: Int
    package let kind: String
    /// Which matrix of a stack it is (`Experts`).
    package let part: Int
    private var ownWeight: Tensor
    /// f32 `[out]`
    package private(set) var bias: Tensor?

    package init(name: String, index: Int, weight: Tensor, bias: Tensor?, isTransposed: Bool = false, groups: Int = 1, kind: String? = nil, part: Int = 0) {
        self.name = name
        self.index = index
        ownWeight = weight
        self.bias = bias
        self.isTransposed = isTransposed
        self.groups = groups
        self.kind = kind ?? (isTransposed ? "Conv1D" : "Linear")
        self.part = part
        tiedEmbedding = nil
        inputSize = isTransposed ? weight.rows : weight.columns * groups
        outputSize = isTransposed ? weight.columns : weight.rows
    }

    /// A head that multiplies by an embedding's table.
    package init(name: String, index: Int, tiedTo embedding: Embedding) {
        self.name = name
        self.index = index
        ownWeight = embedding.weight
        isTransposed = false
        groups = 1
        kind = "Linear"
        part = 0
        tiedEmbedding = embedding
        inputSize = embedding.dimension
        outputSize = embedding.count
    }

    /// `[out, in]`, or `[in, out]` when transposed; any weight format.
    package var weight: Tensor { tiedEmbedding?.weight ?? ownWeight }

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
        if let product = try fewRowProduct(x, context), let y = try tape.linears(x, [product], as: dtype).first { return y }
        if let products = try fewRowProductsApart(x, context) {
            var parts: [Variable] = []
            for (rows, product) in products { parts += try tape.linears(try tape.rows(x, rows), [product], as: dtype) }
            return try tape.concatenateRows(parts)
        }
        guard let groups = context.differingGroups(at: self) else {
            tape.textRows = context.textRows(in: x.value.rows, of: x.value.rows)
            return try self(x, context.common(at: self), tape, as: dtype)
        }
        let parts = try groups.map { (group) throws(PEFTError) in
            try Part(try tape.rows(x, try context.rows(of: group.range, in: x.value.rows)), group.adaptation[self], self, tape)
        }
        return try tape.concatenateRows(try products(of: x, parts, tape, dtype).enumerated().map { (index, y) throws(PEFTError) in
            tape.textRows = context.textRows(in: x.value.rows, of: y.value.rows)
            return try outputs(of: parts[index], y, tape)
        })
    }

    /// The same with all rows adapted alike, whatever else the computation does.
    /// - Parameter weight: what stands in for the layer's own.
    package func callAsFunction(
        _ x: Variable, _ adaptation: LayerAdaptation?, _ tape: Tape, weight: Variable? = nil, as dtype: DType? = nil
    ) throws(PEFTError) -> Variable {
        if weight == nil, groups == 1, let all = adaptation, all.hooks.count == 1, all.replacements["weight"] == nil, let hook = all.hooks.first,
            let y = try hook.product(of: x, bias: adaptation.own("bias", tape) ?? bias.map { Variable($0) }, of: self, tape, as: dtype)
        {
            return try hook.output(y, input: x, of: self, tape)
        }
        let part = try Part(x, adaptation, self, tape)
        return try outputs(of: part, try product(part.input, adaptation, tape, dtype, weight: weight), tape)
    }

    /// The outputs of several layers for the same few rows, in one hand-over to the threads (decoding); nil where that cannot be.
    package static func together(_ layers: [Linear], _ x: Variable, _ context: ForwardContext) throws(PEFTError) -> [Variable]? {
        var products: [FewRowProduct] = []
        for layer in layers {
            guard let product = try layer.fewRowProduct(x, context) else { return nil }
            products.append(product)
        }
        return try context.tape.linears(x, products)
    }

    /// The layer and everything adapters do here as one product, which takes theirs of low rank with it; nil where that is not all of it, or there are too many
    /// rows.
    private func fewRowProduct(_ x: Variable, _ context: ForwardContext) throws(PEFTError) -> FewRowProduct? {
        guard let changes = try fewRowChanges(x, context) else { return nil }
        if !changes.contains(where: { $0.of.weights(at: index) != nil }) { return FewRowProduct(weight: weight, bias: bias, layer: index, branches: changes) }
        guard changes.count == 1, let only = changes.first, only.rows.count == x.value.rows, let own = only.of.weights(at: index) else { return nil }
        return FewRowProduct(weight: own.weight, bias: own.bias)
    }

    /// The same where rows have different weights.
    private func fewRowProductsApart(_ x: Variable, _ context: ForwardContext) throws(PEFTError) -> [(rows: Range<Int>, product: FewRowProduct)]? {
        guard context.groups != nil, let changes = try fewRowChanges(x, context) else { return nil }
        var (products, next): ([(rows: Range<Int>, product: FewRowProduct)], Int) = ([], 0)
        for (rows, change) in changes {
            if next < rows.lowerBound { products.append((next..<rows.lowerBound, FewRowProduct(weight: weight, bias: bias))) }
            let own = change.weights(at: index).map { FewRowProduct(weight: $0.weight, bias: $0.bias) }
            products.append((rows, own ?? FewRowProduct(weight: weight, bias: bias, layer: index, branches: [(0..<rows.count, change)])))
            next = rows.upperBound
        }
        if next < x.value.rows { products.append((next..<x.value.rows, FewRowProduct(weight: weight, bias: bias))) }
        return products
    }

    /// What adapters do here to which rows; nil: more than products of few rows can do, or there are too many rows.
    private func fewRowChanges(_ x: Variable, _ context: ForwardContext) throws(PEFTError) -> [(rows: Range<Int>, of: FewRowChanges)]? {
        let (tape, rows) = (context.tape, x.value.rows)
        guard tape.isInference, groups == 1, !isTransposed, weight.shape.count == 2, !weight.roundsActivations, tape.engine.joinsProducts(rows: rows) else { return nil }
        guard let changes = try context.fewRowChanges(rows: rows), changes.allSatisfy({ $0.of.isAll(at: index) }) else { return nil }
        return changes
    }

    /// The rows of samples with the same adapters.
    private struct Part {
        let adaptation: LayerAdaptation?
        /// What each hook sees: the input as the hooks behind it left it.
        var seen: [Variable] = []
        /// What the frozen product sees.
        var input: Variable

        init(_ x: Variable, _ adaptation: LayerAdaptation?, _ layer: Linear, _ tape: Tape) throws(PEFTError) {
            self.adaptation = adaptation
            input = x
            for hook in (adaptation?.hooks ?? []).reversed() {
                seen.append(input)
                input = try hook.input(input, of: layer, tape)
            }
            seen.reverse()
        }
    }

    /// The base products of all parts: one product for those that use the layer's own weights.
    private func products(of x: Variable, _ parts: [Part], _ tape: Tape, _ dtype: DType?) throws(PEFTError) -> [Variable] {
        guard parts.allSatisfy({ $0.adaptation?.replacements.isEmpty ?? true }) else {
            return try parts.map { (part) throws(PEFTError) in try product(part.input, part.adaptation, tape, dtype) }
        }
        let isChanged = parts.contains { $0.input.value.storage !== x.value.storage }
        let y = try product(isChanged ? try tape.concatenateRows(parts.map(\.input)) : x, nil, tape, dtype)
        var start = 0
        return try parts.map { (part) throws(PEFTError) in
            defer { start += part.input.value.rows }
            return try tape.rows(y, start..<start + part.input.value.rows)
        }
    }

    private func product(
        _ x: Variable, _ adaptation: LayerAdaptation?, _ tape: Tape, _ dtype: DType?, weight own: Variable? = nil
    ) throws(PEFTError) -> Variable {
        var w = own ?? adaptation.own("weight", tape) ?? Variable(weight)
        // A convolution's own weight has the shape of its kernel.
        if w.shape.count > 2 { w = try tape.reshaped(w, [outputSize, w.value.count / max(outputSize, 1)]) }
        let b = adaptation.own("bias", tape) ?? bias.map { Variable($0) }
        guard groups > 1 else { return try tape.linear(x, w, bias: b, transposed: isTransposed, as: dtype) }
        let parts = try tape.splitColumns(x, Array(repeating: inputSize / groups, count: groups))
        let each = outputSize / groups
        let y = try tape.concatenateColumns(try parts.enumerated().map { (group, part) throws(PEFTError) in
            try tape.linear(part, try tape.rows(w, group * each..<(group + 1) * each), as: dtype)
        })
        guard let b else { return y }
        return try tape.scaleColumns(y, scale: nil, shift: b)
    }

    private func outputs(of part: Part, _ y: consuming Variable, _ tape: Tape) throws(PEFTError) -> Variable {
        var y = y
        for (hook, x) in zip(part.adaptation?.hooks ?? [], part.seen) {
            y = try hook.add(to: y, input: x, of: self, tape)
            y = try hook.output(y, input: x, of: self, tape)
        }
        return y
    }
}
