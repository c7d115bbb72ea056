internal import Autograd
internal import Glibc
internal import Kernels
package import Platform
package import Tensors

/// How a cache keeps keys and values. Of q8_0 a head is a row of blocks of 32 values, the last filled up with zeros; attention reads
/// the blocks as they are.
package enum CacheFormat: String, Sendable, CaseIterable {
    case f32, bf16, q8_0

    var dtype: DType {
        switch self {
        case .f32: .f32
        case .bf16: .bf16
        case .q8_0: .q8_0
        }
    }
    var block: Int { dtype.blockValues }
    /// Of a head.
    func columns(_ headSize: Int) -> Int { (headSize + block - 1) / block * block }
}

/// The keys (already rotated) and values of one sequence, per layer; memory of category `.cache`, taken as the sequence
/// grows. One computation at a time.
package final class KeyValueCache {
    package let engine: Engine
    /// Most tokens it may hold.
    package let capacity: Int
    package let layerCount: Int
    package let headSize: Int
    package let headCount: Int
    /// How keys and values are kept.
    package let format: CacheFormat
    /// Of activations: what `append` takes.
    package let dtype: DType
    /// Tokens held.
    package private(set) var length = 0
    /// Where the rows end that were appended; those behind `length` do not count yet.
    private var written = 0
    /// Tokens there is memory for.
    private var allocated = 0
    /// `[allocated, format.columns]` each.
    private var keys: [Tensor] = []
    private var values: [Tensor] = []
    /// What another network makes of the same tokens: the base model, where an adapter's router asks for it, or an adapter's own.
    private var base: KeyValueCache?
    /// What layers made of the prompts beside their attention; kept until the sequence begins anew.
    private var gated: [Int: (owner: GatedPrompt, keys: Tensor, values: Tensor)] = [:]
    /// A memory it began with whose rows are weighed anew by each pass, as they are without that.
    var leading: (memory: any AttentionMemory, layers: [(keys: Tensor, values: Tensor)])?
    /// Of an encoder-decoder: keys and values of what the encoder read, per layer; never changed once they are there.
    private var sources: [Int: (keys: Tensor, values: Tensor)] = [:]

    /// - Throws: `.argument` for sizes that cannot be.
    package init(_ engine: Engine, layerCount: Int, capacity: Int, keyValueHeads: Int, headSize: Int, dtype: DType, format: CacheFormat? = nil) throws(PEFTError) {
        guard layerCount > 0, capacity > 0, keyValueHeads > 0, headSize > 0, capacity <= Int(Int32.max) else {
            throw PEFTError(.argument, "a cache of \(capacity) tokens × \(layerCount) layers × \(keyValueHeads) heads of \(headSize)")
        }
        self.engine = engine
        self.layerCount = layerCount
        self.capacity = capacity
        _ = try checkedProduct(keyValueHeads, headSize + CacheFormat.q8_0.block, of: "cache row")
        self.headSize = headSize
        self.headCount = keyValueHeads
        self.dtype = dtype
        self.format = format ?? (dtype == .bf16 ? .bf16 : .f32)
    }

    /// Key-value heads · head size: the columns of keys and of values.
    package var width: Int { headCount * headSize }  // Safe: checked when it was made.
    /// The same as they are kept.
    private var columns: Int { headCount * format.columns(headSize) }

    /// An empty one of the same kind.
    private func another(capacity: Int) throws(PEFTError) -> KeyValueCache {
        try KeyValueCache(engine, layerCount: layerCount, capacity: capacity, keyValueHeads: headCount, headSize: headSize, dtype: dtype, format: format)
    }

    /// Writes `k`, `v` `[n, width]` of `layer` behind the tokens held and returns all rows, old and new, as views. The new
    /// tokens count once `advance` was called: a forward pass that fails half way leaves the cache as it was.
    /// - Throws: `.contextFull` when they do not fit, `.memory`.
    package func append(_ k: Tensor, _ v: Tensor, layer: Int) throws(PEFTError) -> (keys: Tensor, values: Tensor) {
        let end = length + k.rows
        guard layer >= 0, layer < layerCount, k.columns == width, v.columns == width, v.rows == k.rows, k.dtype == dtype, v.dtype == dtype else {
            throw PEFTError(.internal, "cache layer \(layer): keys \(k.dtype.name) \(k.shape), values \(v.dtype.name) \(v.shape), width \(width)")
        }
        guard end <= capacity else {
            throw PEFTError(.contextFull, "\(end) tokens do not fit in a context of \(capacity)", detail: Int64(end - capacity))
        }
        try reserve(end)
        written = end
        write(k, into: keys[layer], at: length)
        write(v, into: values[layer], at: length)
        return (try keys[layer].rows(0..<end), try values[layer].rows(0..<end))
    }

    /// Weighs the rows of the memory in front for a pass over the rows `range` of `x`, what attention reads.
    func weighLeading(by x: Variable?, _ range: Range<Int>, layer: Int, _ tape: Tape) throws(PEFTError) {
        guard let leading, layer < leading.layers.count, layer < keys.count else { return }
        let rows = leading.layers[layer]
        let weighed = try leading.memory.weighed((Variable(rows.keys), Variable(rows.values)), of: x, range, layer: layer, tape)
        write(weighed.keys.value, into: keys[layer], at: 0)
        write(weighed.values.value, into: values[layer], at: 0)
    }

    /// The last `count` rows that every layer appended are valid from now on.
    package func advance(by count: Int) {
        length = min(length + max(count, 0), allocated)
        // Not where this pass did not ask for the base model's.
        if let base, base.written >= base.length + count { base.advance(by: count) }
    }

    /// What it holds of a layer, as views.
    package func rows(layer: Int) throws(PEFTError) -> (keys: Tensor, values: Tensor) {
        guard layer >= 0, layer < keys.count else { throw PEFTError(.internal, "layer \(layer) of a cache with \(keys.count)") }
        return (try keys[layer].rows(0..<length), try values[layer].rows(0..<length))
    }

    /// Forgets all tokens from `newLength` on (rollback), and what was appended behind them and is not counted.
    package func truncate(to newLength: Int) {
        length = max(0, min(length, newLength))
        written = length
        if length == 0 { (gated, leading) = ([:], nil) }
        base?.truncate(to: newLength)
    }

    /// The cache of another network that reads the same beside this one: nil: the base model itself.
    /// - Throws: `.state` where the tokens held were read without it.
    func companion(_ shape: CacheShape? = nil) throws(PEFTError) -> KeyValueCache {
        let (layers, size) = (shape?.layerCount ?? layerCount, shape?.headSize ?? headSize)
        let heads = shape?.keyValueHeads ?? headCount
        if let base, base.length == length, base.capacity >= capacity, base.layerCount == layers, base.width == heads * size { return base }
        guard length == 0 else {
            throw PEFTError(.state, "an adapter with a network of its own (X-LoRA, Shadow) begins with a conversation, and this one holds \(length) tokens that were read without it: start anew")
        }
        let made = try KeyValueCache(engine, layerCount: layers, capacity: capacity, keyValueHeads: heads, headSize: size, dtype: dtype, format: format)
        base = made
        return made
    }

    func beside(_ own: GatedPrompt, layer: Int) -> (keys: Tensor, values: Tensor)? {
        gated[layer].flatMap { $0.owner === own ? ($0.keys, $0.values) : nil }
    }

    func keep(_ keys: Tensor, _ values: Tensor, beside own: GatedPrompt, layer: Int) { gated[layer] = (own, keys, values) }

    /// An independent copy that may hold `capacity` tokens (fork, or growing a full context).
    package func copy(capacity: Int? = nil) throws(PEFTError) -> KeyValueCache {
        let copy = try another(capacity: max(capacity ?? self.capacity, length))
        try copy.reserve(length)
        for layer in 0..<(length > 0 ? layerCount : 0) {
            copyRows(keys[layer], 0..<length, into: copy.keys[layer], at: 0)
            copyRows(values[layer], 0..<length, into: copy.values[layer], at: 0)
        }
        copy.length = length
        (copy.sources, copy.leading) = (sources, leading)
        copy.base = try base?.copy(capacity: copy.capacity)
        return copy
    }

    /// Drops `count` tokens after the first `keep` and moves the rest up. Keys carry their position as a rotation, and
    /// rotations add up: each moved key is rotated back by `count` positions. Keys in blocks are rounded anew.
    package func shift(keeping keep: Int, dropping count: Int, rotary: RotaryTable) throws(PEFTError) {
        guard keep >= 0, count > 0, keep <= length, count <= length - keep else {
            throw PEFTError(.argument, "dropping \(count) tokens after the first \(keep) of a cache that holds \(length)")
        }
        let from = keep + count..<length
        let (cosines, sines) = try rotary.table(positions: count + 1)
        let positions = try Tensor(engine, [Int32](repeating: Int32(clamping: count), count: from.count), shape: [from.count], .scratch)
        let decoded = format == .q8_0 ? try Tensor(engine, [from.count, columns], .f32, .scratch) : nil
        for layer in 0..<layerCount {
            copyRows(keys[layer], from, into: keys[layer], at: keep)
            copyRows(values[layer], from, into: values[layer], at: keep)
            let rows = try keys[layer].rows(keep..<keep + from.count), moved = decoded ?? rows
            engine.parallel(engine.shares(moved.count)) { part, parts in
                if moved.dtype != rows.dtype {
                    unsafe pk_decode(
                        engine.level, rows.dtype.rawValue, rows.pointer, Int64(rows.rowBytes), Int64(rows.rows), Int64(columns),
                        moved.pointer.assumingMemoryBound(to: Float.self), part, parts)
                }
            }
            engine.parallel(engine.shares(moved.count)) { part, parts in
                unsafe pk_rope(
                    engine.level, moved.dtype.rawValue, moved.pointer, moved.pointer, cosines.pointer.assumingMemoryBound(to: Float.self),
                    sines.pointer.assumingMemoryBound(to: Float.self), positions.pointer.assumingMemoryBound(to: Int32.self), Int64(from.count),
                    Int64(headCount), Int64(columns / headCount), Int64(rotary.dimension), Int64(columns), Int64(columns), 0, 1, part, parts)
            }
            if decoded != nil { write(moved, into: keys[layer], at: keep) }
        }
        length -= count
        if let base, base.headSize != headSize { self.base = nil }
        if let base, base.length == length + count { try base.shift(keeping: keep, dropping: count, rotary: rotary) }
    }

    /// Bytes of the budget.
    package var byteCount: Int { (keys + values + sources.values.flatMap { [$0.keys, $0.values] }).reduce(0) { $0 + $1.byteCount } }

    // MARK: Sources

    package var hasSource: Bool { !sources.isEmpty }
    /// Columns of keys and values; nil: nothing was read.
    package func source(layer: Int) -> (keys: Tensor, values: Tensor)? { sources[layer] }
    package func forgetSource() { sources = [:] }

    package func setSource(_ k: Tensor, _ v: Tensor, layer: Int) throws(PEFTError) {
        guard k.columns == width, k.shape == v.shape, k.dtype == dtype, v.dtype == dtype else {
            throw PEFTError(.internal, "source of layer \(layer): keys \(k.dtype.name) \(k.shape), values \(v.dtype.name) \(v.shape), width \(width)")
        }
        let copies = (keys: try Tensor(engine, [k.rows, columns], format.dtype, .cache), values: try Tensor(engine, [v.rows, columns], format.dtype, .cache))
        write(k, into: copies.keys, at: 0)
        write(v, into: copies.values, at: 0)
        sources[layer] = copies
    }

    /// Makes room for `count` tokens, doubling so that growth costs little.
    private func reserve(_ count: Int) throws(PEFTError) {
        guard count > allocated else { return }
        let size = min(capacity, max(count, allocated * 2, 64))
        var grown: [[Tensor]] = [[], []]
        for (kind, present) in [keys, values].enumerated() {
            for layer in 0..<layerCount {
                let tensor = try Tensor(engine, [size, columns], format.dtype, .cache)
                if layer < present.count { copyRows(present[layer], 0..<allocated, into: tensor, at: 0) }
                grown[kind].append(tensor)
            }
        }
        (keys, values, allocated) = (grown[0], grown[1], size)
    }

    /// Writes f32 or bf16 rows, of `headSize` a head or as they are kept, in the format of `target`.
    private func write(_ source: Tensor, into target: Tensor, at row: Int) {
        guard source.storage.isReal, target.storage.isReal, row >= 0, row + source.rows <= target.rows, source.rows > 0 else { return }
        let to = unsafe target.pointer + row * target.rowBytes
        engine.parallel(engine.shares(source.count)) { part, parts in
            if target.dtype == .q8_0 {
                unsafe pk_cache_rows(
                    engine.level, source.dtype.rawValue, source.pointer, to, Int64(source.rows), Int64(headCount), Int64(source.columns / headCount), part, parts)
            } else {
                unsafe pk_convert(engine.level, source.pointer, source.dtype.rawValue, to, target.dtype.rawValue, source.count, part, parts)
            }
        }
    }

    /// Ranges may overlap.
    private func copyRows(_ source: Tensor, _ range: Range<Int>, into target: Tensor, at row: Int) {
        guard !range.isEmpty, source.storage.isReal, target.storage.isReal, range.upperBound <= source.rows, row + range.count <= target.rows else { return }
        unsafe memmove(target.pointer + row * target.rowBytes, source.pointer + range.lowerBound * source.rowBytes, range.count * target.rowBytes)
    }
}
