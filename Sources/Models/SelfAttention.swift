package import Autograd
package import Platform
internal import Tensors

/// Attention of a sequence over itself: an encoder's, a decoder's over whole sequences, or over what a cache holds and the newest tokens.
package struct SelfAttention: Sendable {
    /// Number of the decoder layer: its place in a cache.
    package let layer: Int
    package let heads: Int
    package let keyValueHeads: Int
    package let headSize: Int
    /// Keys a query sees, counted back from itself; 0: all.
    package var window = 0
    /// A token sees only those before it.
    package var isCausal = true
    /// nil: 1/√headSize.
    package var scale: Float?
    /// 0: none.
    package var softcap: Float = 0

    package init(layer: Int, heads: Int, keyValueHeads: Int, headSize: Int, window: Int = 0, isCausal: Bool = true, scale: Float? = nil, softcap: Float = 0) {
        self.layer = layer
        self.heads = heads
        self.keyValueHeads = keyValueHeads
        self.headSize = headSize
        self.window = window
        self.isCausal = isCausal
        self.scale = scale
        self.softcap = softcap
    }

    /// `q` `[batch·length, heads·headSize]`, `k`, `v` `[batch·length, keyValueHeads·headSize]`, rotated already; `bias`: positions that are added to the scores; `x`: what
    /// all three were made of.
    package func callAsFunction(_ q: Variable, _ k: Variable, _ v: Variable, of x: Variable? = nil, bias: RelativeBias? = nil, _ context: ForwardContext) throws(PEFTError) -> Variable {
        let engine = context.tape.engine
        guard !context.caches.isEmpty else {
            let memory = context.memory
            let shape = shape(batch: context.batch, keys: context.length + (memory?.count ?? 0), context)
            let positions = try bias?.table(shape, context.tape)
            let (k, v) = try memory?.before(k, v, of: x, layer: context.runNumber ?? layer, context) ?? (k, v)
            return try context.tape.attention(
                q: q, k: k, v: v, shape: shape, keyMask: memory == nil ? context.keyMask : memory?.keyMask, firstKey: context.firstKey,
                bias: positions?.bias, distances: positions?.table)
        }
        guard context.caches.count == context.batch, !q.needsGradient, !k.needsGradient, !v.needsGradient else {
            throw PEFTError(.internal, "\(context.caches.count) caches for \(context.batch) samples; caches are for inference only")
        }
        let result = try Tensor(engine, q.shape, q.value.dtype)
        var together: [TextAttention] = []
        for (sample, cache) in context.caches.enumerated() {
            let rows = sample * context.length..<(sample + 1) * context.length
            if cache.leading != nil { try cache.weighLeading(by: x, rows, layer: context.runNumber ?? layer, context.tape) }
            let (keys, values) = try cache.append(try k.value.rows(rows), try v.value.rows(rows), layer: context.runNumber ?? layer)
            let shape = shape(batch: 1, keys: keys.rows, context)
            let (query, out) = (AttentionOperand(try q.value.rows(rows), length: context.length), AttentionOperand(try result.rows(rows), length: context.length))
            let (key, value) = (AttentionOperand(keys, length: keys.rows), AttentionOperand(values, length: keys.rows))
            if bias == nil, context.caches.count > 1 {
                together.append((query, key, value, out, shape))
            } else {
                try engine.attention(q: query, k: key, v: value, out: out, shape: shape, bias: try bias?.table(shape, context.tape).bias)
            }
        }
        if !together.isEmpty { try engine.attention(together) }
        return Variable(result)
    }

    private func shape(batch: Int, keys: Int, _ context: ForwardContext) -> AttentionShape {
        AttentionShape(
            batch: batch, queryLength: context.length, keyLength: keys, heads: heads, keyValueHeads: keyValueHeads, headDim: headSize, scale: scale, softcap: softcap,
            isCausal: isCausal, window: window)
    }
}
