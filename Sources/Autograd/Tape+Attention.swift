internal import Kernels
package import Platform
package import Tensors

extension Tape {
    /// Exact attention over whole sequences: `q` `[batch·queryLength, heads·headDim]`, `k`, `v`
    /// `[batch·keyLength, keyValueHeads·headDim]`; the result is like `q`.
    ///
    /// - Parameters:
    ///   - keyMask: u8 `[batch, keyLength]`, 0 = padding.
    ///   - firstKey: i32 `[batch, queryLength]`, first key each query may see (packed sequences).
    ///   - bias: added to scores by distance.
    ///   - distances: the table of `bias`, where it may be trained.
    /// Keeps q, k, v and the result (in 8 bits where activations are bf16) and one f32 per query and head. A query that sees no key for all the padding gives the
    /// mean of all values (`BlindQueries`).
    package func attention(
        q: Variable, k: Variable, v: Variable, shape: AttentionShape, keyMask: Tensor? = nil, firstKey: Tensor? = nil, bias: DistanceBias? = nil,
        distances: Variable? = nil
    ) throws(PEFTError) -> Variable {
        let dtype = q.value.dtype
        try require(k.value.dtype == dtype && v.value.dtype == dtype, "attention: q \(dtype.name), k \(k.value.dtype.name), v \(v.value.dtype.name)")
        let out = try Tensor(engine, [shape.batch * shape.queryLength, shape.heads * shape.headDim], dtype)
        var output = result(out, of: q, k, v, distances ?? Variable(out))
        let logSums = output.needsGradient ? try Tensor(engine, [shape.batch, shape.heads, shape.queryLength]) : nil
        try engine.attention(
            q: AttentionOperand(q.value, length: shape.queryLength), k: AttentionOperand(k.value, length: shape.keyLength),
            v: AttentionOperand(v.value, length: shape.keyLength), out: AttentionOperand(out, length: shape.queryLength), shape: shape, keyMask: keyMask,
            firstKey: firstKey, bias: bias, logSums: logSums)
        let blind = BlindQueries.find(shape, keyMask: keyMask)
        for some in blind { try engine.attention(blind: some, q: q.value, k: k.value, v: v.value, out: out, shape: shape) }
        guard let logSums else { return output }
        let (keptQ, keptK, keptV, keptOut) = (try compact(q), try compact(k), try compact(v), try compact(out))
        let attended = Recipe { () throws(PEFTError) in try keptOut.tensor() }  // what o_proj's adapter reads too
        output.recipe = attended
        record(output) { [engine, qSlot = q.slot, kSlot = k.slot, vSlot = v.slot, tableSlot = distances?.slot] dY throws(PEFTError) in
            let (q, k, v, out) = (try keptQ.tensor(), try keptK.tensor(), try keptV.tensor(), try attended.result())
            let dQ = try Tensor(engine, q.shape, dtype)
            let dK = try Tensor(engine, k.shape, dtype)
            let dV = try Tensor(engine, v.shape, dtype)
            try engine.attentionBackward(
                q: q, k: k, v: v, out: out, shape: shape, keyMask: keyMask, firstKey: firstKey, bias: bias, logSums: logSums, dOut: dY, dQ: dQ, dK: dK,
                dV: dV)
            if let bias, let tableSlot {
                let gradient = try engine.attentionBiasGradient(
                    q: q, k: k, v: v, out: out, shape: shape, keyMask: keyMask, firstKey: firstKey, bias: bias, logSums: logSums, dOut: dY)
                try tableSlot.add(gradient, engine)
            }
            for some in blind {
                try engine.attentionBackward(blind: some, q: q, k: k, v: v, out: out, shape: shape, dOut: dY, dQ: dQ, dK: dK, dV: dV)
            }
            try qSlot?.add(dQ, engine)
            try kSlot?.add(dK, engine)
            try vSlot?.add(dV, engine)
        }
        return output
    }
}
