internal import Autograd
package import Models
package import Platform
internal import Synchronization
internal import Tensors
package import Tokenizers

/// One conversation over a model: the tokens read so far with their keys and values, a sampler, a choice of adapters.
///
/// One call at a time; different sessions run in parallel, and share the model's weights.
package final class Session: @unchecked Sendable {
    // Sendable: the C interface lets one call at a time in; `cancel` is the exception and only sets an atomic flag.

    package let model: Model
    package let tokenizer: Tokenizer?
    package let contextLength: Int
    package private(set) var options: SessionOptions
    /// Which adapters act, asked before each forward pass.
    package var chosen: @Sendable () throws(PEFTError) -> Adaptation
    private var folded: FoldedChanges?
    /// The tokens in the context.
    package private(set) var tokens: [Int32] = []
    package private(set) var statistics = SessionStatistics()

    /// Holds `leading` places that are no tokens', then `tokens`.
    private(set) var cache: KeyValueCache
    /// Taken by the virtual tokens of the adapters that acted when the first token was read.
    private var leading = 0
    private var sampler: Sampler
    /// f32 `[vocabulary]` of the token after the last; nil before the first.
    private var logits: [Float]?
    /// Guessed tokens that were read behind `tokens`, with the logits after each; the cache does not count them yet.
    private var ahead = ReadAhead()
    private let isCancelled = Atomic<Bool>(false)

    /// Rows of one forward pass when much is read at once: bounds the memory for activations, and enough for full speed.
    private static let chunk = 512
    package static let defaultContextLength = 2048

    /// - Throws: `.argument` for a context longer than the model's, `.unsupported` for a model that does not generate.
    package init(
        _ model: Model, tokenizer: Tokenizer?, options: SessionOptions, adaptation: @escaping @Sendable () throws(PEFTError) -> Adaptation
    ) throws(PEFTError) {
        guard let shape = model.network.cacheShape else { throw PEFTError(.unsupported, "a \(model.architecture) model does not generate") }
        contextLength = options.contextLength ?? min(Session.defaultContextLength, shape.maximumLength)
        guard contextLength <= shape.maximumLength else {
            throw PEFTError(.argument, "context_length is \(contextLength); this model's limit is \(shape.maximumLength)")
        }
        self.model = model
        self.tokenizer = tokenizer
        self.options = options
        chosen = adaptation
        folded = options.foldsAdapters ? FoldedChanges(model) : nil
        cache = try model.makeCache(capacity: contextLength, runs: try adaptation().runs?.count, format: options.cacheFormat)
        sampler = Sampler(options.sampling, level: model.engine.level)
    }

    private init(copying other: Session) throws(PEFTError) {
        model = other.model
        tokenizer = other.tokenizer
        contextLength = other.contextLength
        options = other.options
        chosen = other.chosen
        folded = other.folded == nil ? nil : FoldedChanges(other.model)  // Its own: it may be given other adapters.
        tokens = other.tokens
        statistics = other.statistics
        cache = try other.cache.copy()
        leading = other.leading
        sampler = other.sampler
        logits = other.logits
    }

    /// A copy that goes its own way from here.
    package func fork() throws(PEFTError) -> Session { try Session(copying: self) }

    /// New sampling options; the context stays.
    package func configure(_ options: SessionOptions) {
        self.options = options
        sampler.options = options.sampling
        if options.foldsAdapters != (folded != nil) { folded = options.foldsAdapters ? FoldedChanges(model) : nil }
    }

    /// What acts now.
    package func adaptation() throws(PEFTError) -> Adaptation {
        guard let folded else { return try chosen() }
        var adaptation = try chosen()
        adaptation.folded = folded
        return adaptation
    }

    /// From any thread: the running call ends with `.cancelled` after the present token or chunk; if none runs, the next does.
    package func cancel() { isCancelled.store(true, ordering: .releasing) }

    package var cacheBytes: Int { cache.byteCount }
    package var cacheType: String { cache.format.rawValue }

    /// Logits of the next token.
    /// - Throws: `.state` before anything was read.
    package func nextLogits() throws(PEFTError) -> [Float] {
        guard let logits else { throw PEFTError(.state, "the session has read no tokens yet, so there is nothing to continue") }
        return logits
    }

    /// Forgets all tokens but the first `keep`.
    package func rewind(to keep: Int) throws(PEFTError) {
        guard keep >= 0, keep <= tokens.count else { throw PEFTError(.argument, "rewinding to \(keep) tokens; the session holds \(tokens.count)") }
        if keep == 0 { cache.forgetSource() }
        guard keep < tokens.count else { return }
        dropAhead()
        cache.truncate(to: leading + max(keep - 1, 0))
        let last = keep > 0 ? tokens[keep - 1] : nil
        tokens.removeSubrange(max(keep - 1, 0)...)
        logits = nil
        if let last { try append([last]) }
    }

    /// Reads tokens: afterwards the next one can be sampled. What is read first by an encoder-decoder is its source.
    /// - Throws: `.argument` for ids the model does not have, `.contextFull`; the session is as it was.
    package func append(_ ids: [Int32]) throws(PEFTError) {
        guard !ids.isEmpty else { return }
        try checkIDs(ids)
        guard !model.network.readsSource || cache.hasSource else {
            return try readSource(Source(.ids(try Tensor(model.engine, ids, shape: [ids.count])), length: ids.count))
        }
        try makeRoom(for: ids.count)
        let start = tokens.count
        do throws(PEFTError) {
            try read(ids)
        } catch {
            cache.truncate(to: leading + start)
            tokens.removeSubrange(start...)
            throw error
        }
    }

    private func checkIDs(_ ids: [Int32]) throws(PEFTError) {
        if let vocabulary = model.configuration["vocab_size"]?.intValue, let wrong = ids.first(where: { $0 < 0 || Int($0) >= vocabulary }) {
            throw PEFTError(.argument, "token id \(wrong); this model's are 0 to \(vocabulary - 1)", detail: Int64(wrong))
        }
    }

    /// Of an encoder-decoder: the encoder reads `source`, and the decoder starts anew.
    package func readSource(_ source: Source) throws(PEFTError) {
        let engine = model.engine
        cache.truncate(to: 0)
        cache.forgetSource()
        tokens = []
        logits = nil
        try model.lock.read { () throws(PEFTError) in
            let (tape, adaptation) = (Tape(engine, model.generationPrecision), try adaptation().of(task: options.task))
            let context = ForwardContext(
                tape: tape, routing: .all(adaptation), batch: 1, length: 1, positions: try Tensor(engine, [Int32(0)], shape: [1]),
                source: try source.behind(adaptation.prompt, task: options.task, tape))
            try model.network.readSource(into: cache, context)
        }
        try append([model.decoderStart])
    }

    private func read(_ ids: [Int32]) throws(PEFTError) {
        let begin = Clock.seconds
        var position = 0
        while position < ids.count {
            if takeCancellation() { throw PEFTError(.cancelled, "cancelled after \(position) of \(ids.count) tokens") }
            let end = try adaptation().readsWholeText ? ids.count : min(position + Session.chunk, ids.count)
            try forward(Array(ids[position..<end]), after: Array(ids[end...]))
            position = end
        }
        statistics.add(read: ids.count, seconds: Clock.seconds - begin)
    }

    /// One pass over `ids`, which follow what the cache holds.
    /// - Parameters:
    ///   - guess: tokens that may come next, read with them.
    ///   - after: what is to be read next for certain.
    private func forward(_ ids: [Int32], guess: ArraySlice<Int32> = [], after: [Int32] = []) throws(PEFTError) {
        let engine = model.engine
        dropAhead()
        var cache = self.cache
        let result: Tensor? = try model.lock.read { () throws(PEFTError) in
            // Asked for under the lock: no merge comes between this and the computation.
            let chosen = try adaptation()
            if !guess.isEmpty { ahead = ReadAhead(chosen, model.lock.generation) }
            let adaptation = try chosen.of(task: options.task)
            if tokens.isEmpty {
                cache.truncate(to: 0)
                leading = 0
                let capacity = contextLength + adaptation.leadingCount(model)
                if capacity > cache.capacity { cache = try cache.copy(capacity: capacity) }
                leading = try model.begin(cache, adaptation, task: options.task)
                self.cache = cache
            }
            let readsAnew = adaptation.readsWholeText && !options.gatesEachCall
            guard !readsAnew || adaptation.prompt == nil else {
                throw PEFTError(.unsupported, "use_gating beside virtual tokens in a session, which reads these once; set gates to \"call\"")
            }
            var (known, all) = (tokens, ids + guess)
            if readsAnew, !tokens.isEmpty {
                // Nothing that was computed before is so any more.
                cache = try cache.copy(capacity: cache.capacity)
                cache.truncate(to: leading)
                (known, all) = ([], tokens + ids)
            }
            let first = Int32(clamping: cache.length)
            let byToken = try Routing.all(adaptation).byToken(all, batch: 1, before: known, after: after)
            let context = ForwardContext(
                tape: Tape(engine, model.generationPrecision), routing: byToken ?? .all(adaptation), isByToken: byToken != nil, batch: 1, length: all.count,
                positions: try Tensor(engine, (0..<Int32(all.count)).map { first + $0 }, shape: [all.count]), caches: [cache])
            let input = ModelInput.ids(try Tensor(engine, all, shape: [all.count]))
            let hidden = try model.hidden(input, context)
            return after.isEmpty ? try model.logits(hidden, of: input, rows: guess.isEmpty ? .last : .all, context).value : nil
        }
        if let result, guess.isEmpty {
            logits = try result.floats(engine)
        } else if let result {
            logits = try result.rows(0..<1).floats(engine)
            for (row, token) in guess.enumerated() { ahead.tokens.append((token, try result.rows(row + 1..<row + 2).floats(engine))) }
        }
        tokens += ids
        cache.advance(by: leading + tokens.count - cache.length)
        self.cache = cache
    }

    /// Tokens that fit in all. Virtual tokens are not the host's: they come on top, as long as the model has positions.
    private func room(leading: Int) -> Int {
        min(contextLength, (model.network.cacheShape?.maximumLength ?? contextLength) - leading)
    }

    /// Makes sure `count` more tokens fit.
    func makeRoom(for count: Int) throws(PEFTError) {
        let leading = tokens.isEmpty ? try adaptation().leadingCount(model) : leading
        let room = room(leading: leading)
        let excess = tokens.count + count - room
        guard excess > 0 else { return }
        guard options.onFull == .shift, let rotary = model.network.cacheShape?.rotary else {
            throw PEFTError(
                .contextFull, "\(count) more tokens do not fit: the session holds \(tokens.count) of \(room) (rewind it, or set on_full to \"shift\")",
                detail: Int64(excess))
        }
        let keep = min(options.keep, tokens.count)
        // Half of what may go, so that a full context is not shifted at every token.
        let dropped = max(excess, (tokens.count - keep) / 2)
        guard dropped <= tokens.count - keep else {
            throw PEFTError(.contextFull, "\(count) tokens do not fit in a context of \(room) that keeps its first \(keep)", detail: Int64(excess))
        }
        dropAhead()
        try cache.shift(keeping: leading + keep, dropping: dropped, rotary: rotary)
        tokens.removeSubrange(keep..<keep + dropped)
    }

    /// Samples the next token without reading it.
    func sample() throws(PEFTError) -> Int32 {
        try sampler.sample(try nextLogits(), history: tokens)
    }

    /// Reads a token that was just generated.
    func accept(_ token: Int32) throws(PEFTError) {
        let begin = Clock.seconds
        try makeRoom(for: 1)
        if let logits = try takeAhead(token) {
            self.logits = logits
            cache.advance(by: 1)
            tokens.append(token)
        } else {
            try forward([token], guess: try guess(after: token))
        }
        statistics.add(generated: 1, seconds: Clock.seconds - begin)
    }

    /// What may follow `token`, as far as there is room.
    private func guess(after token: Int32) throws(PEFTError) -> ArraySlice<Int32> {
        // An empty context is begun by a pass over what is certain; what adapters wait for must not be guessed.
        guard options.promptLookupTokens > 0, !tokens.isEmpty, try adaptation().invocations.isEmpty, try !adaptation().readsWholeText else { return [] }
        let left = room(leading: leading) - tokens.count - 1
        return PromptLookup.guess(after: tokens + [token], count: min(options.promptLookupTokens, left))
    }

    /// The logits after `token`, if it was guessed and what it was computed with is as it was.
    private func takeAhead(_ token: Int32) throws(PEFTError) -> [Float]? {
        guard let first = ahead.tokens.first, first.token == token else { return nil }
        let isValid = try model.lock.read { () throws(PEFTError) in
            let adaptation = try adaptation()
            return model.lock.generation == ahead.generation && ahead.adaptation.map { $0.isSame(as: adaptation) } ?? false
        }
        guard isValid else { return nil }
        ahead.tokens.removeFirst()
        return first.logits
    }

    /// What was guessed is not what comes next.
    func dropAhead() {
        ahead = ReadAhead()
        cache.truncate(to: cache.length)
    }

    /// A pass over several sessions read `token` here.
    func didAccept(_ token: Int32, logits: [Float], seconds: Double) {
        cache.advance(by: 1)
        tokens.append(token)
        self.logits = logits
        statistics.add(generated: 1, seconds: seconds)
    }

    /// True once after `cancel`.
    func takeCancellation() -> Bool { isCancelled.exchange(false, ordering: .acquiringAndReleasing) }

    /// The ids that end an answer.
    var endTokens: Set<Int32> {
        guard !options.ignoresEnd else { return [] }
        var ends = Set(tokenizer?.specialTokens.endOfTurn ?? [])
        if let end = tokenizer?.specialTokens.end { ends.insert(end) }
        switch model.configuration["eos_token_id"] {
        case .integer(let id): ends.insert(Int32(clamping: id))
        case .array(let ids): ends.formUnion(ids.compactMap { $0.intValue.map { Int32(clamping: $0) } })
        default: break
        }
        return ends
    }
}

/// Tokens that were read before it was known whether they come.
private struct ReadAhead {
    var tokens: [(token: Int32, logits: [Float])] = []
    /// What they were computed with.
    var adaptation: Adaptation?
    var generation: UInt64 = 0

    init() {}

    init(_ adaptation: Adaptation, _ generation: UInt64) {
        self.adaptation = adaptation
        self.generation = generation
    }
}

/// Counts and speeds of a session.
package struct SessionStatistics: Sendable {
    package private(set) var tokensRead = 0
    package private(set) var secondsReading = 0.0
    package private(set) var tokensGenerated = 0
    package private(set) var secondsGenerating = 0.0

    mutating func add(read count: Int, seconds: Double) {
        tokensRead += count
        secondsReading += seconds
    }

    mutating func add(generated count: Int, seconds: Double) {
        tokensGenerated += count
        secondsGenerating += seconds
    }
}
