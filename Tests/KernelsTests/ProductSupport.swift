import Kernels
import Testing

/// One product with all its options, the memory it works in, and what the result must be.
struct Product {
    var mode = PK_NT
    var compute = PK_COMPUTE_F32
    var types: (x: Int32, w: Int32, y: Int32) = (PK_F32, PK_F32, PK_F32)
    let m, n, k: Int
    var alpha: Float = 1
    var hasBias = false
    var accumulates = false
    /// Values between rows of x and of y.
    var gap = 0

    var xValues, wValues: [Float]
    /// Activations are of very different sizes, and may be rounded to scales that are 63rds of the largest of 256 (matmul_gemv_k.c).
    var isUneven = false
    /// Instead of the blocks that `wValues` are encoded to.
    var wBytes: [UInt8]?
    let yValues, bias: [Float]

    init(_ m: Int, _ n: Int, _ k: Int, seed: UInt64 = 1) {
        (self.m, self.n, self.k) = (m, n, k)
        var random = Random(seed)
        xValues = random.values(m * k)
        wValues = random.values(n * k)
        yValues = random.values(m * n, scale: 2)
        bias = random.values(n)
    }

    private var xShape: (rows: Int, columns: Int) { mode == PK_TN ? (k, m) : (m, k) }
    private var w: Buffer {
        var blocks = Buffer(types.w, wValues)
        if let wBytes { blocks.bytes = wBytes }
        return blocks
    }
    private var wColumns: Int { mode == PK_NT ? k : n }
    var description: String {
        "\(["NT", "NN", "TN"][Int(mode)]) compute \(compute) \(name(types.x))·\(name(types.w))→\(name(types.y)) m \(m) n \(n) k \(k) alpha \(alpha) bias \(hasBias) accumulate \(accumulates) gap \(gap)"
    }

    /// Rows of a matrix with `gap` values (of 77) after each.
    private func padded(_ values: [Float], columns: Int) -> [Float] {
        guard gap > 0, columns > 0 else { return values }
        return stride(from: 0, to: values.count, by: columns).flatMap { values[$0..<$0 + columns] + [Float](repeating: 77, count: gap) }
    }

    private func unpadded(_ values: [Float], columns: Int) -> [Float] {
        guard gap > 0 else { return values }
        return stride(from: 0, to: values.count, by: columns + gap).flatMap { values[$0..<$0 + columns] }
    }

    /// The result's memory (gaps included) and values.
    func run(level: Int32, parts: Int32, branches: [(a: [Float], b: [Float], rank: Int, rows: Range<Int>, scale: Float)] = [], as type: Int32 = PK_F32, factors: [Float]? = nil) -> (bytes: [UInt8], values: [Float]) {
        let matrices = branches.map { (a: Buffer(type, $0.a), b: Buffer(type, $0.b)) }
        let outer = Buffer(PK_F32, factors ?? [])
        let x = Buffer(types.x, padded(xValues, columns: xShape.columns)), w = w
        var y = Buffer(types.y, padded(yValues, columns: n))
        x.bytes.withUnsafeBytes { x in
            w.bytes.withUnsafeBytes { w in
                y.bytes.withUnsafeMutableBytes { y in
                    bias.withUnsafeBufferPointer { bias in
                        var op = pk_matmul()
                        (op.x, op.w, op.y, op.bias) = (x.baseAddress, w.baseAddress, y.baseAddress, hasBias ? bias.baseAddress : nil)
                        // The factors' memory lives as long as `matrices` and `outer`.
                        let beside = zip(branches, matrices).enumerated().map { (index, pair) in
                            let (branch, factor) = pair
                            return pk_branch(
                                a: factor.a.bytes.withUnsafeBytes { $0.baseAddress },
                                b: factor.b.bytes.withUnsafeBytes { $0.baseAddress }, rank: Int64(branch.rank),
                                begin: Int64(branch.rows.lowerBound), end: Int64(branch.rows.upperBound), scale: branch.scale, type: type,
                                factors: index == 0 && factors != nil ? outer.bytes.withUnsafeBytes { $0.baseAddress?.assumingMemoryBound(to: Float.self) } : nil)
                        }
                        beside.withUnsafeBufferPointer {
                            (op.branches, op.branch_count) = ($0.baseAddress, Int64($0.count))
                            run(&op, level, parts)
                        }
                    }
                }
            }
        }
        withExtendedLifetime((matrices, outer)) {}
        return (y.bytes, unpadded(y.values, columns: n))
    }

    private func run(_ op: inout pk_matmul, _ level: Int32, _ parts: Int32) {
        (op.level, op.compute, op.mode) = (level, compute, mode)
        (op.x_type, op.w_type, op.y_type) = (types.x, types.w, types.y)
        (op.m, op.n, op.k) = (Int64(m), Int64(n), Int64(k))
        (op.ldx, op.ldy) = (Int64(xShape.columns + gap), Int64(n + gap))
        op.w_row_bytes = Int64(wColumns) / Int64(format(types.w).block_values) * Int64(format(types.w).block_bytes)
        (op.alpha, op.accumulate) = (alpha, accumulates ? 1 : 0)
        var (shared, each) = (0, 0)
        pk_matmul_scratch(&op, &shared, &each)
        withScratch(shared: shared, each: each, parts: parts) { common, own in
            for phase: Int32 in 0...1 where phase == 1 || shared > 0 {
                inParts(parts) { pk_matmul_run(&op, phase, $0, $1, common, own[Int($0)]) }
            }
        }
    }

