package import Autograd
package import Platform
package import Tensors

/// Learned rows that an adapter puts in front of what a network reads (prompt tuning, P-tuning). They take places like tokens: the
/// first real token stands behind them.
package protocol VirtualTokens: AnyObject, Sendable {
    var count: Int { get }
    /// f32 `[count, hiddenSize]`
    func rows(_ tape: Tape) throws(PEFTError) -> Variable
}

extension Routing {
    /// What stands in front of every sample of a batch.
    /// - Throws: `.unsupported` where samples differ: rows of a batch have one length.
    package func prompt() throws(PEFTError) -> (any VirtualTokens)? {
        switch self {
        case .all(let adaptation): return adaptation.prompt
        case .samples(let groups):
            guard groups.allSatisfy({ $0.adaptation.prompt == nil }) else {
                throw PEFTError(.unsupported, "adapters with virtual tokens act on whole batches; this batch has an adapter for each sample")
            }
            return nil
        }
    }
}

extension VirtualTokens {
    /// The rows in the type of activations.
    package func activations(_ tape: Tape) throws(PEFTError) -> Variable {
        try tape.cast(try rows(tape), to: tape.precision.activation)
    }
}

extension ModelInput {
    /// Tokens behind the virtual ones, if there are any.
    package init(ids: Tensor, behind prompt: (any VirtualTokens)?, _ tape: Tape) throws(PEFTError) {
        self = if let prompt { .prompted(ids, by: try prompt.activations(tape)) } else { .ids(ids) }
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
        case .prompted(let ids, let prompt):
            let rows = try lookedUp(ids)
            var parts: [Variable] = []
            for sample in 0..<context.batch { parts += [prompt, try tape.rows(rows, try context.rows(of: sample..<sample + 1, in: ids.count))] }
            return try tape.concatenateRows(parts)
        case .features: throw PEFTError(.argument, "this model reads tokens (input_ids), not vectors (x)")
        }
    }
}

extension Model {
    /// Fills an empty cache with what stands in front of the first token. Tokens that follow do not change it: a decoder's
    /// states depend on what came before only.
    /// - Returns: the places taken.
    package func begin(_ cache: KeyValueCache, _ adaptation: Adaptation) throws(PEFTError) -> Int {
        guard !network.readsSource, let prompt = adaptation.prompt else { return 0 }
        let (tape, count) = (Tape(engine, generationPrecision), prompt.count)
        let context = ForwardContext(
            tape: tape, routing: .all(adaptation), batch: 1, length: count, positions: try Tensor(engine, (0..<Int32(clamping: count)).map { $0 }, shape: [count]),
            caches: [cache])
        _ = try hidden(.embeddings(try prompt.activations(tape)), context)
        cache.advance(by: count)
        return count
    }
}

extension Adaptation {
    /// Places of a decoder's context that are taken before the first token.
    package func leadingCount(_ model: Model) -> Int { model.network.readsSource ? 0 : prompt?.count ?? 0 }
}
