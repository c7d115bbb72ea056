package import Autograd
package import Models
package import Platform
package import Tensors

/// Forward passes over host data and the losses of transformers' models: what training, evaluation, `forward` and
/// `gradients` have in common.
package enum ModelLoss {
    /// About what one chunk of logits may take. Each chunk reads the head's weights again, forward and backward.
    private static let chunkBytes = 8 << 20

    /// Checks a batch against a model before anything is computed.
    /// - Throws: `.argument` naming the value and the range: sizes, token ids, labels, length.
    package static func check(_ batch: Batch, _ model: Model) throws(PEFTError) {
        guard batch.rows > 0, batch.length > 0 else { throw PEFTError(.argument, "an empty batch: \(batch.rows) rows of \(batch.length) tokens") }
        let tokens = try checkedProduct(batch.rows, batch.length, of: "batch")
        if !batch.featureShape.isEmpty {
            guard batch.features.count == batch.featureShape.reduce(batch.rows, *) else {
                throw PEFTError(.argument, "\(batch.features.count) values for \(batch.rows) rows of \(batch.featureShape)")
            }
        } else {
            try check(batch.ids.count, tokens, "input_ids")
        }
        if let mask = batch.keyMask { try check(mask.count, tokens, "attention_mask") }
        if let positions = batch.positions { try check(positions.count, tokens, "position_ids") }
        if let first = batch.firstKey {
            try check(first.count, tokens, "first_key")
            if let wrong = first.indices.first(where: { first[$0] < 0 || Int(first[$0]) > $0 % batch.length }) {
                throw PEFTError(.argument, "first_key holds \(first[wrong]) for token \(wrong % batch.length) of a row; a sample begins in 0 to that token")
            }
        }
        if let types = batch.tokenTypes {
            guard model.configuration["type_vocab_size"] != nil else { throw PEFTError(.argument, "a \(model.architecture) model has no token_type_ids") }
            try check(types.count, tokens, "token_type_ids")
        }
        if let adapters = batch.adapters { try check(adapters.count, batch.rows, "adapter_names") }
        if let tasks = batch.tasks { try check(tasks.count, batch.rows, "task_ids") }
        try checkSource(batch, model)
        try checkLabels(batch, model.task, tokens: tokens)
        if let longest = model.network.cacheShape?.maximumLength, batch.length > longest {
            throw PEFTError(.argument, "a row of \(batch.length) tokens; the model was made for at most \(longest)")
        }
    }

    /// How many labels a batch of a task has.
    static func labelCount(_ task: ModelTask, rows: Int, tokens: Int) -> Int {
        task == .causalLM || task == .conditionalGeneration || task == .tokenClassification ? tokens : rows
    }

    private static func checkSource(_ batch: Batch, _ model: Model) throws(PEFTError) {
        guard (batch.source != nil) == model.network.readsSource else {
            throw PEFTError(.argument, batch.source == nil ? "an encoder-decoder reads a source (input_ids) beside what its decoder reads" : "a \(model.architecture) model reads no source")
        }
        guard let source = batch.source else { return }
        let tokens = try checkedProduct(batch.rows, source.length, of: "batch")
        if source.featureShape.isEmpty { try check(source.ids.count, tokens, "input_ids") }
        if let mask = source.keyMask { try check(mask.count, tokens, "attention_mask") }
    }

    private static func checkLabels(_ batch: Batch, _ task: ModelTask, tokens: Int) throws(PEFTError) {
        guard batch.hasLabels else { return }
        if task == .features { throw PEFTError(.argument, "this model has no head, so there is no loss that labels could be for") }
        guard (task == .questionAnswering) == !batch.ends.isEmpty else {
            let right = task == .questionAnswering ? "'start_positions' and 'end_positions'" : "'labels'"
            throw PEFTError(.argument, "a model for \(task.rawValue) is trained with \(right)")
        }
        if !batch.ends.isEmpty { try check(batch.ends.count, batch.rows, "end_positions") }
        if !batch.labels.isEmpty { try check(batch.labels.count, labelCount(task, rows: batch.rows, tokens: tokens), task == .questionAnswering ? "start_positions" : "labels") }
        if !batch.targets.isEmpty, task != .classification { throw PEFTError(.argument, "labels are numbers; a model for \(task.rawValue) learns classes (integers)") }
    }

    private static func check(_ count: Int, _ wanted: Int, _ name: String) throws(PEFTError) {
        guard count == wanted else { throw PEFTError(.argument, "\(name) has \(count) values, the batch has \(wanted)") }
    }

    /// The batch as the model takes it, and as its losses see it: behind the virtual tokens of adapters. Memory: `tape.engine`.
    package static func input(_ given: Batch, _ model: Model, _ routing: Routing, _ tape: Tape, recomputedBlocks: Int = 0) throws(PEFTError) -> (
        input: ModelInput, context: ForwardContext, batch: Batch
    ) {
        let given = given.repeated(routing.repeats(of: given.rows))
        let routing = try routing.byTask(given.tasks, batch: given.rows, isEach: tape.isTraining)
        let lead = try LeadingRows(routing, batch: given.rows, tasks: given.tasks, ofDecoder: given.source != nil, tape)
        let batch = try lead.map { (lead) throws(PEFTError) in
            try given.behind(lead.counts, width: lead.count, isPredicted: model.task == .causalLM).learning(from: lead.labels, types: given.inputTypes)
        } ?? given
        let (engine, count) = (tape.engine, batch.rows * batch.length)
        let memory = try LeadingKeys(routing.memories(batch.rows), length: batch.length, keyMask: batch.keyMask, tape)
        if memory != nil, batch.firstKey != nil {
            throw PEFTError(.unsupported, "a prefix in front of packed rows: only the first sample would see it; do not pack")
        }
        let longest = batch.length + (memory?.count ?? 0)
        if lead != nil || memory != nil, let most = model.network.cacheShape?.maximumLength, longest > most {
            throw PEFTError(.argument, "rows of \(given.length) tokens with \(longest - given.length) virtual ones in front; the model was made for at most \(most)")
        }
        let byToken = try routing.byToken(batch.ids, batch: batch.rows, firstKey: batch.firstKey, isWhole: true)
        if byToken != nil, batch.source != nil { throw PEFTError(.unsupported, "aLoRA or a Split of texts for an encoder-decoder") }
        let context = ForwardContext(
            tape: tape, routing: byToken ?? routing, isByToken: byToken != nil, batch: batch.rows, length: batch.length,
            positions: try Tensor(engine, batch.places(behind: lead?.padding, memory?.counts), shape: [count]),
            positionsAreGiven: batch.positions != nil, tokenTypes: try batch.tokenTypes.map { (types) throws(PEFTError) in try Tensor(engine, types, shape: [count]) },
            keyMask: try batch.keyMask.map { (mask) throws(PEFTError) in try ModelLoss.mask(mask, batch.rows, engine) },
            firstKey: try batch.firstKey.map { (first) throws(PEFTError) in try Tensor(engine, first, shape: [count]) },
            source: try batch.source.map { (source) throws(PEFTError) in try ModelLoss.source(source, batch, routing, tape) }, memory: memory, padding: lead?.padding,
            recomputedBlocks: recomputedBlocks)
        if !batch.featureShape.isEmpty {
            return (.features(Variable(try Tensor(engine, batch.features, shape: [batch.rows] + batch.featureShape))), context, batch)
        }
        return (ModelInput(ids: try Tensor(engine, batch.ids, shape: [batch.ids.count]), behind: lead), context, batch)
    }

    private static func source(_ source: SourceBatch, _ batch: Batch, _ routing: Routing, _ tape: Tape) throws(PEFTError) -> Source {
        let (engine, rows) = (tape.engine, batch.rows)
        let lead = try LeadingRows(routing, batch: rows, tasks: batch.tasks, tape)
        if !source.featureShape.isEmpty {
            guard lead == nil else { throw PEFTError(.unsupported, "virtual tokens in front of a source of features") }
            return Source(.features(Variable(try Tensor(engine, source.features, shape: [rows] + source.featureShape))), length: 1)
        }
        let mask = lead.map { source.keyMask.behind($0.counts, width: $0.count, rows: rows, length: source.length) } ?? source.keyMask
        return Source(
            ModelInput(ids: try Tensor(engine, source.ids, shape: [rows * source.length]), behind: lead), length: (lead?.count ?? 0) + source.length,
            keyMask: try mask.map { (mask) throws(PEFTError) in try ModelLoss.mask(mask, rows, engine) })
    }

    /// One sample as an encoder reads it in a session.
    package static func source(of batch: Batch, _ model: Model) throws(PEFTError) -> Source {
        guard model.network.readsSource else { throw PEFTError(.argument, "a \(model.architecture) model reads no source") }
        guard batch.rows == 1, batch.keyMask == nil else { throw PEFTError(.argument, "a session reads one sample without padding, not \(batch.rows)") }
        if batch.featureShape.isEmpty { return Source(.ids(try Tensor(model.engine, batch.ids, shape: [batch.ids.count])), length: batch.length) }
        return Source(.features(Variable(try Tensor(model.engine, batch.features, shape: [1] + batch.featureShape))), length: 1)
    }

    private static func mask(_ mask: [UInt8], _ rows: Int, _ engine: Engine) throws(PEFTError) -> Tensor {
        try Tensor(engine, bytes: mask, shape: [rows, mask.count / max(rows, 1)])
    }

    /// The loss of `batch`, without the logits of all tokens where the model allows it.
    ///
    /// Language models: the mean over labelled tokens of −log p(token | tokens before). Classification: the mean over rows.
    /// Adapters that act on all samples add what they ask for.
    /// - Parameter gradientScale: on all gradients.
    /// - Returns: the loss, and the gradient of it that `Tape.backward` must be given for that scale.
    package static func loss(_ model: Model, _ batch: Batch, _ routing: Routing, _ tape: Tape, gradientScale: Float = 1, recomputedBlocks: Int = 0)
        throws(PEFTError) -> (result: LossResult, seed: Float)
    {
        // Virtual tokens stand in front of each sample of a packed row, and gates are means over it.
        let (batch, counts) = batch.firstKey != nil && (routing.leads || routing.readsWholeText) ? batch.unpacked() : (batch, [])
        let routing = counts.isEmpty ? routing : routing.spread(over: counts)
        let (loss, seed) = try taskLoss(model, batch, routing, tape, gradientScale: gradientScale, recomputedBlocks: recomputedBlocks)
        // `seed` is what is missing of `gradientScale`; a penalty has nothing of it yet.
        return (try withPenalties(loss, routing, tape, factor: gradientScale / seed), seed)
    }

    /// - Parameter factor: on the gradient of what is added.
    fileprivate static func withPenalties(_ loss: LossResult, _ routing: Routing, _ tape: Tape, factor: Float) throws(PEFTError) -> LossResult {
        let penalties = routing.penalties
        guard !penalties.isEmpty else { return loss }
        var (sum, variable) = (loss.sum, loss.variable)
        for penalty in penalties {
            let value = try penalty.value(tape)
            if !tape.engine.isPlanning { sum += Double(try value.value.floats(tape.engine).first ?? 0) * Double(loss.count) }
            variable = try tape.add(variable, try tape.scaled(value, by: factor))
        }
        return LossResult(sum: sum, count: loss.count, variable: variable)
    }

    private static func taskLoss(_ model: Model, _ batch: Batch, _ routing: Routing, _ tape: Tape, gradientScale: Float, recomputedBlocks: Int)
        throws(PEFTError) -> (result: LossResult, seed: Float)
    {
        let (input, context, batch) = try input(batch, model, routing, tape, recomputedBlocks: recomputedBlocks)
        let hidden = try model.hidden(input, context)
        // Rows of a chunk come from any samples, and not all of a text: where that matters to what acts at the head, it sees whole batches.
        guard let head = model.network.head, context.takesAnyRows(head) else {
            return (try headLoss(try model.logits(hidden, of: input, context), batch, model, tape), gradientScale)
        }
        let groups = model.task == .causalLM ? batch.weightedLabels : [(Float(1), batch.labels)]
        let counted = groups.reduce(0) { $0 + $1.labels.count { $0 != ignoredLabel } }
        var sum: LossResult?
        for (weight, labels) in groups where weight != 0 || sum == nil {
            let divisor = Float(max(counted, 1)) / max(weight, .leastNormalMagnitude)
            let part = try headLoss(hidden, head, labels, divisor: divisor, gradientScale, of: input, model, context)
            sum = try sum.map { (sum) throws(PEFTError) in try sum.adding(part, weight: weight, tape) } ?? part.weighted(weight)
        }
        if let shadow = context.shadowStart, model.task == .causalLM {
            for (weight, labels) in groups where weight * shadow.weight != 0 {
                let divisor = Float(max(counted, 1)) / (weight * shadow.weight)
                let part = try headLoss(shadow.state, head, labels, divisor: divisor, gradientScale, of: input, model, context)
                sum = try sum?.adding(part, weight: weight * shadow.weight, tape)
            }
        }
        guard let sum else { throw PEFTError(.internal, "a loss of nothing") }
        // The scale is in its gradients already.
        return (LossResult(sum: sum.sum, count: counted, variable: sum.variable), 1)
    }

    /// The loss of a language model's labels, chunk by chunk.
    private static func headLoss(
        _ hidden: Variable, _ head: Linear, _ labels: [Int32], divisor: Float, _ gradientScale: Float, of input: ModelInput, _ model: Model, _ context: ForwardContext
    ) throws(PEFTError) -> LossResult {
        let tape = context.tape
        if tape.precision.activation == .bf16, !head.isTransposed, context.isPlain(head) {
            return try tape.headCrossEntropy(
                hidden, head: head.weight, bias: head.bias, labels: labels, divisor: divisor, gradientScale: gradientScale, chunkBytes: chunkBytes)
        }
        let rowsPerChunk = max(32, min(512, 2 * chunkBytes / (4 * max(head.outputSize, 1)) / 32 * 32))
        return try tape.chunkedCrossEntropy(
            hidden, labels: labels, divisor: divisor, gradientScale: gradientScale, rowsPerChunk: rowsPerChunk
        ) { (inner, rows) throws(PEFTError) in
            try model.logits(rows, of: input, context.on(inner))
        }
    }
}

