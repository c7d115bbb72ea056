internal import Kernels
package import Platform

/// Arithmetic of a product: what its operands may be rounded to. Sums are always f32.
package enum Compute: Int32, Sendable {
    case f32 = 0
    /// f32 where the processor is faster at that (`Engine.multipliesPairs`).
    case bf16 = 1
    /// Forward products with quantised weights, of many rows where there is a kernel for it: activations rounded to int8 per 32 values. All others: bf16.
    case int8 = 2
    /// Forward products alone: activations and weights rounded to int8 (matmul_rounded.c).
    case rounded = 3
}

/// One of several forward products of the same few rows: `y = x·Wᵀ (+ bias)`, and what adapters add.
package struct FewRowProduct {
    package let weight: Tensor
    package let bias: Tensor?
    /// `Layer.index`
    package let layer: Int
    /// Who adds what there to which rows.
    package let branches: [(rows: Range<Int>, of: FewRowChanges)]

    package init(weight: Tensor, bias: Tensor?, layer: Int = 0, branches: [(rows: Range<Int>, of: FewRowChanges)] = []) {
        self.weight = weight
        self.bias = bias
        self.layer = layer
        self.branches = branches
    }
}

extension Tensor {
    /// Forward products with it are those of LLM.int8 (sums of wider rows might not fit 32 bits).
    package var roundsActivations: Bool { dtype == .int8 && scaling.outlierThreshold > 0 && columns <= 1 << 17 }
}

extension Engine {
    /// What kernels are told of an arithmetic whose operands may be rounded to bf16: f32's where that is faster.
    func inPairs(_ compute: Compute) -> Int32 { (compute == .bf16 && !multipliesPairs ? Compute.f32 : compute).rawValue }

    /// The processor multiplies numbers of eight bits faster than those of bf16.
    package var hasRoundedProducts: Bool { level >= PK_LEVEL_AVX512_BF16 }

    /// Whether the forward product of activations with weights that stay as they are gains from `Compute.rounded`: weights in f32 are not rounded, and AMX is
    /// faster in bf16.
    package func gainsByRounding(_ x: Tensor, _ w: Tensor) -> Bool {
        level < PK_LEVEL_AMX && w.dtype != .f32 && !w.roundsActivations && x.rows >= 32 && w.rows >= 48 && w.columns >= 64
    }

    /// Whether forward products of so many rows take branches with them, and each other.
    package func joinsProducts(rows: Int) -> Bool {
        var op = unsafe pk_matmul()
        unsafe (op.level, op.mode, op.m, op.k) = (level, ProductMode.forward.rawValue, Int64(rows), 1)
        return unsafe pk_matmul_joins(&op) != 0
    }

    /// The three products of a linear layer (kernels.h, PK_NT / PK_NN / PK_TN).
    package enum ProductMode: Int32, Sendable {
        /// Y[m,n] = X[m,k]·W[n,k]ᵀ
        case forward = 0
        /// Y[m,n] = X[m,k]·W[k,n]
        case inputGradient = 1
        /// Y[m,n] = X[k,m]ᵀ·W[k,n]
        case weightGradient = 2
    }

    /// Above this many rows the bf16 product is faster than dot products of int8 blocks, but for formats with a kernel for both.
    private static let int8Rows = 8

    /// `y = alpha · x∘w (+ bias) (+ y)`. Leading dimensions fold into rows; `x`, `y` are f32 or bf16, `w` any weight format.
    ///
    /// - Parameters:
    ///   - bias: f32 `[n]`.
    ///   - accumulate: adds to what `y` holds.
    /// - Throws: `.internal` when shapes do not fit (a defect, not an input error), `.memory` for the scratch.
    package func multiply(
        _ mode: ProductMode, _ x: Tensor, _ w: Tensor, into y: Tensor, compute: Compute, alpha: Float = 1, bias: Tensor? = nil, accumulate: Bool = false
    ) throws(PEFTError) {
        guard let op = unsafe try operation(mode, x, w, into: y, compute: compute, alpha: alpha, bias: bias, accumulate: accumulate) else { return }
        if mode == .forward, w.roundsActivations { return try unsafe run(op, threshold: w.scaling.outlierThreshold) }
        try unsafe run([op])
    }

    /// Several forward products of one `x`, into `ys`, in one hand-over to the threads; `joinsProducts` holds.
    package func multiply(_ x: Tensor, _ products: [FewRowProduct], into ys: [Tensor], compute: Compute) throws(PEFTError) {
        var ops: [pk_matmul] = unsafe []
        var branches: [pk_branch] = unsafe []
        for (product, y) in zip(products, ys) {
            guard var op = unsafe try operation(.forward, x, product.weight, into: y, compute: compute, bias: product.bias) else { continue }
            let first = unsafe branches.count
            for (rows, group) in product.branches {
                for entry in group.entries(at: product.layer) {
                    guard joinsProducts(rows: x.rows), entry.inputSize == x.columns, entry.outputSize == y.columns, rows.lowerBound >= 0, rows.upperBound <= x.rows else {
                        throw PEFTError(
                            .internal, "a branch of \(entry.inputSize) inputs, \(entry.outputSize) outputs for rows \(rows) of a product \(x.shape) by \(product.weight.shape)")
                    }
                    var branch = unsafe entry.branch
                    unsafe (branch.begin, branch.end) = (Int64(rows.lowerBound), Int64(rows.upperBound))
                    unsafe branches.append(branch)
                }
            }
            unsafe op.branch_count = Int64(branches.count - first)
            unsafe ops.append(op)
        }
        try unsafe branches.withUnsafeBufferPointer { (branches) throws(PEFTError) in
            var first = 0
            for index in unsafe ops.indices {
                unsafe ops[index].branches = branches.baseAddress.map { unsafe $0 + first }
                first += Int(unsafe ops[index].branch_count)
            }
            try unsafe run(ops)
        }
    }

