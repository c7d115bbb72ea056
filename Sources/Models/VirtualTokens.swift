package import Autograd
package import Platform
package import Tensors

/// Learned rows that an adapter puts in front of what a network reads (prompt tuning, P-tuning). They take places like tokens: the
/// first real token stands behind them.
package protocol VirtualTokens: AnyObject, Sendable {
    var count: Int { get }
    /// Tasks with rows of their own (multitask prompt tuning); nil: there is one.
    var taskCount: Int? { get }
    /// The decoder of an encoder-decoder has as many in front of it as its encoder.
    var leadsDecoder: Bool { get }
    /// What is to be learned of them themselves; nil: nothing.
    var labels: ContextLabels? { get }
    /// f32 `[count, hiddenSize]`
    func rows(task: Int, ofDecoder: Bool, _ tape: Tape) throws(PEFTError) -> Variable
}

/// Virtual tokens that stand for tokens, of which the answers are learned with those of the input behind them.
package struct ContextLabels: Sendable {
    package let ids: [Int32]
    /// Of each: above 0 and divisible by 4: it belongs to an answer; equal numbers: to the same one.
    package let types: [Int32]
    /// The last answer of a row weighs 1, each before it so many times the one behind it; nil: all weigh 1.
    package let decay: Float?

    package init(ids: [Int32], types: [Int32], decay: Float?) { (self.ids, self.types, self.decay) = (ids, types, decay) }
}

extension VirtualTokens {
    /// The rows in the type of activations.
    /// - Throws: `.argument` for a task there is not, or none where there are several.
    package func activations(task: Int?, ofDecoder: Bool = false, _ tape: Tape) throws(PEFTError) -> Variable {
        if let taskCount {
            guard let task else { throw PEFTError(.argument, "this adapter has \(taskCount) tasks: 'task_ids' says which one each sample is of") }
            guard task >= 0, task < taskCount else { throw PEFTError(.argument, "task_ids has \(task); this adapter's tasks are 0 to \(taskCount - 1)") }
        }
        return try tape.cast(try rows(task: task ?? 0, ofDecoder: ofDecoder, tape), to: tape.precision.activation)
    }
}

extension Routing {
    /// What is done to each sample of a batch.
    func adaptations(_ batch: Int) -> [Adaptation] {
        switch self {
        case .all(let adaptation): Array(repeating: adaptation, count: batch)
        case .samples(let groups): groups.flatMap { Array(repeating: $0.adaptation, count: $0.range.count) }
        }
    }

    /// What attention sees in front of each sample.
    package func memories(_ batch: Int) -> [(any AttentionMemory)?] { adaptations(batch).map(\.memory) }
}

/// The virtual tokens of a batch in one pass: in front of each sample's tokens stand as many rows as the longest prompt has; what
/// a shorter one leaves free is padding on the left.
package struct LeadingRows {
    /// Rows in front of each sample.
    package let count: Int
    /// Virtual tokens of each sample; 0: it has none.
    package let counts: [Int]
    /// `[count, hiddenSize]` of each sample.
    package let rows: [Variable]
    /// What is learned of them themselves.
    package let labels: [ContextLabels?]

    package var padding: [Int]? { counts.allSatisfy { $0 == count } ? nil : counts.map { count - $0 } }

    /// - Parameters:
    ///   - tasks: of each sample; nil: not given.
    ///   - ofDecoder: those in front of what an encoder-decoder writes.
    /// - Returns: nil where no sample has virtual tokens.
    package init?(_ routing: Routing, batch: Int, tasks: [Int32]?, ofDecoder: Bool = false, _ tape: Tape) throws(PEFTError) {
        let prompts = routing.adaptations(batch).map { adaptation in adaptation.prompt.flatMap { ofDecoder && !$0.leadsDecoder ? nil : $0 } }
        guard prompts.contains(where: { $0 != nil }) else { return nil }
        counts = prompts.map { $0?.count ?? 0 }
        labels = prompts.map { $0?.labels }
        let count = counts.max() ?? 0
        self.count = count
        struct Key: Hashable {
            let prompt: ObjectIdentifier
            let task: Int32?
        }
        var made: [Key: Variable] = [:]
        let own = try prompts.enumerated().map { (sample, prompt) throws(PEFTError) -> Variable? in
            guard let prompt else { return nil }
            let task = prompt.taskCount == nil ? nil : tasks?[sample]
            let key = Key(prompt: ObjectIdentifier(prompt), task: task)
            if let known = made[key] { return known }
            let rows = try prompt.activations(task: task.map { Int($0) }, ofDecoder: ofDecoder, tape)
            made[key] = rows
            return rows
        }
        let width = own.lazy.compactMap { $0?.value.columns }.first ?? 0
        let padding = Variable(try Tensor.zeros(tape.engine, [count, width], tape.precision.activation))
        rows = try own.map { (rows) throws(PEFTError) in
            guard let rows else { return padding }
            let missing = count - rows.value.rows
            return missing == 0 ? rows : try tape.concatenateRows([try tape.rows(padding, 0..<missing), rows])
        }
    }
}

