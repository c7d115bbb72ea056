package import Autograd
package import Platform
package import Tensors

/// What an adapter does around one frozen operation `y = f(x)`:
///
///     y = output( f( input(x) ) + add(x) )
///
/// With several adapters each wraps what those before it made of the operation, `f` standing for that: the last one sees the
/// input first and the output last. It is what merging them one after the other gives.
///
/// A method implements the hooks it needs with differentiable operations; the rest leave things as they are. Hooks may
/// run for several computations at the same time: they hold parameters and settings, never the state of a computation.
package protocol LayerHook: AnyObject, Sendable {
    /// The tokens it waits for: it acts from the last place on where they stand in a text; nil: always.
    var invocation: [Int32]? { get }
    /// What it does to a row depends on all rows of the batch.
    var readsAllRows: Bool { get }
    /// What it does to samples of a task, where it knows tasks (`Adaptation.taskCount`).
    func of(task: Int) -> any LayerHook
    /// Changes the input of a linear layer (OFT, BOFT, HRA, (IA)³ on feed-forward).
    func input(_ x: Variable, of layer: Linear, _ tape: Tape) throws(PEFTError) -> Variable
    /// Adds a branch to the running output `y` (LoRA and its family). `x` is the layer's input; `y` is consumed.
    func add(to y: consuming Variable, input x: Variable, of layer: Linear, _ tape: Tape) throws(PEFTError) -> Variable
    /// What `add` does together with the layer's own product and bias, where one product with a changed weight is cheaper than both and `input`
    /// does nothing: rows that are all adapted alike then take it instead. nil: they do not.
    func product(of x: Variable, bias: Variable?, of layer: Linear, _ tape: Tape, as dtype: DType?) throws(PEFTError) -> Variable?
    /// All it does, where that comes to a product of low rank beside the layer's own (without dropout): products of few rows take it with them (decoding).
    /// - Parameter copies: nil: only what needs nothing computed.
    /// - Throws: `.memory` for the copies.
    func branch(_ copies: DecodingCopies?) throws(PEFTError) -> LowRankBranch?
    /// What the layer's weight and bias come to by all it does, where reading those costs less than doing it anew for each row; nil: it costs little, or no weight
    /// can hold it.
    /// - Throws: `.memory`
    func weights(_ copies: DecodingCopies) throws(PEFTError) -> (weight: Tensor, bias: Tensor?)?
    /// Changes the output ((IA)³, DoRA's magnitude, RoAd).
    func output(_ y: consuming Variable, input x: Variable, of layer: Linear, _ tape: Tape) throws(PEFTError) -> Variable
    /// The same for a look-up: adds to the rows `y` `[count, dim]` found for `ids` (i32).
    func output(_ y: consuming Variable, ids: Tensor, of layer: Embedding, _ tape: Tape) throws(PEFTError) -> Variable
}

extension LayerHook {
    package var invocation: [Int32]? { nil }
    package var readsAllRows: Bool { false }
    package func of(task: Int) -> any LayerHook { self }
    package func product(of x: Variable, bias: Variable?, of layer: Linear, _ tape: Tape, as dtype: DType?) throws(PEFTError) -> Variable? { nil }
    package func branch(_ copies: DecodingCopies?) throws(PEFTError) -> LowRankBranch? { nil }
    package func weights(_ copies: DecodingCopies) throws(PEFTError) -> (weight: Tensor, bias: Tensor?)? { nil }
    package func input(_ x: Variable, of layer: Linear, _ tape: Tape) throws(PEFTError) -> Variable { x }
    package func add(to y: consuming Variable, input x: Variable, of layer: Linear, _ tape: Tape) throws(PEFTError) -> Variable { y }
    package func output(_ y: consuming Variable, input x: Variable, of layer: Linear, _ tape: Tape) throws(PEFTError) -> Variable { y }
    package func output(_ y: consuming Variable, ids: Tensor, of layer: Embedding, _ tape: Tape) throws(PEFTError) -> Variable { y }
}