extension LossResult {
    func weighted(_ weight: Float) -> LossResult { LossResult(sum: sum * Double(weight), count: count, variable: variable) }

    /// - Parameter weight: in whose divisor it is already.
    func adding(_ other: LossResult, weight: Float, _ tape: Tape) throws(PEFTError) -> LossResult {
        LossResult(sum: sum + other.sum * Double(weight), count: count + other.count, variable: try tape.add(variable, other.variable))
    }
}

/// What a forward pass gives back.
package struct ForwardOutput {
    /// nil without labels; NaN when no label counts, as torch has it.
    package let loss: Double?
    /// f32 `[rows, length, vocabulary]` or `[rows, labels]`.
    package let logits: Tensor
    /// f32 `[rows, length, hiddenSize]`: what the head sees.
    package let hidden: Tensor
    /// f32 `[rows, hiddenSize]`; nil without a pooler.
    package let pooled: Tensor?
    /// f32 `[rows, length, layers or 1, experts]`: what a router gave each expert; nil without one.
    package let shares: Tensor?
}

extension ForwardOutput {
    /// The mean of each sample's states where there is no padding, at length 1 (as sentence-transformers' pooling and normalisation):
    /// f32 `[rows, hiddenSize]`.
    package func sentenceEmbedding(_ batch: Batch, _ engine: Engine) throws(PEFTError) -> Tensor {
        guard hidden.shape.count == 3, batch.source == nil, hidden.shape[1] == batch.length else {
            throw PEFTError(.unsupported, "\"sentence_embedding\" of states \(hidden.shape), which are not the batch's \(batch.rows) × \(batch.length) tokens")
        }
        let (length, width, states) = (batch.length, hidden.columns, try hidden.floats(engine))
        var result: [Float] = []
        for row in 0..<batch.rows {
            var sum = [Float](repeating: 0, count: width)
            for token in row * length..<(row + 1) * length where batch.keyMask?[token] != 0 {
                for column in 0..<width { sum[column] += states[token * width + column] }
            }
            let norm = max(sum.reduce(0) { $0 + $1 * $1 }.squareRoot(), 1e-12)
            result += sum.map { $0 / norm }
        }
        return try Tensor(engine, result, shape: [batch.rows, width])
    }