    /// The sums in double over the operands as the kernel may see them, and how far rounding may lead from them:
    /// k + 4 roundings of f32, of bf16 when the result is, and of int8 activations.
    func expected() -> [(value: Double, bound: Double)] {
        func operand(_ seen: Buffer) -> [Double] {
            ((compute == PK_COMPUTE_BF16 || compute == PK_COMPUTE_ROUNDED) && seen.type != PK_BF16 ? Buffer(PK_BF16, seen.values) : seen).doubles
        }
        let x = operand(Buffer(types.x, xValues)), w = operand(w), old = Buffer(types.y, yValues).doubles
        // The few-row kernels do not round to bf16 though they may: the bound allows for both.
        let keepsF32 = compute == PK_COMPUTE_BF16 && mode == PK_NT && m <= 8
        let unrounded = keepsF32 ? (types.x == PK_F32 ? 0x1p-8 : 0) + (types.w == PK_BF16 ? 0 : 0x1p-8) : 0
        var result: [(Double, Double)] = []
        result.reserveCapacity(m * n)
        for i in 0..<m {
            var quantum = [Double](repeating: 0, count: k)  // half a step of int8, per value
            if compute == PK_COMPUTE_INT8 || compute == PK_COMPUTE_ROUNDED {
                let length = compute == PK_COMPUTE_INT8 ? 32 : 192
                for start in stride(from: 0, to: k, by: length) {
                    let block = start..<min(start + length, k)
                    var step = block.reduce(0) { max($0, abs(x[i * k + $1])) } / 127
                    if isUneven {
                        step += (start / 256 * 256..<start / 256 * 256 + 256).reduce(0) { max($0, abs(x[i * k + $1])) } / 127 / 63
                    }
                    for l in block { quantum[l] = 0.51 * step }
                }
            }
            for j in 0..<n {
                var (sum, size, quanta) = (0.0, 0.0, 0.0)
                let step = compute == PK_COMPUTE_ROUNDED ? (0..<k).reduce(0.0) { max($0, abs(w[j * k + $1])) } / 127 * 0.51 : 0
                for l in 0..<k {
                    let a = mode == PK_TN ? x[l * m + i] : x[i * k + l]
                    let b = mode == PK_NT ? w[j * k + l] : w[l * n + j]
                    sum += a * b
                    size += abs(a * b)
                    quanta += abs(b) * quantum[l] + step * (abs(a) + quantum[l])
                }
                let value = Double(alpha) * sum + (hasBias ? Double(bias[j]) : 0) + (accumulates ? old[i * n + j] : 0)
                let terms = abs(Double(alpha)) * size + (hasBias ? abs(Double(bias[j])) : 0) + (accumulates ? abs(old[i * n + j]) : 0)
                let bound = terms * (Double(k + 8) * 0x1p-23 + unrounded) + abs(Double(alpha)) * quanta + 1e-30
                result.append((value, bound + (types.y == PK_BF16 ? (abs(value) + bound) * 0x1p-8 : 0)))
            }
        }
        return result
    }

    /// Every level against the sums in double; every division of work against the undivided.
    func check(levels: [Int32] = levels, sourceLocation: SourceLocation = #_sourceLocation) {
        let expected = expected()
        for level in levels {
            let whole = run(level: level, parts: 1)
            var worst: (index: Int, ratio: Double) = (0, 0)
            for (index, (a, e)) in zip(whole.values, expected).enumerated() {
                let ratio = abs(Double(a) - e.value) / e.bound
                if !(ratio <= worst.ratio) { worst = (index, ratio) }
            }
            if !(worst.ratio <= 1) {
                let e = expected[worst.index]
                Issue.record("level \(level), \(description): value \(worst.index) is \(whole.values[worst.index]) instead of \(e.value) ± \(e.bound)", sourceLocation: sourceLocation)
            }
            checkGaps(whole.bytes, level, sourceLocation)
            for parts: Int32 in [2, 3, 7] {
                #expect(run(level: level, parts: parts).bytes == whole.bytes, "level \(level), \(description), \(parts) parts", sourceLocation: sourceLocation)
            }
        }
    }

    private func checkGaps(_ bytes: [UInt8], _ level: Int32, _ sourceLocation: SourceLocation) {
        guard gap > 0 else { return }
        let untouched = Buffer(types.y, [77]).bytes, size = untouched.count
        let intact = (0..<m).allSatisfy { row in
            (n..<n + gap).allSatisfy { column in
                let at = (row * (n + gap) + column) * size
                return Array(bytes[at..<at + size]) == untouched
            }
        }
        #expect(intact, "level \(level), \(description) wrote beyond its rows", sourceLocation: sourceLocation)
    }
}

let weightFormats = [PK_F32, PK_F16, PK_BF16, PK_Q4_0, PK_Q4_1, PK_Q5_0, PK_Q5_1, PK_Q8_0, PK_Q2_K, PK_Q3_K, PK_Q4_K, PK_Q5_K, PK_Q6_K, PK_IQ4_NL, PK_TQ1_0, PK_TQ2_0, PK_F8_E4M3, PK_F8_E5M2]
let plainFormats = [PK_F32, PK_F16, PK_BF16]
