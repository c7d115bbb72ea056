package import Autograd
internal import Platform
internal import Tensors

/// What Llama-Adapter (arXiv:2303.16199) puts beside the attention of one layer: `y += gate · attention(q, k(prompt), v(prompt))`,
/// where `k` and `v` are the layer's own projections without positions.
package final class GatedPrompt: Sendable {
    /// f32 `[1, length, hiddenSize]`
    package let prompt: Parameter
    /// f32 `[1]`; 0 at first: nothing happens.
    package let gate: Parameter
    package let scale: Float

    package init(prompt: Parameter, gate: Parameter, scale: Float = 1) { (self.prompt, self.gate, self.scale) = (prompt, gate, scale) }
}

/// Keys and values that a layer makes of rows.
protocol KeyProjection {
    func keysAndValues(_ x: Variable, _ tape: Tape) throws(PEFTError) -> (keys: Variable, values: Variable)
}

extension SelfAttention {
    /// What is added to the layer's own attention, for queries `q`; nil: no adapter has a prompt here.
    func beside(_ q: Variable, _ layerOf: any KeyProjection, _ context: ForwardContext) throws(PEFTError) -> Variable? {
        let tape = context.tape
        guard let groups = context.groups else {
            return try context.commonAdaptation?.gatedPrompts[layer].map { (own) throws(PEFTError) in try attention(q, own, layerOf, context.caches.first, tape) }
        }
        guard groups.contains(where: { $0.adaptation.gatedPrompts[layer] != nil }) else { return nil }
        return try tape.concatenateRows(try groups.map { (group) throws(PEFTError) in
            let rows = try tape.rows(q, try context.rows(of: group.range, in: q.value.rows))
            guard let own = group.adaptation.gatedPrompts[layer] else { return Variable(try Tensor.zeros(tape.engine, rows.shape, rows.value.dtype)) }
            return try attention(rows, own, layerOf, context.caches.isEmpty ? nil : context.caches[group.range.lowerBound], tape)
        })
    }

    /// All rows see the same keys, so they are one sequence here.
    private func attention(_ q: Variable, _ own: GatedPrompt, _ layerOf: any KeyProjection, _ cache: KeyValueCache?, _ tape: Tape) throws(PEFTError) -> Variable {
        let (keys, values): (Variable, Variable)
        if let known = cache?.beside(own, layer: layer) {
            (keys, values) = (Variable(known.keys), Variable(known.values))
        } else {
            let rows = try tape.reshaped(tape.variable(own.prompt), Array(own.prompt.value.shape.dropFirst()))
            (keys, values) = try layerOf.keysAndValues(try tape.cast(rows, to: q.value.dtype), tape)
            cache?.keep(keys.value, values.value, beside: own, layer: layer)
        }
        let shape = AttentionShape(
            batch: 1, queryLength: q.value.rows, keyLength: keys.value.rows, heads: heads, keyValueHeads: keyValueHeads, headDim: headSize, isCausal: false)
        let attended = try tape.attention(q: q, k: keys, v: values, shape: shape)
        let gates = try tape.gatherRows(try tape.reshaped(tape.variable(own.gate), [1, 1]), Array(repeating: 0, count: q.value.rows))
        return try tape.scaleRows(attended, own.scale == 1 ? gates : try tape.scaled(gates, by: own.scale))
    }
}