/// Everything adapters do at one layer: hooks in the order of the active adapters, and own parameters that stand in for
/// the layer's ("weight", "bias": modules_to_save, trained biases, LN tuning).
package struct LayerAdaptation: Sendable {
    package var hooks: [any LayerHook] = []
    package var replacements: [String: Parameter] = [:]

    package init() {}
    package var isEmpty: Bool { hooks.isEmpty && replacements.isEmpty }

    /// The same hooks and the same replacements.
    func isSame(as other: LayerAdaptation) -> Bool {
        hooks.count == other.hooks.count && zip(hooks, other.hooks).allSatisfy { $0 === $1 } && replacements.count == other.replacements.count
            && replacements.allSatisfy { other.replacements[$0.key] === $0.value }
    }
}

/// What the active adapters do to a whole model: one entry per layer, by `Layer.index`. A value: a session keeps the one
/// it was given while others change theirs.
package struct Adaptation: Sendable {
    package var layers: [LayerAdaptation] { didSet { decoding = nil } }
    /// What it does as products of few rows take it along; nil: it is put together for each pass.
    private var decoding: DecodingChanges?
    /// Where layers' whole weights may be copied for that; nil: nowhere.
    package var folded: FoldedChanges?
    /// The blocks that run, in this order, instead of each once; nil nearly always.
    package var runs: [BlockRun]?
    /// What hooks wait for, each once.
    package var invocations: [[Int32]] = []
    /// The tasks that hooks ask for, where some do: the fewest one of them has.
    package var taskCount: Int?
    /// What adapters add to every loss.
    package var penalties: [any LossPenalty] = []

    /// What stands in front of the input.
    package var prompt: (any VirtualTokens)?
    /// What attention sees in front of the input's own keys and values.
    package var memory: (any AttentionMemory)?

    /// What acts beside the attention of layers, by their number.
    package var gatedPrompts: [Int: GatedPrompt] = [:]

    /// What acts where blocks add what they computed.
    package var joins: [BlockPlace: [any JoinHook]] = [:]
    /// A small network that runs beside the blocks.
    package var shadow: (any ShadowPath)?
    /// What happens to states between the embedding and the head.
    package var coupling: (any Coupling)?
    /// Weighs what acts token by token.
    package var router: (any TokenRouter)?
    /// Of a pass: what a router gave each expert, `[tokens, experts]`, once or for each layer.
    package var shares: [Tensor] = []
    /// What it does to a token depends on all of the text, also on what comes behind it (gates).
    package var readsWholeText = false
    /// What acts instead of all this from so many tokens of a text on, in order.
    package var later: [(start: Int, adaptation: Adaptation)] = []

    /// No adapter.
    package init(layerCount: Int) { layers = Array(repeating: LayerAdaptation(), count: layerCount) }

    /// Nothing acts but around layers and where blocks add what they computed, and always.
    package var onlyHooks: Bool {
        runs == nil && invocations.isEmpty && prompt == nil && memory == nil && gatedPrompts.isEmpty && coupling == nil && router == nil && shadow == nil && taskCount == nil
    }

    /// Nothing changes it any more: what decoding reads of it may be kept.
    package mutating func settle(_ model: Model) { decoding = DecodingChanges(model) }

    var actsAtLayers: Bool { layers.contains { !$0.isEmpty } }

    /// What products of few rows take along.
    package func fewRowChanges(_ tape: Tape) throws(PEFTError) -> FewRowChanges {
        guard let decoding else { return try FewRowChanges(try fewRowChanges(nil)) }
        if let folded, !tape.engine.isPlanning { return try folded.changes(of: self, decoding, tape) }
        return try decoding.changes(of: self, tape)
    }

    /// What hooks do at each layer; nil where products of few rows cannot do all of it.
    func fewRowChanges(_ copies: DecodingCopies?) throws(PEFTError) -> [FewRowChange?] {
        try layers.map { (layer) throws(PEFTError) in
            guard layer.replacements.isEmpty else { return nil }
            var branches: [LowRankBranch] = []
            for hook in layer.hooks {
                if let branch = try hook.branch(copies), !branch.isAlone || layer.hooks.count == 1 {
                    branches.append(branch)
                } else {
                    guard let copies, copies.includesWeights, layer.hooks.count == 1, let own = try hook.weights(copies) else { return nil }
                    return .weights(own.weight, bias: own.bias)
                }
            }
            return .branches(branches)
        }
    }

    package subscript(_ layer: any Layer) -> LayerAdaptation? {
        let index = layer.index
        guard index < layers.count, !layers[index].isEmpty else { return nil }
        return layers[index]
    }
}

