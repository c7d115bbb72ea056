internal import Glibc
package import Platform

/// Neighbouring queries of one sample that see no key: what stands before the first token of a row padded on the left, or
/// a row of nothing but padding.
package struct BlindQueries: Equatable {
    package let sample: Int
    package let queries: Range<Int>

    /// All of a mask u8 `[batch, keyLength]`; none while planning, when there is no mask to look at.
    package static func find(_ shape: AttentionShape, keyMask: Tensor?) -> [BlindQueries] {
        guard let keyMask, keyMask.storage.isReal, keyMask.byteCount == shape.batch * shape.keyLength else { return [] }
        let mask = unsafe UnsafeRawBufferPointer(start: keyMask.pointer, count: keyMask.byteCount)
        var found: [BlindQueries] = []
        for sample in 0..<shape.batch {
            var seen = [0]  // seen[k]: keys before k that are no padding
            for key in 0..<shape.keyLength { seen.append(seen[key] + (unsafe mask[sample * shape.keyLength + key] != 0 ? 1 : 0)) }
            guard seen[shape.keyLength] < shape.keyLength else { continue }
            var start: Int?
            for query in 0...shape.queryLength {
                let position = query + shape.queryOffset
                let end = shape.isCausal ? min(shape.keyLength, max(0, position + 1)) : shape.keyLength
                let begin = shape.window > 0 ? min(end, max(0, position - shape.window + 1)) : 0
                let isBlind = query < shape.queryLength && seen[end] == seen[begin]
                if isBlind, start == nil { start = query }
                if !isBlind, let first = start {
                    found.append(BlindQueries(sample: sample, queries: first..<query))
                    start = nil
                }
            }
        }
        return found
    }
}

/// transformers' eager attention adds −3.4·10³⁸ to scores of padding, so to a query that sees nothing else all scores are
/// equal: it gets the mean of all values, while derivatives go through its true scores. It matters because a label may
/// stand right behind the padding. The same comes out of ordinary attention, without a mask, whose scores are made
/// too small to count.
private let vanishing: Float = 0x1p-60

extension Engine {
    /// Overwrites the rows of `blind` in `out`. Operands are contiguous, as in `attentionBackward`.
    package func attention(blind: BlindQueries, q: Tensor, k: Tensor, v: Tensor, out: Tensor, shape: AttentionShape) throws(PEFTError) {
        let rows = shape.of(blind)
        try attention(
            q: AttentionOperand(try q.rows(blind.rows(shape)), length: rows.queryLength), k: AttentionOperand(try k.rows(blind.keys(shape)), length: rows.keyLength),
            v: AttentionOperand(try v.rows(blind.keys(shape)), length: rows.keyLength), out: AttentionOperand(try out.rows(blind.rows(shape)), length: rows.queryLength),
            shape: rows)
    }

    /// Adds what the rows of `blind` give to `dQ`, `dK` and `dV`.
    package func attentionBackward(
        blind: BlindQueries, q: Tensor, k: Tensor, v: Tensor, out: Tensor, shape: AttentionShape, dOut: Tensor, dQ: Tensor, dK: Tensor, dV: Tensor
    ) throws(PEFTError) {
        let (rows, queries, keys) = (shape.of(blind), blind.rows(shape), blind.keys(shape))
        // With equal scores s ≈ 0 the log of the sum of e^s is that of the number of keys.
        let logSums = try Tensor(self, Array(repeating: log(Float(rows.keyLength)), count: rows.heads * rows.queryLength), shape: [1, rows.heads, rows.queryLength])
        let (q, k, v, out) = try (q.rows(queries), k.rows(keys), v.rows(keys), out.rows(queries))
        let parts = try (q: Tensor(self, q.shape, q.dtype), k: Tensor(self, k.shape, k.dtype), v: Tensor(self, v.shape, v.dtype))
        try attentionBackward(
            q: q, k: k, v: v, out: out, shape: rows, keyMask: nil, firstKey: nil, logSums: logSums, dOut: try dOut.rows(queries), dQ: parts.q, dK: parts.k, dV: parts.v)
        axpby(shape.scale / vanishing, parts.q, 1, into: try dQ.rows(queries))
        axpby(shape.scale / vanishing, parts.k, 1, into: try dK.rows(keys))
        axpby(1, parts.v, 1, into: try dV.rows(keys))
    }
}

extension BlindQueries {
    /// Where they stand in `[batch·queryLength, …]`.
    fileprivate func rows(_ shape: AttentionShape) -> Range<Int> {
        let first = sample * shape.queryLength
        return first + queries.lowerBound..<first + queries.upperBound
    }

    /// Their sample in `[batch·keyLength, …]`.
    fileprivate func keys(_ shape: AttentionShape) -> Range<Int> {
        sample * shape.keyLength..<(sample + 1) * shape.keyLength
    }
}

extension AttentionShape {
    /// The queries of `blind` against every key of their sample.
    fileprivate func of(_ blind: BlindQueries) -> AttentionShape {
        AttentionShape(
            batch: 1, queryLength: blind.queries.count, keyLength: keyLength, heads: heads, keyValueHeads: keyValueHeads, headDim: headDim, scale: vanishing,
            isCausal: false)
    }
}
