package import Autograd
package import Platform
internal import Tensors

/// Attention of a decoder over what the encoder made of the source: every query sees every key that is no padding.
extension SelfAttention {
    /// `q` `[batch·length, heads·headSize]`; `k`, `v` `[batch·source length, heads·headSize]`.
    package func overSource(_ q: Variable, _ k: Variable, _ v: Variable, _ context: ForwardContext) throws(PEFTError) -> Variable {
        try context.tape.attention(q: q, k: k, v: v, shape: across(batch: context.batch, keys: k.value.rows / max(context.batch, 1), context), keyMask: context.source?.keyMask)
    }

    /// The same over keys and values that the caches of a generation hold.
    package func overCachedSource(_ q: Variable, _ context: ForwardContext) throws(PEFTError) -> Variable {
        let result = try Tensor(context.tape.engine, q.shape, q.value.dtype)
        for (sample, cache) in context.caches.enumerated() {
            guard let (keys, values) = cache.source(layer: layer) else { throw PEFTError(.state, "the session has read no source yet") }
            let rows = sample * context.length..<(sample + 1) * context.length
            try context.tape.engine.attention(
                q: AttentionOperand(try q.value.rows(rows), length: context.length), k: AttentionOperand(keys, length: keys.rows),
                v: AttentionOperand(values, length: keys.rows), out: AttentionOperand(try result.rows(rows), length: context.length),
                shape: across(batch: 1, keys: keys.rows, context))
        }
        return Variable(result)
    }

    private func across(batch: Int, keys: Int, _ context: ForwardContext) -> AttentionShape {
        AttentionShape(
            batch: batch, queryLength: context.length, keyLength: keys, heads: heads, keyValueHeads: keyValueHeads, headDim: headSize, scale: scale, isCausal: false)
    }
}