/// A term of the loss that depends on an adapter alone (AdaLoRA's orthogonality).
package protocol LossPenalty: AnyObject, Sendable {
    /// f32 `[1]`
    func value(_ tape: Tape) throws(PEFTError) -> Variable
}

extension Adaptation {
    /// The same hooks and the same replacements everywhere.
    package func isSame(as other: Adaptation) -> Bool {
        guard (folded == nil) == (other.folded == nil) else { return false }
        if let decoding, decoding === other.decoding { return true }
        return layers.count == other.layers.count && prompt === other.prompt && coupling === other.coupling && memory === other.memory && router === other.router && shadow === other.shadow
            && later.count == other.later.count && zip(later, other.later).allSatisfy { $0.start == $1.start && $0.adaptation.isSame(as: $1.adaptation) }
            && joins.count == other.joins.count && joins.allSatisfy { place, hooks in
                let others = other.joins[place] ?? []
                return hooks.count == others.count && zip(hooks, others).allSatisfy { $0 === $1 }
            }
            && gatedPrompts.count == other.gatedPrompts.count && gatedPrompts.allSatisfy { $0.value === other.gatedPrompts[$0.key] }
            && zip(layers, other.layers).allSatisfy { $0.isSame(as: $1) }
    }
}

/// Which adapters apply to which rows of a batch.
package enum Routing: Sendable {
    /// The same for all (an empty `Adaptation`: the base model).
    case all(Adaptation)
    /// Samples `range` of the batch use this one; ranges ascend and cover the batch. The base product is shared.
    case samples([(range: Range<Int>, adaptation: Adaptation)])
}

extension Routing {
    /// So many times the rows of a batch of `rows` are there.
    package func repeats(of rows: Int) -> Int {
        guard case .samples(let groups) = self, let last = groups.last else { return 1 }
        return last.range.upperBound / max(rows, 1)
    }

    /// Something stands in front of texts.
    package var leads: Bool {
        switch self {
        case .all(let adaptation): adaptation.prompt != nil || adaptation.memory != nil
        case .samples(let groups): groups.contains { $0.adaptation.prompt != nil || $0.adaptation.memory != nil }
        }
    }

    /// The same where each row of a batch became so many.
    package func spread(over counts: [Int]) -> Routing {
        guard case .samples(let groups) = self else { return self }
        var (starts, sum) = ([0], 0)
        for index in 0..<(groups.last?.range.upperBound ?? 0) {
            sum += counts.isEmpty ? 0 : counts[index % counts.count]
            starts.append(sum)
        }
        return .samples(groups.map { (starts[$0.range.lowerBound]..<starts[$0.range.upperBound], $0.adaptation) })
    }

    /// Some adapter's gate is a mean over a text.
    package var readsWholeText: Bool {
        switch self {
        case .all(let adaptation): adaptation.readsWholeText
        case .samples(let groups): groups.contains { $0.adaptation.readsWholeText }
        }
    }

    /// What its adapters add to a loss, each once.
    package var penalties: [any LossPenalty] {
        switch self {
        case .all(let adaptation): return adaptation.penalties
        case .samples(let groups):
            var seen: Set<ObjectIdentifier> = []
            return groups.flatMap(\.adaptation.penalties).filter { seen.insert(ObjectIdentifier($0)).inserted }
        }
    }
}
