import Glibc
import Kernels
import Testing

/// One attention, what it must give by plain loops in double, and what the kernels give.
struct Attention {
    var batch = 1, queries = 1, keys = 1, heads = 1, keyValueHeads = 1, headDim = 8
    var type = PK_F32
    /// Of keys and values; nil: `type`.
    var cached: Int32?
    /// Of tensors of bf16, where the level has both.
    var compute = PK_COMPUTE_BF16
    var isCausal = true
    var window = 0
    var softcap: Float = 0
    /// Shares of keys hidden by the mask; nil: no mask.
    var masked: Float?
    /// Queries see from a random first key on (packed sequences).
    var isPacked = false
    /// A value per head and distance is added to the scores.
    var isBiased = false
    /// Values between tokens.
    var gap = 0
    var scale: Float = 0.3

    struct Result {
        var out, logSums, dQ, dK, dV: [Double]
    }

    var description: String {
        "\(name(type)), compute \(compute), over \(name(cached ?? type)) batch \(batch) queries \(queries) keys \(keys) heads \(heads)/\(keyValueHeads) × \(headDim) causal \(isCausal) window \(window) cap \(softcap) mask \(masked ?? 0) packed \(isPacked) biased \(isBiased)"
    }

    private var offset: Int { keys - queries }
    var qWidth: Int { heads * headDim }
    var kWidth: Int { keyValueHeads * headDim }

    /// Inputs, as the kernel sees them (rounded to its type), without gaps.
    struct Inputs {
        var q, k, v, dOut: [Float]
        var mask: [UInt8]?
        var firstKey: [Int32]?
        /// `[heads, keys + queries + offset + 64]`, distance 0 at column `keys`.
        var bias: [Float]?
    }

    func inputs() -> Inputs {
        var random = Random(UInt64(queries * 131 + keys * 7 + headDim))
        func tensor(_ count: Int) -> [Float] { Buffer(type, random.values(count, scale: 1.5)).values }
        func kept(_ count: Int) -> [Float] {
            let values = random.values(count, scale: 1.5)
            let stored = Buffer(cached ?? type, stored(values)).values
            return (0..<count).map { stored[$0 / headDim * storedHead + $0 % headDim] }
        }
        var inputs = Inputs(
            q: tensor(batch * queries * qWidth), k: kept(batch * keys * kWidth), v: kept(batch * keys * kWidth), dOut: tensor(batch * queries * qWidth))
        if let masked { inputs.mask = (0..<batch * keys).map { _ in (random.value() + 1) / 2 < masked ? 0 : 1 } }
        if isPacked {
            inputs.firstKey = (0..<batch * queries).map { index in Int32((index % queries + max(offset, 0)) / 50 * 50) }
        }
        if isBiased { inputs.bias = random.values(heads * biasWidth, scale: 2) }
        return inputs
    }

    /// Values of a head of k and v as they are kept: whole blocks.
    private var storedHead: Int { cached == PK_Q8_0 ? (headDim + 31) / 32 * 32 : headDim }
    private func stored(_ values: [Float]) -> [Float] {
        stride(from: 0, to: values.count, by: headDim).flatMap { values[$0..<$0 + headDim] + [Float](repeating: 0, count: storedHead - headDim) }
    }

    private var biasWidth: Int { keys + queries + offset + 64 }

    private func sees(_ inputs: Inputs, _ b: Int, _ t: Int, _ key: Int) -> Bool {
        let position = t + offset
        if isCausal && key > position { return false }
        if window > 0 && key <= position - window { return false }
        if let mask = inputs.mask, mask[b * keys + key] == 0 { return false }
        if let first = inputs.firstKey, key < Int(first[b * queries + t]) { return false }
        return true
    }

