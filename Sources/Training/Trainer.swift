internal import Adapters
internal import Autograd
internal import Glibc
package import Models
package import Platform
internal import Synchronization
internal import Tensors

/// What one step did.
package struct StepResult: Sendable {
    /// Mean loss of this micro-batch.
    package var loss = 0.0
    /// The optimizer ran; false: gradients were accumulated.
    package var updated = false
    /// Norm of all gradients before clipping; 0 when not updated.
    package var gradientNorm = 0.0
    /// Used for this update (of parameters in no special group).
    package var learningRate = 0.0
    /// Optimizer steps so far.
    package var step = 0
    /// Tokens of this micro-batch, padding excluded.
    package var tokens = 0
    package var seconds = 0.0
}

/// Trains parameters of adapters over a frozen model, a micro-batch at a time.
///
/// One thread at a time; sessions may run over the same model meanwhile: they see each update as a whole.
/// The numbers depend on nothing but the model, the parameters, the options and the batches, not on threads.
package final class Trainer {
    package let model: Model
    package let options: TrainerOptions
    package let trainee: Trainee
    /// Arithmetic of its steps.
    let precision: Precision
    let optimizer: any Optimizer
    private let preconditioner: RiemannianPreconditioner?
    let gradients: GradientStore
    /// Optimizer steps so far.
    package internal(set) var step = 0
    /// Micro-batches since the last of them.
    package internal(set) var microStep = 0
    /// Source of dropout masks.
    var random: RandomStream
    /// Optimizer steps of the whole run; nil: not known yet.
    package internal(set) var totalSteps: Int?
    /// Of `run` and `advance`.
    var runState = RunState()
    /// By [rows, length]: what the plan of such a batch said, where there is a budget to keep.
    private var recomputation: [PlannedBatch: Int] = [:]
    private struct PlannedBatch: Hashable {
        let sizes: [Int]
        let adapters: [String?]?
    }
    private let cancelled = Atomic(false)

    /// Takes the optimizer's memory.
    /// - Throws: `.argument` for wrong options or nothing to train, `.unsupported` for arithmetic that is not here, `.memory`.
    package init(_ model: Model, _ trainee: Trainee, _ options: TrainerOptions) throws(PEFTError) {
        try options.validate()
        self.model = model
        self.options = options
        self.trainee = trainee
        precision = try Trainer.precision(of: options, model)
        optimizer = try Trainer.makeOptimizer(trainee, options, model, model.engine)
        preconditioner = try options.optimizer.riemannianDamping.map { (damping) throws(PEFTError) in
            try RiemannianPreconditioner(trainee, damping: damping, model.engine)
        }
        gradients = GradientStore(model.engine)
        random = RandomStream(seed: options.seed, purpose: "dropout")
        totalSteps = options.maxSteps
    }

    private static func precision(of options: TrainerOptions, _ model: Model) throws(PEFTError) -> Precision {
        guard options.roundsForward else { return model.precision }
        guard model.precision == .bf16, model.engine.hasRoundedProducts else {
            throw PEFTError(
                .unsupported, "int8_activations needs a model that trains in bf16 (this one: \(model.precision.compute)) and a processor with AVX512-VNNI")
        }
        return Precision(activation: .bf16, compute: .bf16, roundsForward: true)
    }

    static func makeOptimizer(_ trainee: Trainee, _ options: TrainerOptions, _ model: Model, _ engine: Engine) throws(PEFTError) -> any Optimizer {
        if options.optimizer.rule == .loraFA { model.lock.write { trainee.fixForLoRAFA() } }
        let parameters = trainee.trainableParameters
        guard !parameters.isEmpty else { throw PEFTError(.argument, "there is nothing to train: no active adapter has trainable parameters") }
        let rates = parameters.map { parameter in
            let key = trainee.key(of: parameter)
            return ParameterRates(for: key, dimensions: parameter.value.shape.count, isLayerNorm: trainee.isLayerNorm(key, model), options.optimizer)
        }
        switch options.optimizer.rule {
        case .adamw: return try AdamW(parameters, rates, options.optimizer, engine)
        case .adamw8bit: return try AdamW8bit(parameters, rates, options.optimizer, engine)
        case .adafactor: return try Adafactor(parameters, rates, engine)
        case .lion: return try Lion(parameters, rates, options.optimizer, engine)
        case .sgd: return try SGD(parameters, rates, options.optimizer, engine)
        case .loraFA: return try LoRAFA(parameters, rates, trainee, engine)
        }
    }

    /// From any thread: the running `run`, `advance` or `evaluate` ends after its present step; if none runs, the next does at once.
    package func cancel() { cancelled.store(true, ordering: .relaxed) }

    /// True once after `cancel`.
    func takeCancellation() -> Bool { cancelled.exchange(false, ordering: .relaxed) }

    /// One micro-batch, forward and backward; after `accumulationSteps` of them an update.
    ///
    /// - Parameter isTraining: the model's mode, where the options follow it (`TrainerOptions.followsMode`).
    /// - Throws: `.argument` for a batch that does not fit the model, `.numeric` when loss or gradients are not finite,
    ///   `.memory`. Adapter and optimizer are then as they were; micro-batches accumulated for the update are dropped.
    package func step(_ batch: Batch, isTraining: Bool = true) throws(PEFTError) -> StepResult {
        let start = Clock.seconds
        try ModelLoss.check(batch, model)
        guard batch.hasLabels else { throw PEFTError(.argument, "training needs 'labels'") }
        let schedule = try schedule()
        let recomputedBlocks = try recomputedBlocks(for: batch)
        var result = StepResult(tokens: batch.tokenCount)
        let randomBefore = random
        do throws(PEFTError) {
            result.loss = try accumulate(batch, recomputedBlocks, isTraining: options.followsMode ? isTraining : options.usesDropout)
            if microStep + 1 == options.accumulationSteps { try update(schedule, &result) }
        } catch {
            random = randomBefore
            gradients.clear()
            microStep = 0
            throw error
        }
        microStep = result.updated ? 0 : microStep + 1
        result.step = step
        result.seconds = Clock.seconds - start
        return result
    }

    /// Forward and backward under the read lock; returns the loss.
    private func accumulate(_ batch: Batch, _ recomputedBlocks: Int, isTraining: Bool) throws(PEFTError) -> Double {
        let tape = Tape(model.engine, precision, gradients: gradients, isTraining: isTraining, random: random)
        let loss = try model.lock.read { () throws(PEFTError) in
            try Trainer.accumulate(model, trainee, batch, tape, accumulationSteps: options.accumulationSteps, recomputedBlocks)
        }
        random = tape.random
        return loss
    }

    /// The same on any tape: planning runs it too.
    static func accumulate(_ model: Model, _ trainee: Trainee, _ batch: Batch, _ tape: Tape, accumulationSteps: Int, _ recomputedBlocks: Int) throws(PEFTError) -> Double {
        let scale = 1 / Float(accumulationSteps)
        let (loss, seed) = try ModelLoss.loss(model, batch, try trainee.routing(of: batch), tape, gradientScale: scale, recomputedBlocks: recomputedBlocks)
        guard loss.count > 0 else { throw PEFTError(.argument, "nothing in the batch is to be learned: all labels are \(Sample.ignored)") }
        let mean = loss.sum / Double(loss.count)
        guard mean.isFinite else { throw PEFTError(.numeric, "the loss is \(mean); nothing was changed by this step") }
        try tape.backward(from: loss.variable, gradient: try Tensor(tape.engine, [seed], shape: [1]))
        return mean
    }

    /// Clips, updates under the write lock, and begins the next accumulation.
    func update(_ schedule: LearningRateSchedule, _ result: inout StepResult) throws(PEFTError) {
        let norm = GradientClipping.norm(of: optimizer.parameters, in: gradients, model.engine)
        guard norm.isFinite else { throw PEFTError(.numeric, "the norm of the gradients is \(norm); nothing was changed by this step") }
        let factor = schedule.factor(step)
        let clip = GradientClipping.factor(norm: norm, maximum: options.maximumGradientNorm)
        if let preconditioner { try model.lock.read { () throws(PEFTError) in try preconditioner.apply(to: gradients) } }
        model.lock.write {
            for companion in trainee.companions { companion.willStep(gradients) }
            optimizer.update(gradients, gradientScale: clip, rateFactor: factor)
            for companion in trainee.companions { companion.didStep(step + 1, gradients, factor: clip) }
        }
        gradients.clear()
        step += 1
        result.updated = true
        result.gradientNorm = norm
        result.learningRate = options.optimizer.learningRate * factor
    }

    func schedule() throws(PEFTError) -> LearningRateSchedule {
        if options.schedule.needsEnd, totalSteps == nil {
            throw PEFTError(.argument, "lr_scheduler '\(options.schedule.rawValue)' needs max_steps: it must know where the run ends")
        }
        return LearningRateSchedule(options.schedule, warmupSteps: options.warmupSteps, totalSteps: totalSteps ?? 0)
    }

    /// Mean loss per labelled token over a data set, without dropout.
    package func evaluate(_ dataSet: DataSet) throws(PEFTError) -> Evaluation {
        let loader = try BatchLoader(dataSet)
        var (sum, count) = (0.0, 0)
        while let batch = try loader.next() {
            if takeCancellation() { throw PEFTError(.cancelled, "evaluation was cancelled after \(count) tokens") }
            let loss = try evaluate(batch.shifted(for: model))
            sum += loss.sum
            count += loss.count
        }
        return Evaluation(loss: sum / Double(max(count, 1)), tokens: count)
    }

    /// Sum and number of the losses of a batch.
    package func evaluate(_ batch: Batch) throws(PEFTError) -> (sum: Double, count: Int) {
        try ModelLoss.check(batch, model)
        return try model.lock.read { () throws(PEFTError) in
            let loss = try ModelLoss.loss(model, batch, try trainee.routing(of: batch), Tape(model.engine, model.precision)).result
            return (loss.sum, loss.count)
        }
    }

    /// How many blocks are recomputed for a batch like this one; checks that it fits the budget before anything is taken.
    private func recomputedBlocks(for batch: Batch) throws(PEFTError) -> Int {
        guard model.engine.budget.limit != .max else { return options.recomputation == .on ? .max : 0 }
        let shape = PlannedBatch(sizes: [batch.rows, batch.length, batch.source?.length ?? 0], adapters: batch.adapters)
        if let known = recomputation[shape] { return known }
        let plan = try plan(rows: batch.rows, length: batch.length, featureShape: batch.featureShape, sourceLength: batch.source?.length, sourceShape: batch.source?.featureShape ?? [], adapters: batch.adapters)
        guard plan.fits else { throw plan.tooLarge(rows: batch.rows, length: batch.length) }
        recomputation[shape] = plan.recomputedBlocks
        return plan.recomputedBlocks
    }
}

/// Loss of a data set.
package struct Evaluation: Sendable {
    package let loss: Double
    /// Tokens the mean is over.
    package let tokens: Int
    package var perplexity: Double { exp(loss) }
}
