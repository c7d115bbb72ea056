package import Autograd
package import Platform
package import Tensors

/// Learned keys and values that attention sees in front of a sequence's own (prefix tuning, cartridges). They take places like tokens,
/// so the first token stands behind them, and are in the form a cache has: nothing turns or projects them.
package protocol AttentionMemory: AnyObject, Sendable {
    var count: Int { get }
    /// What attention reads weighs the keys and values.
    var isGated: Bool { get }
    /// f32 `[texts, 1]` on keys and values alike, or `[texts, 2]` on each.
    /// - Parameter x: what the layer's attention reads, of texts of `length` rows each.
    /// - Returns: nil: nothing weighs them.
    func gate(layer: Int, _ x: Variable, length: Int, _ tape: Tape) throws(PEFTError) -> Variable?
    /// Keys and values `[count, keyValueHeads · headSize]` of each layer, in the type of activations.
    func layers(_ tape: Tape) throws(PEFTError) -> [(keys: Variable, values: Variable)]
    /// The same values for a cache, ready: computed once as long as nothing is written to the model. The caller holds the read lock.
    func snapshot(_ model: Model) throws(PEFTError) -> [(keys: Tensor, values: Tensor)]
}

/// The memories of a batch in one pass: in front of each sample's keys and values stand as many rows as the longest has; what a
/// shorter one leaves free is hidden by the mask.
package struct LeadingKeys {
    /// Rows in front of each sample.
    package let count: Int
    /// Of each sample's memory; 0: it has none.
    package let counts: [Int]
    /// u8 `[batch, count + length]`; nil: all is seen.
    package let keyMask: Tensor?
    private let samples: [[(keys: Variable, values: Variable)]?]
    private let memories: [(any AttentionMemory)?]

    package var needsGradient: Bool { samples.contains { $0?.contains { $0.keys.needsGradient } ?? false } }

    /// - Parameters:
    ///   - memories: one for each sample.
    ///   - keyMask: of the rows themselves, `[batch, length]`.
    /// - Returns: nil where no sample has one.
    package init?(_ memories: [(any AttentionMemory)?], length: Int, keyMask: [UInt8]?, _ tape: Tape) throws(PEFTError) {
        counts = memories.map { $0?.count ?? 0 }
        let count = counts.max() ?? 0
        guard count > 0 else { return nil }
        (self.count, self.memories) = (count, memories)
        var made: [ObjectIdentifier: [(keys: Variable, values: Variable)]] = [:]
        samples = try memories.map { (memory) throws(PEFTError) in
            guard let memory else { return nil }
            if let known = made[ObjectIdentifier(memory)] { return known }
            let layers = try memory.layers(tape)
            made[ObjectIdentifier(memory)] = layers
            return layers
        }
        guard keyMask != nil || counts.contains(where: { $0 < count }) else {
            self.keyMask = nil
            return
        }
        var mask: [UInt8] = []
        for (sample, own) in counts.enumerated() {
            mask += Array(repeating: 0, count: count - own) + Array(repeating: 1, count: own)
            mask += keyMask.map { Array($0[sample * length..<(sample + 1) * length]) } ?? Array(repeating: 1, count: length)
        }
        self.keyMask = try Tensor(tape.engine, bytes: mask, shape: [counts.count, count + length])
    }

    /// `k` and `v` `[batch·length, …]` with the memories in front of each sample.
    /// - Parameter x: what attention reads.
    func before(_ k: Variable, _ v: Variable, of x: Variable?, layer: Int, _ context: ForwardContext) throws(PEFTError) -> (Variable, Variable) {
        let tape = context.tape
        var (keys, values): ([Variable], [Variable]) = ([], [])
        let padding = try counts.min().map { (least) throws(PEFTError) in Variable(try Tensor.zeros(tape.engine, [count - least, k.value.columns], k.value.dtype)) }
        for (sample, own) in counts.enumerated() {
            let range = sample * context.length..<(sample + 1) * context.length
            if own < count, let padding {
                let rows = try tape.rows(padding, 0..<count - own)
                (keys, values) = (keys + [rows], values + [rows])
            }
            if let layers = samples[sample] {
                guard layer < layers.count else { throw PEFTError(.internal, "layer \(layer) of a memory of \(layers.count)") }
                let weighed = try memories[sample]?.weighed(layers[layer], of: x, range, layer: layer, tape) ?? layers[layer]
                keys.append(weighed.keys)
                values.append(weighed.values)
            }
            keys.append(try tape.rows(k, range))
            values.append(try tape.rows(v, range))
        }
        return (try tape.concatenateRows(keys), try tape.concatenateRows(values))
    }
}

extension AttentionMemory {
    /// Its rows as one text sees them, the rows `range` of `x`.
    func weighed(_ rows: (keys: Variable, values: Variable), of x: Variable?, _ range: Range<Int>, layer: Int, _ tape: Tape) throws(PEFTError) -> (keys: Variable, values: Variable) {
        guard isGated else { return rows }
        guard let x, let gate = try gate(layer: layer, try tape.rows(x, range), length: range.count, tape) else { throw PEFTError(.unsupported, "use_gating of a prefix for this kind of attention") }
        let gates = try tape.splitColumns(gate, Array(repeating: 1, count: gate.value.columns))
        func times(_ y: Variable, _ gate: Variable) throws(PEFTError) -> Variable {
            try tape.scaleRows(y, try tape.reshaped(try tape.gatherRows(gate, Array(repeating: 0, count: y.value.rows)), [y.value.rows]))
        }
        return (try times(rows.keys, gates[0]), try times(rows.values, gates[gates.count - 1]))
    }
}

extension KeyValueCache {
    /// Begins with a memory: copies it in front of everything. The cache is empty.
    /// - Parameter gated: whose rows each pass weighs anew.
    func begin(with layers: [(keys: Tensor, values: Tensor)], gated: (any AttentionMemory)? = nil) throws(PEFTError) {
        guard layers.count == layerCount else {
            throw PEFTError(.unsupported, "a prefix of \(layers.count) layers where \(layerCount) run")
        }
        for (layer, rows) in layers.enumerated() { _ = try append(rows.keys, rows.values, layer: layer) }
        advance(by: layers.first?.keys.rows ?? 0)
        leading = gated.map { ($0, layers) }
    }
}
