package import Autograd
package import Platform
package import Tensors

/// What the encoder of an encoder-decoder reads.
package struct Source {
    package let input: ModelInput
    /// Tokens of a sample, or steps of a recording.
    package let length: Int
    /// u8 `[batch, length]`, 0 = padding; nil: none.
    package let keyMask: Tensor?

    package init(_ input: ModelInput, length: Int, keyMask: Tensor? = nil) {
        self.input = input
        self.length = length
        self.keyMask = keyMask
    }
}

extension Source {
    /// The same source of one sample behind virtual tokens.
    package func behind(_ prompt: (any VirtualTokens)?, task: Int? = nil, _ tape: Tape) throws(PEFTError) -> Source {
        guard let prompt else { return self }
        guard case .ids(let ids) = input, keyMask == nil else { throw PEFTError(.unsupported, "virtual tokens in front of a source that is not one text") }
        return Source(.prompted(ids, by: [try prompt.activations(task: task, tape)]), length: prompt.count + length)
    }
}

/// One forward pass over a model: the tape, who adapts what, and where the tokens stand.
///
/// Activations are `[batch·length, features]`, row `b·length + t`.
package final class ForwardContext {
    package internal(set) var tape: Tape
    package var routing: Routing { groups.map { .samples($0) } ?? .all(commonAdaptation ?? Adaptation(layerCount: 0)) }
    /// What applies to all rows alike; nil when samples differ. Stored as the next is, so that layers look at theirs without a copy
    /// of the whole.
    private(set) var commonAdaptation: Adaptation?
    /// Samples with adapters of their own; nil: all are alike.
    private(set) var groups: [(range: Range<Int>, adaptation: Adaptation)]?
    /// What the routing counts: samples, or (`Routing.byToken`) the tokens of all of them.
    private(set) var routed: Int
    package let batch: Int
    package let length: Int
    /// i32 `[batch·length]`: rotary positions.
    package let positions: Tensor
    /// One more than the largest of them.
    package let positionCount: Int
    /// The host gave the positions; else they are 0, 1, 2, … in each row.
    package let positionsAreGiven: Bool
    /// i32 `[batch·length]`: which of the texts of a pair a token belongs to; nil: the first.
    package let tokenTypes: Tensor?
    /// u8 `[batch, keyLength]`, 0 = padding; nil: none.
    package let keyMask: Tensor?
    /// i32 `[batch·length]`: first key each query may see (packed sequences); nil: 0.
    package let firstKey: Tensor?
    /// Of an encoder-decoder, for which everything else here is the decoder's; nil where the caches know it.
    package let source: Source?
    /// Keys and values in front of each sample's own; nil: none, or the caches hold them.
    let memory: LeadingKeys?
    /// Rows of padding in front of each sample (samples with fewer virtual tokens than others); nil: none.
    let padding: [Int]?
    /// Keys and values of earlier tokens, one cache per sample; empty outside generation.
    package internal(set) var caches: [KeyValueCache]
    /// So many blocks, from the first on, are computed again in the backward pass instead of keeping their activations.
    package internal(set) var recomputedBlocks: Int
    /// Which of the runs through the blocks this is, where it is not the block's own number (`BlockRun`).
    private(set) var runNumber: Int?
    /// What the network beside the blocks began with, and what its own loss weighs (`ShadowPath`).
    package internal(set) var shadowStart: (state: Variable, weight: Float)?
    /// Where a router's shares are left; nil: nobody asks.
    package var shares: RoutedShares?
    /// What adapters do holds variables of this tape (see `Tape.recomputed`).
    var learnsBeside = false

    package init(
        tape: Tape, routing: Routing, isByToken: Bool = false, batch: Int, length: Int, positions: Tensor, positionsAreGiven: Bool = false, tokenTypes: Tensor? = nil,
        keyMask: Tensor? = nil, firstKey: Tensor? = nil, source: Source? = nil, memory: LeadingKeys? = nil, padding: [Int]? = nil, caches: [KeyValueCache] = [],
        recomputedBlocks: Int = 0
    ) {
        (self.tape, self.batch, self.length) = (tape, batch, length)
        routed = isByToken ? batch * length : batch
        (self.positions, self.positionsAreGiven, self.tokenTypes) = (positions, positionsAreGiven, tokenTypes)
        positionCount = max(length, unsafe positions.withInt32s { unsafe Int($0.max() ?? 0) } + 1)
        (self.keyMask, self.firstKey, self.source, self.memory, self.padding) = (keyMask, firstKey, source, memory, padding)
        (self.caches, self.recomputedBlocks) = (caches, recomputedBlocks)
        learnsBeside = memory?.needsGradient ?? false
        route(routing)
    }

    /// What `fewRowChanges` found for so many rows.
    private var knownChanges: (rows: Int, changes: [(rows: Range<Int>, of: FewRowChanges)])?

    /// From now on these adapters act.
    func route(_ routing: Routing) {
        knownChanges = nil
        switch routing {
        case .all(let adaptation): (commonAdaptation, groups) = (adaptation, nil)
        case .samples(let samples): (commonAdaptation, groups) = (nil, samples)
        }
    }

    private init(_ other: ForwardContext) {
        (tape, commonAdaptation, groups, routed, batch, length) = (other.tape, other.commonAdaptation, other.groups, other.routed, other.batch, other.length)
        (positions, positionsAreGiven, tokenTypes, positionCount) = (other.positions, other.positionsAreGiven, other.tokenTypes, other.positionCount)
        (keyMask, firstKey, source, memory, padding) = (other.keyMask, other.firstKey, other.source, other.memory, other.padding)
        (caches, recomputedBlocks, runNumber, learnsBeside, shares) = (other.caches, other.recomputedBlocks, other.runNumber, other.learnsBeside, other.shares)
    }

    /// The same pass but for what `change` does.
    func with(_ change: (ForwardContext) throws(PEFTError) -> Void) throws(PEFTError) -> ForwardContext {
        let context = ForwardContext(self)
        try change(context)
        return context
    }

    /// The same pass on another tape (a recomputed block).
    package func on(_ tape: Tape) -> ForwardContext {
        let context = ForwardContext(self)
        (context.tape, context.recomputedBlocks) = (tape, 0)
        return context
    }

    /// The same pass for one run through a block.
    func run(_ number: Int, _ adaptation: Adaptation) -> ForwardContext {
        let context = ForwardContext(self)
        context.route(.all(adaptation))
        (context.routed, context.runNumber) = (batch, number)
        return context
    }
}

