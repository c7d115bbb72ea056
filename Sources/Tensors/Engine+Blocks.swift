internal import Kernels
package import Platform

/// Where the small matrices of a row of them lie in a tensor.
package struct Blocks: Sendable {
    /// Values from one matrix to the next, and from one row of a matrix to its next; nil: the rows of the whole tensor.
    let step: Int
    let row: Int?

    /// Beside each other: columns of a wide matrix.
    package init(columns: Int) { (step, row) = (columns, nil) }
    /// Below each other: `[n, rows, columns]`.
    package init(matrices rows: Int, _ columns: Int) { (step, row) = (rows * columns, columns) }
}

extension Engine {
    /// `count` products at once, of matrices that lie in three tensors as `Blocks` say: y_i = x_i∘w_i (+ y_i), f32 or bf16.
    /// - Parameter sizes: rows and columns of y_i, and what is summed over.
    package func multiplyBlocks(
        _ mode: ProductMode, _ count: Int, _ x: Tensor, _ xBlocks: Blocks, _ w: Tensor, _ wBlocks: Blocks, _ y: Tensor, _ yBlocks: Blocks,
        _ sizes: (m: Int, n: Int, k: Int), _ compute: Compute, accumulate: Bool = false
    ) throws(PEFTError) {
        let (m, n, k) = sizes
        guard x.count == count * m * k, w.count == count * n * k, y.count == count * m * n, [x, w, y].allSatisfy({ $0.dtype == .f32 || $0.dtype == .bf16 }) else {
            throw PEFTError(.internal, "\(count) products \(mode) of \(m) × \(n) over \(k): x \(x.shape), w \(w.shape), y \(y.shape)")
        }
        guard count > 0, m > 0, n > 0 else { return }
        var op = unsafe pk_matmul()
        unsafe (op.level, op.mode) = (level, mode.rawValue)
        unsafe op.compute = inPairs(compute == .int8 ? .bf16 : compute)
        unsafe (op.x_type, op.w_type, op.y_type) = (x.dtype.rawValue, w.dtype.rawValue, y.dtype.rawValue)
        unsafe (op.m, op.n, op.k) = (Int64(m), Int64(n), Int64(k))
        unsafe (op.ldx, op.ldy) = (Int64(xBlocks.row ?? x.columns), Int64(yBlocks.row ?? y.columns))
        unsafe op.w_row_bytes = Int64((wBlocks.row ?? w.columns) * w.dtype.blockBytes)
        unsafe op.alpha = 1
        unsafe op.accumulate = accumulate ? 1 : 0
        // The kind of kernel, and so the scratch, depends on the addresses' alignment in no way.
        unsafe (op.x, op.w, op.y) = unsafe (UnsafeRawPointer(x.pointer), UnsafeRawPointer(w.pointer), y.pointer)
        var (shared, each) = (0, 0)
        unsafe pk_matmul_scratch(&op, &shared, &each)
        func rounded(_ bytes: Int) -> Int { (bytes + MemoryBudget.alignment - 1) & ~(MemoryBudget.alignment - 1) }
        let parts = max(1, min(pool.threadCount, count, m * n * k * count / 65536))
        let (first, step) = (rounded(shared), rounded(shared) + rounded(each))
        let scratch = try Storage(byteCount: step * parts, budget: budget, category: .scratch)
        let (steps, sizes) = ((xBlocks.step, wBlocks.step, yBlocks.step), (x.dtype.blockBytes, w.dtype.blockBytes, y.dtype.blockBytes))
        parallel(parts) { part, parts in
            var own = unsafe op
            let base = unsafe scratch.base + step * Int(part)
            for index in Int(part) * count / Int(parts)..<(Int(part) + 1) * count / Int(parts) {
                unsafe own.x = UnsafeRawPointer(x.pointer + index * steps.0 * sizes.0)
                unsafe own.w = UnsafeRawPointer(w.pointer + index * steps.1 * sizes.1)
                unsafe own.y = y.pointer + index * steps.2 * sizes.2
                unsafe pk_matmul_run(&own, 0, 0, 1, base, base + first)
                unsafe pk_matmul_run(&own, 1, 0, 1, base, base + first)
            }
        }
    }
}