    /// What the kernels are told; nil: there is nothing to do.
    private func operation(
        _ mode: ProductMode, _ x: Tensor, _ w: Tensor, into y: Tensor, compute: Compute, alpha: Float = 1, bias: Tensor? = nil, accumulate: Bool = false
    ) throws(PEFTError) -> pk_matmul? {
        let (m, k) = mode == .weightGradient ? (x.columns, x.rows) : (x.rows, x.columns)
        let (n, wk) = mode == .forward ? (w.rows, w.columns) : (w.columns, w.rows)
        guard wk == k, y.rows == m, y.columns == n, bias.map({ $0.count == n && $0.dtype == .f32 }) ?? true, w.dtype.isWeightFormat,
            x.dtype == .f32 || x.dtype == .bf16, y.dtype == .f32 || y.dtype == .bf16
        else {
            throw PEFTError(.internal, "product \(mode): \(x.dtype.name) \(x.shape) by \(w.dtype.name) \(w.shape) into \(y.dtype.name) \(y.shape)")
        }
        guard m > 0, n > 0 else { return nil }
        var op = unsafe pk_matmul()
        unsafe op.level = level
        let isInt8 = compute == .int8 && mode == .forward && w.dtype.isQuantized && (m <= Engine.int8Rows || pk_matmul_int8_serves_many(level, w.dtype.rawValue) != 0)
        unsafe op.compute = inPairs(compute == .int8 && !isInt8 ? .bf16 : compute)
        unsafe op.mode = mode.rawValue
        unsafe (op.x_type, op.w_type, op.y_type) = (x.dtype.rawValue, w.dtype.rawValue, y.dtype.rawValue)
        unsafe (op.m, op.n, op.k) = (Int64(m), Int64(n), Int64(k))
        unsafe (op.ldx, op.ldy) = (Int64(x.columns), Int64(n))
        unsafe op.w_row_bytes = Int64(w.rowBytes)
        unsafe (op.x, op.w, op.y) = unsafe (UnsafeRawPointer(x.pointer), UnsafeRawPointer(w.pointer), y.pointer)
        unsafe op.bias = unsafe bias.map { unsafe UnsafePointer($0.pointer.assumingMemoryBound(to: Float.self)) }
        unsafe op.alpha = alpha
        unsafe op.accumulate = accumulate ? 1 : 0
        return unsafe op
    }

    /// The product of int8 rows beside outlier columns.
    private func run(_ op: pk_matmul, threshold: Float) throws(PEFTError) {
        var (shared, each, op) = unsafe (0, 0, op)
        unsafe pk_matmul_int8_scratch(&op, &shared, &each)
        let parts = Int(unsafe pk_matmul_parts(&op, Int32(pool.threadCount)))
        let step = (each + MemoryBudget.alignment - 1) & ~(MemoryBudget.alignment - 1)
        let scratch = try Storage(byteCount: ((shared + 63) & ~63) + step * parts, budget: budget, category: .scratch)
        let own = unsafe scratch.base + ((shared + 63) & ~63)
        for phase: Int32 in 0...2 {
            parallel(parts) { part, parts in unsafe pk_matmul_int8_run(&op, threshold, phase, part, parts, scratch.base, own + step * Int(part)) }
        }
    }

    /// One after the other in each part; only a single one may have a phase 0.
    private func run(_ ops: [pk_matmul]) throws(PEFTError) {
        var (shared, each, parts) = (0, 0, 1)
        for unsafe op in unsafe ops {
            var (itsShared, itsEach, op) = unsafe (0, 0, op)
            unsafe pk_matmul_scratch(&op, &itsShared, &itsEach)
            (shared, each) = (max(shared, itsShared), max(each, itsEach))
            parts = max(parts, Int(unsafe pk_matmul_parts(&op, Int32(pool.threadCount))))
        }
        let count = unsafe ops.count
        guard shared == 0 || count == 1 else { throw PEFTError(.internal, "\(count) products at once of too many rows") }
        let step = (each + MemoryBudget.alignment - 1) & ~(MemoryBudget.alignment - 1)
        let scratch = try Storage(byteCount: ((shared + 63) & ~63) + step * parts, budget: budget, category: .scratch)
        let own = unsafe scratch.base + ((shared + 63) & ~63)
        var ops = unsafe ops
        unsafe ops.withUnsafeMutableBufferPointer { ops in
            for index in 1..<max(count, 1) { unsafe ops[index - 1].next = UnsafePointer(ops.baseAddress.map { unsafe $0 + index }) }
            for phase: Int32 in 0...1 where phase == 1 || shared > 0 {
                parallel(parts) { part, parts in
                    for index in 0..<count {
                        unsafe pk_matmul_run(UnsafePointer(ops.baseAddress.map { unsafe $0 + index }), phase, part, parts, scratch.base, own + step * Int(part))
                    }
                }
            }
        }
    }
}