extension ForwardContext {
    /// Block `number` of a stack: `body` of `x` and of `others`, what all blocks read. Its activations are kept or, for the first
    /// `recomputedBlocks`, computed again in the backward pass.
    func block(
        _ number: Int, _ x: consuming Variable, _ others: [Variable] = [],
        _ body: @escaping (_ x: consuming Variable, _ others: [Variable], _ context: ForwardContext) throws(PEFTError) -> Variable
    ) throws(PEFTError) -> Variable {
        guard number < recomputedBlocks else { return try body(x, others, self) }
        return try tape.recomputed([x] + others, learnsBeside: learnsBeside) { (tape, inputs) throws(PEFTError) in
            try body(inputs[0], Array(inputs.dropFirst()), self.on(tape))
        }
    }
}

extension ForwardContext {
    /// The same pass over `length` tokens a sample, whose positions are not asked for (patches of pictures).
    func tokens(_ length: Int, keyMask: Tensor? = nil) -> ForwardContext {
        ForwardContext(tape: tape, routing: routing, batch: batch, length: length, positions: positions, keyMask: keyMask, recomputedBlocks: recomputedBlocks)
    }

    /// The pass of the encoder.
    func onSource(_ source: Source) -> ForwardContext { tokens(source.length, keyMask: source.keyMask) }
}

// MARK: Which adapters apply to which rows

extension ForwardContext {
    /// No adapter does anything at `layer`.
    package func isPlain(_ layer: any Layer) -> Bool { isCommon(at: layer) && common(at: layer) == nil }

    /// The groups of rows that have different adapters at `layer`; nil: all have the same there (a module that an adapter replaces whatever tokens it waits for).
    func differingGroups(at layer: any Layer) -> [(range: Range<Int>, adaptation: Adaptation)]? {
        guard let groups, let first = groups.first else { return nil }
        let common = first.adaptation[layer] ?? LayerAdaptation()
        return groups.allSatisfy { ($0.adaptation[layer] ?? LayerAdaptation()).isSame(as: common) } ? nil : groups
    }

