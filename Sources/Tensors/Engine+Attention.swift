internal import Kernels
package import Platform

/// Sizes and rules of one attention. Heads share keys and values in groups of `heads / keyValueHeads`.
package struct AttentionShape: Sendable {
    package var batch: Int
    package var queryLength: Int
    package var keyLength: Int
    package var heads: Int
    package var keyValueHeads: Int
    package var headDim: Int
    /// Usually 1/√headDim.
    package var scale: Float
    /// Scores become `cap·tanh(score/cap)`; 0: none.
    package var softcap: Float
    /// Query t sees keys up to t + queryOffset.
    package var isCausal: Bool
    /// Absolute position of query 0 minus that of key 0.
    package var queryOffset: Int
    /// A query at p sees keys beyond p − window; 0: all.
    package var window: Int

    /// - Parameters:
    ///   - keyLength: nil: as many as queries.
    ///   - scale: nil: 1/√headDim.
    ///   - queryOffset: nil: the queries are the last of the keys.
    package init(
        batch: Int, queryLength: Int, keyLength: Int? = nil, heads: Int, keyValueHeads: Int, headDim: Int, scale: Float? = nil, softcap: Float = 0,
        isCausal: Bool, queryOffset: Int? = nil, window: Int = 0
    ) {
        self.batch = batch
        self.queryLength = queryLength
        self.keyLength = keyLength ?? queryLength
        self.heads = heads
        self.keyValueHeads = keyValueHeads
        self.headDim = headDim
        self.scale = scale ?? 1 / Float(max(headDim, 1)).squareRoot()
        self.softcap = softcap
        self.isCausal = isCausal
        self.queryOffset = queryOffset ?? (self.keyLength - queryLength)
        self.window = window
    }
}

/// What is added to scores by how far a query stands behind its key (T5's relative positions): f32 `[heads, …]`, the value
/// of distance d at column `zero + d`.
package struct DistanceBias {
    package let table: Tensor
    package let zero: Int

    /// Values the kernels may read beyond the last query.
    private static let padding = 64

    /// For all distances of `shape`, in the order of `distances`.
    package static func distances(_ shape: AttentionShape) -> ClosedRange<Int> {
        -shape.keyLength...max(-shape.keyLength, shape.queryLength + shape.queryOffset + padding)
    }

    package init(_ table: Tensor, _ shape: AttentionShape) {
        self.table = table
        zero = shape.keyLength
    }

    fileprivate func fits(_ shape: AttentionShape) -> Bool {
        table.dtype == .f32 && table.shape == [shape.heads, DistanceBias.distances(shape).count] && zero == shape.keyLength && shape.queryOffset >= 0
    }
}

/// Heads of queries, keys or values somewhere in a tensor: a head's values are contiguous, tokens and samples have their
/// own strides (in values), so caches and fused projections are read where they are.
package struct AttentionOperand {
    package let tensor: Tensor
    package let tokenStride: Int
    package let batchStride: Int
    /// Values before the first head of the first token.
    package let start: Int

    package init(_ tensor: Tensor, tokenStride: Int, batchStride: Int, start: Int = 0) {
        self.tensor = tensor
        self.tokenStride = tokenStride
        self.batchStride = batchStride
        self.start = start
    }

    /// `[batch·length, heads·headDim]`.
    package init(_ tensor: Tensor, length: Int) {
        self.init(tensor, tokenStride: tensor.columns, batchStride: length * tensor.columns)
    }

    fileprivate var pointer: UnsafeMutableRawPointer { unsafe tensor.pointer + start / tensor.dtype.blockValues * tensor.dtype.blockBytes }

    /// The last value read lies inside the tensor, and heads begin with a block.
    fileprivate func fits(batch: Int, length: Int, heads: Int, headDim: Int) -> Bool {
        guard batch > 0, length > 0 else { return true }
        let block = tensor.dtype.blockValues, width = heads * ((headDim + block - 1) / block * block)
        guard [start, tokenStride, batchStride].allSatisfy({ $0 % block == 0 }), start >= 0, tokenStride >= width, batchStride >= 0 else { return false }
        return start + (batch - 1) * batchStride + (length - 1) * tokenStride + width <= tensor.count
    }
}

/// Queries of a text, its keys and values, and where what they see goes.
package typealias TextAttention = (q: AttentionOperand, k: AttentionOperand, v: AttentionOperand, out: AttentionOperand, shape: AttentionShape)