    /// P = softmax(cap·tanh(scale·q·k/cap)), out = P·v; dS = P∘(dOut·vᵀ − Σ P∘(dOut·vᵀ)), through the cap by 1 − (s/cap)².
    func expected(_ inputs: Inputs) -> Result {
        var r = Result(
            out: Array(repeating: 0, count: inputs.q.count), logSums: Array(repeating: -.infinity, count: batch * heads * queries),
            dQ: Array(repeating: 0, count: inputs.q.count), dK: Array(repeating: 0, count: inputs.k.count), dV: Array(repeating: 0, count: inputs.v.count))
        let q = inputs.q.map(Double.init), k = inputs.k.map(Double.init), v = inputs.v.map(Double.init), dOut = inputs.dOut.map(Double.init)
        let scale = Double(scale), cap = Double(softcap)
        for b in 0..<batch {
            for h in 0..<heads {
                let kvHead = h / (heads / keyValueHeads)
                for t in 0..<queries {
                    let visible = (0..<keys).filter { sees(inputs, b, t, $0) }
                    guard !visible.isEmpty else { continue }
                    let qAt = (b * queries + t) * qWidth + h * headDim
                    func kAt(_ key: Int) -> Int { (b * keys + key) * kWidth + kvHead * headDim }
                    func dot(_ x: [Double], _ at: Int, _ y: [Double], _ other: Int) -> Double {
                        var sum = 0.0
                        for d in 0..<headDim { sum += x[at + d] * y[other + d] }
                        return sum
                    }
                    var scores = visible.map { scale * dot(q, qAt, k, kAt($0)) }
                    if cap != 0 { scores = scores.map { cap * tanh($0 / cap) } }
                    if let bias = inputs.bias { scores = zip(scores, visible).map { $0 + Double(bias[h * biasWidth + keys + t + offset - $1]) } }
                    let top = scores.max() ?? 0
                    let sum = scores.reduce(0) { $0 + exp($1 - top) }
                    r.logSums[(b * heads + h) * queries + t] = top + log(sum)
                    let p = scores.map { exp($0 - top) / sum }
                    let dP = visible.map { dot(dOut, qAt, v, kAt($0)) }
                    let mean = zip(p, dP).reduce(0) { $0 + $1.0 * $1.1 }
                    for (i, key) in visible.enumerated() {
                        let at = kAt(key)
                        var dS = p[i] * (dP[i] - mean) * scale
                        if cap != 0 {
                            let s = scores[i] - (inputs.bias.map { Double($0[h * biasWidth + keys + t + offset - key]) } ?? 0)
                            dS *= 1 - (s / cap) * (s / cap)
                        }
                        for d in 0..<headDim {
                            r.out[qAt + d] += p[i] * v[at + d]
                            r.dV[at + d] += p[i] * dOut[qAt + d]
                            r.dQ[qAt + d] += dS * k[at + d]
                            r.dK[at + d] += dS * q[qAt + d]
                        }
                    }
                }
            }
        }
        return r
    }

    /// Bits and values from the kernels.
    func run(_ inputs: Inputs, level: Int32, parts: Int32, backward: Bool = true) -> (bytes: [[UInt8]], result: Result) {
        func padded(_ values: [Float], _ width: Int) -> Buffer {
            Buffer(type, gap == 0 ? values : stride(from: 0, to: values.count, by: width).flatMap { values[$0..<$0 + width] + [Float](repeating: 55, count: gap) })
        }
        func unpadded(_ buffer: Buffer, _ width: Int) -> [Double] {
            let values = buffer.doubles
            return gap == 0 ? values : stride(from: 0, to: values.count, by: width + gap).flatMap { values[$0..<$0 + width] }
        }
        var memory: [UnsafeMutableRawBufferPointer] = []
        defer { for piece in memory { piece.deallocate() } }
        /// The bytes in an allocation of exactly their size, which lives until this function returns.
        func place(_ bytes: [UInt8]) -> UnsafeMutableRawPointer? {
            memory.append(.allocate(byteCount: bytes.count, alignment: 16))
            memory[memory.count - 1].copyBytes(from: bytes)
            return memory.last?.baseAddress
        }
        func placed<T: BitwiseCopyable>(_ values: [T]) -> UnsafePointer<T>? {
            values.withUnsafeBytes { UnsafePointer(place(Array($0))?.assumingMemoryBound(to: T.self)) }
        }
        func output(_ index: Int, _ like: Buffer) -> Buffer {
            var buffer = like
            buffer.bytes = Array(memory[index])
            return buffer
        }

        var op = pk_attention()
        (op.level, op.compute, op.act, op.kv) = (level, compute, type, cached ?? type)
        (op.batch, op.q_len, op.k_len) = (Int64(batch), Int64(queries), Int64(keys))
        (op.heads, op.kv_heads, op.head_dim) = (Int64(heads), Int64(keyValueHeads), Int64(headDim))
        let (qToken, kToken) = (Int64(qWidth + gap), Int64(keyValueHeads * storedHead + (cached == nil ? gap : 0)))
        (op.q_token, op.q_batch, op.o_token, op.o_batch) = (qToken, qToken * Int64(queries), qToken, qToken * Int64(queries))
        (op.k_token, op.k_batch, op.v_token, op.v_batch) = (kToken, kToken * Int64(keys), kToken, kToken * Int64(keys))
        (op.scale, op.softcap, op.causal) = (scale, softcap, isCausal ? 1 : 0)
        (op.q_offset, op.window) = (Int64(offset), Int64(window))

        let noQ = padded([Float](repeating: 99, count: inputs.q.count), qWidth), noK = padded([Float](repeating: 99, count: inputs.k.count), kWidth)
        let noSums = Buffer(PK_F32, [Float](repeating: 99, count: batch * heads * queries))
        (op.out, op.d_q, op.d_k, op.d_v) = (place(noQ.bytes), place(noQ.bytes), place(noK.bytes), place(noK.bytes))
        op.lse = place(noSums.bytes)?.floats
        op.q = UnsafeRawPointer(place(padded(inputs.q, qWidth).bytes))
        if let cached {
            op.k = UnsafeRawPointer(place(Buffer(cached, stored(inputs.k)).bytes))
            op.v = UnsafeRawPointer(place(Buffer(cached, stored(inputs.v)).bytes))
        } else {
            op.k = UnsafeRawPointer(place(padded(inputs.k, kWidth).bytes))
            op.v = UnsafeRawPointer(place(padded(inputs.v, kWidth).bytes))
        }
        op.d_out = UnsafeRawPointer(place(padded(inputs.dOut, qWidth).bytes))
        if let mask = inputs.mask { op.key_mask = placed(mask) }
        if let first = inputs.firstKey { op.first_key = placed(first) }
        if let bias = inputs.bias { (op.distance_bias, op.bias_head) = (placed(bias).map { $0 + keys }, Int64(biasWidth)) }

        for phases: Int32 in backward ? [1, 2] : [1] {
            var (each, shared) = (0, 0)
            pk_attention_scratch(&op, phases - 1, &each, &shared)
            withScratch(shared: shared, each: each, parts: parts) { common, own in
                for phase in 0..<phases {
                    inParts(parts) { part, parts in
                        if phases == 1 {
                            pk_attention_forward(&op, part, parts, own[Int(part)])
                        } else {
                            pk_attention_backward(&op, phase, part, parts, common, own[Int(part)])
                        }
                    }
                }
            }
        }
        let out = output(0, noQ), dQ = output(1, noQ), dK = output(2, noK), dV = output(3, noK), logSums = output(4, noSums)
        let results = backward ? [out, logSums, dQ, dK, dV] : [out, logSums]
        return (
            results.map(\.bytes),
            Result(out: unpadded(out, qWidth), logSums: logSums.doubles, dQ: unpadded(dQ, qWidth), dK: unpadded(dK, kWidth), dV: unpadded(dV, kWidth))
        )
    }