    /// The two logits of each token, f32 `[rows, length]` each; nil for models that find no answers.
    package func answerLogits(_ model: Model) throws(PEFTError) -> (start: Tensor, end: Tensor)? {
        guard model.task == .questionAnswering else { return nil }
        let values = try logits.floats(model.engine)
        let shape = Array(logits.shape.dropLast())
        func every(_ offset: Int) -> [Float] { stride(from: offset, to: values.count, by: 2).map { values[$0] } }
        return (try Tensor(model.engine, every(0), shape: shape), try Tensor(model.engine, every(1), shape: shape))
    }
}

extension Model {
    /// A forward pass over host data, under the read lock.
    ///
    /// - Parameters:
    ///   - routing: asked for inside the lock.
    ///   - isTraining: dropout is active, drawn from `random`.
    package func forward(_ batch: Batch, _ routing: @autoclosure () throws(PEFTError) -> Routing, isTraining: Bool = false, random: RandomStream = RandomStream(seed: 0)) throws(PEFTError) -> ForwardOutput {
        try ModelLoss.check(batch, self)
        return try lock.read { () throws(PEFTError) in
            let tape = Tape(engine, precision, isTraining: isTraining, random: random)
            let routing = try routing()
            let (input, context, batch) = try ModelLoss.input(batch, self, routing, tape)
            context.shares = RoutedShares()
            let hidden = try hidden(input, context)
            let logits = try logits(hidden, of: input, context).value
            let plain = logits.dtype == .f32 ? logits : try logits.converted(to: .f32, engine)
            var loss: Double?
            if batch.hasLabels {
                let tape = Tape(engine, precision)
                var result = try ModelLoss.withPenalties(try ModelLoss.headLoss(Variable(plain), batch, self, tape), routing, tape, factor: 1)
                if let shadow = context.shadowStart, task == .causalLM {
                    let own = try self.logits(Variable(shadow.state.value), of: input, context).value.converted(to: .f32, engine)
                    result = try result.adding(try ModelLoss.headLoss(Variable(own), batch, self, tape).weighted(shadow.weight), weight: 1, tape)
                    result = LossResult(sum: result.sum, count: result.count / 2, variable: result.variable)
                }
                loss = result.count == 0 ? .nan : result.sum / Double(result.count)
            }
            let states = hidden.value.dtype == .f32 ? hidden.value : try hidden.value.converted(to: .f32, engine)
            let pooled = try pooled(hidden, context)?.value
            func perToken(_ tensor: Tensor) throws(PEFTError) -> Tensor {
                // Pictures are as many tokens as they have patches.
                let tokens = tensor.rows / max(batch.rows, 1)
                if !batch.featureShape.isEmpty { return tokens > 1 ? try tensor.reshaped([batch.rows, tokens, tensor.columns]) : tensor }
                return tensor.rows == batch.rows * batch.length && (task != .classification || batch.length > 1)
                    ? try tensor.reshaped([batch.rows, batch.length, tensor.columns]) : tensor
            }
            let layers = context.shares?.layers ?? []
            let shares = try layers.first.map { (first) throws(PEFTError) in
                try tape.concatenateColumns(layers.map { Variable($0) }).value.reshaped([batch.rows, batch.length, layers.count, first.columns])
            }
            return ForwardOutput(
                loss: loss, logits: task == .classification ? plain : try perToken(plain), hidden: try perToken(states),
                pooled: try pooled.map { (tensor) throws(PEFTError) in tensor.dtype == .f32 ? tensor : try tensor.converted(to: .f32, engine) }, shares: shares)
        }
    }

    /// Loss and gradients of `batch`; nothing changes.
    /// - Throws: `.argument` without labels, `.numeric` for a loss that is not finite.
    package func gradients(_ batch: Batch, _ routing: @autoclosure () throws(PEFTError) -> Routing, isTraining: Bool = false, random: RandomStream = RandomStream(seed: 0)) throws(PEFTError) -> (
        loss: Double, gradients: GradientStore
    ) {
        try ModelLoss.check(batch, self)
        guard batch.hasLabels else { throw PEFTError(.argument, "gradients need 'labels'") }
        return try lock.read { () throws(PEFTError) in
            let store = GradientStore(engine)
            let tape = Tape(engine, precision, gradients: store, isTraining: isTraining, random: random)
            let (loss, seed) = try ModelLoss.loss(self, batch, try routing(), tape)
            try tape.backward(from: loss.variable, gradient: try Tensor(engine, [seed], shape: [1]))
            return (loss.count == 0 ? .nan : loss.sum / Double(loss.count), store)
        }
    }
}