extension Engine {
    /// Softmax(scale·q·kᵀ, masked)·v for operands with strides: what a session calls on its cache, without a tape.
    ///
    /// - Parameters:
    ///   - k: f32, bf16 or q8_0, like `v`, whatever `q` and `out` are; of q8_0 heads are whole blocks.
    ///   - keyMask: u8 `[batch, keyLength]`, 0 = never seen.
    ///   - firstKey: i32 `[batch, queryLength]`.
    ///   - logSums: f32 `[batch, heads, queryLength]`, receives the log-sum-exp of each row of scores (the backward pass
    ///     needs it); nil: not wanted.
    package func attention(
        q: AttentionOperand, k: AttentionOperand, v: AttentionOperand, out: AttentionOperand, shape: AttentionShape, keyMask: Tensor? = nil,
        firstKey: Tensor? = nil, bias: DistanceBias? = nil, logSums: Tensor? = nil
    ) throws(PEFTError) {
        var op = unsafe try attentionOperation(q, k, v, out, shape, keyMask, firstKey, bias, logSums)
        guard shape.batch > 0, shape.queryLength > 0 else { return }
        unsafe try runAttention(&op, shape, phases: 1) { op, _, part, parts, _, each in unsafe pk_attention_forward(op, part, parts, each) }
    }

    /// The same of several caches, without masks, in one hand-over to the threads (sessions that step together).
    package func attention(_ several: [TextAttention]) throws(PEFTError) {
        var (ops, each): ([pk_attention], Int) = unsafe ([], 0)
        for one in several where one.shape.batch > 0 && one.shape.queryLength > 0 {
            var op = unsafe try attentionOperation(one.q, one.k, one.v, one.out, one.shape, nil, nil, nil, nil)
            var (own, shared) = (0, 0)
            unsafe pk_attention_scratch(&op, 0, &own, &shared)
            each = max(each, own)
            unsafe ops.append(op)
        }
        let step = (each + MemoryBudget.alignment - 1) & ~(MemoryBudget.alignment - 1)
        // One may be much longer than the others.
        let (pieces, count) = (Int32(clamping: pool.threadCount), unsafe ops.count)
        let scratch = try Storage(byteCount: step * count * Int(pieces), budget: budget, category: .scratch)
        unsafe ops.withUnsafeBufferPointer { ops in
            guard let first = ops.baseAddress else { return }
            parallel(count * Int(pieces)) { part, _ in
                unsafe pk_attention_forward(first + Int(part / pieces), part % pieces, pieces, scratch.base + step * Int(part))
            }
        }
    }

    /// The derivative of `attention` over contiguous operands; `dQ`, `dK`, `dV` are overwritten.
    package func attentionBackward(
        q: Tensor, k: Tensor, v: Tensor, out: Tensor, shape: AttentionShape, keyMask: Tensor?, firstKey: Tensor?, bias: DistanceBias? = nil, logSums: Tensor, dOut: Tensor, dQ: Tensor,
        dK: Tensor, dV: Tensor
    ) throws(PEFTError) {
        let (queries, keys) = (shape.queryLength, shape.keyLength)
        var op = unsafe try attentionOperation(
            AttentionOperand(q, length: queries), AttentionOperand(k, length: keys), AttentionOperand(v, length: keys), AttentionOperand(out, length: queries), shape,
            keyMask, firstKey, bias, logSums)
        guard shape.batch > 0, queries > 0 else { return }
        guard k.dtype == q.dtype else { throw PEFTError(.internal, "the derivative of attention over \(k.dtype.name) keys") }
        unsafe op.d_out = unsafe UnsafeRawPointer(dOut.pointer)
        unsafe (op.d_q, op.d_k, op.d_v) = unsafe (dQ.pointer, dK.pointer, dV.pointer)
        unsafe try runAttention(&op, shape, phases: 2) { op, phase, part, parts, shared, each in
            unsafe pk_attention_backward(op, phase, part, parts, shared, each)
        }
    }

    /// The derivative of `attention` by the values of `bias`, in its layout. Without softcap.
    package func attentionBiasGradient(
        q: Tensor, k: Tensor, v: Tensor, out: Tensor, shape: AttentionShape, keyMask: Tensor?, firstKey: Tensor?, bias: DistanceBias, logSums: Tensor, dOut: Tensor
    ) throws(PEFTError) -> Tensor {
        let (queries, keys) = (shape.queryLength, shape.keyLength)
        var op = unsafe try attentionOperation(
            AttentionOperand(q, length: queries), AttentionOperand(k, length: keys), AttentionOperand(v, length: keys), AttentionOperand(out, length: queries), shape,
            keyMask, firstKey, bias, logSums)
        unsafe op.d_out = unsafe UnsafeRawPointer(dOut.pointer)
        let gradient = try Tensor.zeros(self, bias.table.shape)
        let target = unsafe gradient.pointer.assumingMemoryBound(to: Float.self) + bias.zero
        parallel(max(1, min(pool.threadCount, shape.heads))) { part, parts in
            unsafe withUnsafePointer(to: op) { unsafe pk_attention_bias_gradient($0, target, part, parts) }
        }
        return gradient
    }