    /// Every level against the loops, any number of parts against one. Probabilities and gradients of scores are rounded to
    /// bf16 on the way in bf16 attention: errors are of the size of the largest result, not of each.
    /// f32's errors grow with the size of the scores (`tolerance`).
    func check(tolerance: Double = 4e-6, sourceLocation: SourceLocation = #_sourceLocation) {
        for compute in type == PK_BF16 && levels.contains(PK_LEVEL_AVX512_BF16) ? [PK_COMPUTE_BF16, PK_COMPUTE_F32] : [PK_COMPUTE_F32] {
            var own = self
            own.compute = compute
            own.checkLevels(tolerance: tolerance, sourceLocation: sourceLocation)
        }
    }

    private func checkLevels(tolerance: Double, sourceLocation: SourceLocation) {
        let inputs = inputs(), expected = expected(inputs)
        for level in levels {
            let whole = run(inputs, level: level, parts: 1, backward: cached == nil)
            let all: [(String, [Double], [Double])] = [
                ("out", whole.result.out, expected.out), ("dQ", whole.result.dQ, expected.dQ), ("dK", whole.result.dK, expected.dK), ("dV", whole.result.dV, expected.dV),
            ]
            for (what, actual, expected) in all.prefix(cached == nil ? 4 : 1) {
                let largest = expected.reduce(1) { max($0, abs($1)) }
                expectClose(
                    actual.map(Float.init), expected, type, relative: 1e-5, absolute: (type == PK_BF16 ? 0.012 : tolerance) * largest, "level \(level), \(description), \(what)",
                    sourceLocation: sourceLocation)
            }
            // Where pairs of bf16 are multiplied, keys of another type are rounded on the way.
            let isRounded = type == PK_BF16 && (cached ?? type) != type
            expectClose(
                whole.result.logSums.map(Float.init), expected.logSums, relative: 1e-5, absolute: isRounded ? 0.012 : 1e-5, "level \(level), \(description), log sums", sourceLocation: sourceLocation)
            for parts: Int32 in [2, 3, 7] {
                #expect(run(inputs, level: level, parts: parts, backward: cached == nil).bytes == whole.bytes, "level \(level), \(description), \(parts) parts", sourceLocation: sourceLocation)
            }
        }
    }
}