extension ModelInput {
    /// Tokens behind the virtual ones, if there are any.
    package init(ids: Tensor, behind lead: LeadingRows?) {
        self = if let lead { .prompted(ids, by: lead.rows) } else { .ids(ids) }
    }

    /// The rows a network of tokens begins with. Virtual tokens are what they are: neither looked up nor scaled.
    func embedded(by embedding: Embedding, scale: Float = 1, _ context: ForwardContext) throws(PEFTError) -> Variable {
        let tape = context.tape
        func lookedUp(_ ids: Tensor) throws(PEFTError) -> Variable {
            let rows = try embedding(ids, context)
            return scale == 1 ? rows : try tape.scaled(rows, by: scale)
        }
        switch self {
        case .ids(let ids): return try lookedUp(ids)
        case .embeddings(let rows): return rows
        case .prompted(let ids, let prompts):
            guard prompts.count == context.batch else { throw PEFTError(.internal, "virtual tokens for \(prompts.count) of \(context.batch) samples") }
            let rows = try lookedUp(ids)
            var parts: [Variable] = []
            for (sample, prompt) in prompts.enumerated() { parts += [prompt, try tape.rows(rows, try context.rows(of: sample..<sample + 1, in: ids.count))] }
            return try tape.concatenateRows(parts)
        case .features: throw PEFTError(.argument, "this model reads tokens (input_ids), not vectors (x)")
        }
    }
}

extension Model {
    /// Fills an empty cache with what stands in front of the first token. Tokens that follow do not change it: a decoder's
    /// states depend on what came before only.
    /// - Parameter task: of an adapter with several.
    /// - Returns: the places taken.
    package func begin(_ cache: KeyValueCache, _ adaptation: Adaptation, task: Int?) throws(PEFTError) -> Int {
        if let memory = adaptation.memory { try cache.begin(with: try memory.snapshot(self), gated: memory.isGated ? memory : nil) }
        guard let prompt = adaptation.prompt, !network.readsSource || prompt.leadsDecoder else { return cache.length }
        let (tape, count, first) = (Tape(engine, generationPrecision), prompt.count, Int32(clamping: cache.length))
        let context = ForwardContext(
            tape: tape, routing: .all(adaptation), batch: 1, length: count, positions: try Tensor(engine, (0..<Int32(clamping: count)).map { first + $0 }, shape: [count]),
            caches: [cache])
        _ = try hidden(.embeddings(try prompt.activations(task: task, ofDecoder: network.readsSource, tape)), context)
        cache.advance(by: count)
        return cache.length
    }
}

extension Adaptation {
    /// Places of a decoder's context that are taken before the first token.
    package func leadingCount(_ model: Model) -> Int {
        let isRead = !model.network.readsSource || prompt?.leadsDecoder ?? false
        return (memory?.count ?? 0) + (isRead ? prompt?.count ?? 0 : 0)
    }
}