    /// Runs the phases of a kernel with its scratch; phases 2 is the backward pass.
    private func runAttention(
        _ op: inout pk_attention, _ shape: AttentionShape, phases: Int32,
        _ kernel: (
            _ op: UnsafePointer<pk_attention>, _ phase: Int32, _ part: Int32, _ parts: Int32, _ shared: UnsafeMutableRawPointer, _ each: UnsafeMutableRawPointer
        ) -> Void
    ) throws(PEFTError) {
        var (each, shared) = (0, 0)
        unsafe pk_attention_scratch(&op, phases - 1, &each, &shared)
        let mask = MemoryBudget.alignment - 1
        (each, shared) = ((each + mask) & ~mask, (shared + mask) & ~mask)
        let work = shape.batch * shape.heads * shape.queryLength * shape.keyLength * shape.headDim
        let parts = max(1, min(pool.threadCount, work / 32768))
        let scratch = try Storage(byteCount: shared + each * parts, budget: budget, category: .scratch)
        for phase in 0..<phases {
            parallel(parts) { part, parts in unsafe kernel(&op, phase, part, parts, scratch.base, scratch.base + shared + each * Int(part)) }
        }
    }

    private func attentionOperation(
        _ q: AttentionOperand, _ k: AttentionOperand, _ v: AttentionOperand, _ out: AttentionOperand, _ shape: AttentionShape, _ keyMask: Tensor?,
        _ firstKey: Tensor?, _ bias: DistanceBias?, _ logSums: Tensor?
    ) throws(PEFTError) -> pk_attention {
        let (dtype, kept) = (q.tensor.dtype, k.tensor.dtype)
        guard shape.keyValueHeads > 0, shape.heads % shape.keyValueHeads == 0, dtype == .f32 || dtype == .bf16,
            out.tensor.dtype == dtype, v.tensor.dtype == kept, kept == .f32 || kept == .bf16 || kept == .q8_0,
            [q, out].allSatisfy({ $0.fits(batch: shape.batch, length: shape.queryLength, heads: shape.heads, headDim: shape.headDim) }),
            [k, v].allSatisfy({ $0.fits(batch: shape.batch, length: shape.keyLength, heads: shape.keyValueHeads, headDim: shape.headDim) }),
            keyMask.map({ $0.byteCount == shape.batch * shape.keyLength && $0.dtype.blockBytes == 1 }) ?? true,
            firstKey.map({ $0.dtype == .i32 && $0.count == shape.batch * shape.queryLength }) ?? true, bias?.fits(shape) ?? true
        else {
            throw PEFTError(
                .internal,
                "attention: q \(q.tensor.shape), k \(k.tensor.shape), v \(v.tensor.shape), out \(out.tensor.shape), mask \(keyMask?.shape ?? []), first keys \(firstKey?.shape ?? []) for \(shape)"
            )
        }
        var op = unsafe pk_attention()
        unsafe (op.level, op.compute, op.act, op.kv) = (level, inPairs(.bf16), dtype.rawValue, kept.rawValue)
        unsafe (op.batch, op.q_len, op.k_len) = (Int64(shape.batch), Int64(shape.queryLength), Int64(shape.keyLength))
        unsafe (op.heads, op.kv_heads, op.head_dim) = (Int64(shape.heads), Int64(shape.keyValueHeads), Int64(shape.headDim))
        unsafe (op.q_token, op.q_batch) = (Int64(q.tokenStride), Int64(q.batchStride))
        unsafe (op.k_token, op.k_batch) = (Int64(k.tokenStride), Int64(k.batchStride))
        unsafe (op.v_token, op.v_batch) = (Int64(v.tokenStride), Int64(v.batchStride))
        unsafe (op.o_token, op.o_batch) = (Int64(out.tokenStride), Int64(out.batchStride))
        unsafe (op.q, op.k, op.v) = unsafe (UnsafeRawPointer(q.pointer), UnsafeRawPointer(k.pointer), UnsafeRawPointer(v.pointer))
        unsafe op.out = unsafe out.pointer
        unsafe op.lse = unsafe logSums.map { unsafe $0.pointer.assumingMemoryBound(to: Float.self) }
        unsafe (op.scale, op.softcap, op.causal) = (shape.scale, shape.softcap, shape.isCausal ? 1 : 0)
        unsafe (op.q_offset, op.window) = (Int64(shape.queryOffset), Int64(shape.window))
        unsafe op.key_mask = unsafe keyMask.map { unsafe UnsafePointer($0.pointer.assumingMemoryBound(to: UInt8.self)) }
        unsafe op.first_key = unsafe firstKey.map { unsafe UnsafePointer($0.pointer.assumingMemoryBound(to: Int32.self)) }
        if let bias {
            unsafe op.distance_bias = unsafe UnsafePointer(bias.table.pointer.assumingMemoryBound(to: Float.self)) + bias.zero
            unsafe op.bias_head = Int64(bias.table.columns)
        }
        return unsafe op
    }
}