    /// Any rows can go through `layer` together.
    package func isCommon(at layer: any Layer) -> Bool { differingGroups(at: layer) == nil }

    /// Some of the rows, whichever, can go through `layer` by themselves: all have the same there, and none of it reads other rows.
    package func takesAnyRows(_ layer: any Layer) -> Bool {
        isPlain(layer) || (isCommon(at: layer) && !routing.readsWholeText && !(common(at: layer)?.hooks.contains { $0.readsAllRows } ?? false))
    }

    /// What does something to all rows at a layer without differing groups.
    func common(at layer: any Layer) -> LayerAdaptation? { groups?.first?.adaptation[layer] ?? commonAdaptation?[layer] }

    /// Who does what to which of `count` rows, in their order; nil where rows are not those of samples.
    func fewRowChanges(rows count: Int) throws(PEFTError) -> [(rows: Range<Int>, of: FewRowChanges)]? {
        if let known = knownChanges, known.rows == count { return known.changes }
        var found: [(rows: Range<Int>, of: FewRowChanges)] = []
        if let commonAdaptation, commonAdaptation.actsAtLayers { found.append((0..<count, try commonAdaptation.fewRowChanges(tape))) }
        for group in groups ?? [] where group.adaptation.actsAtLayers {
            guard let rows = try? rows(of: group.range, in: count) else { return nil }
            found.append((rows, try group.adaptation.fewRowChanges(tape)))
        }
        knownChanges = (count, found)
        return found
    }

    /// The rows of some samples in a matrix of `count` rows, which has the same number of rows for each sample.
    func rows(of samples: Range<Int>, in count: Int) throws(PEFTError) -> Range<Int> {
        guard routed > 0, count % routed == 0, samples.lowerBound >= 0, samples.upperBound <= routed else {
            throw PEFTError(.internal, "\(count) rows of \(routed) samples or tokens, of which \(samples) are routed")
        }
        let each = count / routed
        return samples.lowerBound * each..<samples.upperBound * each
    }

    /// Rows of one text in a matrix of `count` rows, of which a group has `own`.
    func textRows(in count: Int, of own: Int) -> Int { routed == batch ? count / max(routed, 1) : own }

    /// The rows of each group of samples that have adapters of their own at `layer`; all `rows` when none has.
    func groups(at layer: any Layer, rows: Int) throws(PEFTError) -> [(rows: Range<Int>, adaptation: LayerAdaptation?)] {
        guard let groups = differingGroups(at: layer) else { return [(0..<rows, common(at: layer))] }
        return try groups.map { (group) throws(PEFTError) in (try self.rows(of: group.range, in: rows), group.adaptation[layer]) }
    }

    /// Calls `body` with the rows of each group of samples that have adapters of their own at `layer`, and joins the results.
    func applied(
        to x: Variable, _ layer: any Layer, _ body: (_ x: Variable, _ adaptation: LayerAdaptation?, _ tape: Tape) throws(PEFTError) -> Variable
    ) throws(PEFTError) -> Variable {
        guard let groups = differingGroups(at: layer) else { return try body(x, common(at: layer), tape) }
        var parts: [Variable] = []
        for group in groups { parts.append(try body(try tape.rows(x, try rows(of: group.range, in: x.value.rows)), group.adaptation[layer], tape)) }
        return try tape.concatenateRows(parts)
    }

    /// The same for token ids, i32 `[count]`.
    func applied(
        toIDs ids: Tensor, _ layer: any Layer, _ body: (_ ids: Tensor, _ adaptation: LayerAdaptation?, _ tape: Tape) throws(PEFTError) -> Variable
    ) throws(PEFTError) -> Variable {
        guard let groups = differingGroups(at: layer) else { return try body(ids, common(at: layer), tape) }
        let column = try ids.reshaped([ids.count, 1])
        var parts: [Variable] = []
        for group in groups {
            let range = try rows(of: group.range, in: ids.count)
            parts.append(try body(try column.rows(range).reshaped([range.count]), group.adaptation[layer], tape))
        }
        return try tape.concatenateRows(parts)
    }
}

extension LayerAdaptation? {
    /// The parameter that stands in for a tensor of the layer.
    func own(_ name: String, _ tape: Tape) -> Variable? { self?.replacements[name].map { tape.variable($0) } }
}
