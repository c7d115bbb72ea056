internal import Autograd
internal import Models
package import Platform
internal import Tensors

/// Where a run stands, after each update.
package struct TrainingProgress: Sendable {
    /// Optimizer steps so far, and of the whole run.
    package var step = 0
    package var totalSteps = 0
    /// Times the data set was gone through.
    package var epoch = 0
    /// Of the last micro-batch.
    package var lastLoss = 0.0
    /// Mean over about the last twenty micro-batches.
    package var loss = 0.0
    /// Latest; NaN before the first.
    package var evaluationLoss = Double.nan
    package var learningRate = 0.0
    package var gradientNorm = 0.0
    /// In this call.
    package var tokensPerSecond = 0.0
    package var seconds = 0.0
    package var secondsLeft = 0.0
    /// Bytes of the engine's budget.
    package var memory = 0
    package var memoryPeak = 0
}

/// What `advance` and `run` keep from one update to the next; part of a checkpoint.
struct RunState {
    /// Micro-batches in `smoothedLoss`.
    var lossCount = 0
    var smoothedLoss = 0.0
    var evaluationLoss = Double.nan
    var bestLoss = Double.infinity
    /// Evaluations since the best one.
    var badEvaluations = 0
    /// The parameters at the best evaluation, in the optimizer's order; empty before it, or without early stop.
    var best: [Tensor] = []
    /// Step of the last evaluation.
    var evaluatedStep = 0
    var isOver = false

    mutating func add(loss: Double) {
        lossCount += 1
        smoothedLoss += (loss - smoothedLoss) / Double(min(lossCount, 20))
    }
}

/// How a call of `advance` ended.
package struct AdvanceResult: Sendable {
    /// The last micro-batch of the call; zeros when there was nothing left to do.
    package var last = StepResult()
    /// The run is complete.
    package var isOver = false
}

extension Trainer {
    /// Trains until `maxSteps` or `epochs` are done, evaluation stops improving, or `progress` returns false.
    ///
    /// Micro-batches come from `loader`, epoch after epoch. `evaluation` is scored every `evaluationSteps` and at the end.
    /// The first call without `maxSteps` goes through the data set once to count its batches.
    ///
    /// - Throws: `.cancelled` when `progress` or `cancel` stopped it: adapter, optimizer and position are those after the
    ///   last step, another call goes on. Else what `step`, the data set and the memory budget throw.
    package func run(_ loader: BatchLoader, evaluation: DataSet? = nil, progress: ((TrainingProgress) -> Bool)? = nil) throws(PEFTError) {
        _ = try advance(loader, evaluation: evaluation, seconds: .infinity, progress: progress)
    }

    /// As `run`, but returns when about `seconds` are over: a micro-batch is begun only if it is likely to end in time,
    /// but at least one is done.
    package func advance(
        _ loader: BatchLoader, evaluation: DataSet? = nil, seconds: Double, progress: ((TrainingProgress) -> Bool)? = nil
    ) throws(PEFTError) -> AdvanceResult {
        let totalSteps = try findTotalSteps(loader.dataSet)
        let start = Clock.seconds
        let firstStep = step
        var (tokens, microBatches, result) = (0, 0, AdvanceResult())
        while step < totalSteps, !runState.isOver {
            let elapsed = Clock.seconds - start
            if microBatches > 0, elapsed + elapsed / Double(microBatches) > seconds { return result }
            if takeCancellation() { throw Trainer.cancelledError }
            result.last = try nextStep(loader)
            microBatches += 1
            tokens += result.last.tokens
            runState.add(loss: result.last.loss)
            guard result.last.updated else { continue }
            if let evaluation, isEvaluationDue(totalSteps) { try evaluateRun(evaluation) }
            guard let progress else { continue }
            let passed = Clock.seconds - start
            let report = self.progress(result.last, loader, totalSteps, passed, tokens: tokens, updates: step - firstStep)
            // Who stops a run after its last step has stopped nothing.
            guard progress(report) || step >= totalSteps else { throw Trainer.cancelledError }
        }
        if !runState.isOver, evaluation != nil, options.patience != nil { try restoreBest() }
        runState.isOver = true
        result.isOver = true
        return result
    }

    private static var cancelledError: PEFTError { PEFTError(.cancelled, "training was cancelled after a complete step; the adapter is usable") }

    /// A micro-batch from the loader. A step that fails leaves the loader in front of its batch.
    private func nextStep(_ loader: BatchLoader) throws(PEFTError) -> StepResult {
        let position = loader.position
        do throws(PEFTError) {
            while true {
                if let batch = try loader.next() { return try step(batch.shifted(for: model)) }
            }
        } catch {
            try loader.move(to: position)
            throw error
        }
    }

    /// Updates of the whole run: `maxSteps`, or what `epochs` make.
    private func findTotalSteps(_ dataSet: DataSet) throws(PEFTError) -> Int {
        if let totalSteps { return totalSteps }
        let batches = try checkedProduct(dataSet.countBatches(), options.epochs, of: "epochs")
        let steps = batches / options.accumulationSteps + (batches % options.accumulationSteps == 0 ? 0 : 1)
        totalSteps = steps
        return steps
    }

    private func progress(_ last: StepResult, _ loader: BatchLoader, _ totalSteps: Int, _ seconds: Double, tokens: Int, updates: Int) -> TrainingProgress {
        let memory = model.engine.budget.statistics
        return TrainingProgress(
            step: step, totalSteps: totalSteps, epoch: loader.position.epoch, lastLoss: last.loss, loss: runState.smoothedLoss,
            evaluationLoss: runState.evaluationLoss, learningRate: last.learningRate, gradientNorm: last.gradientNorm,
            tokensPerSecond: seconds > 0 ? Double(tokens) / seconds : 0, seconds: seconds,
            secondsLeft: seconds / Double(max(updates, 1)) * Double(max(totalSteps - step, 0)), memory: memory.live + memory.kept, memoryPeak: memory.peak)
    }
}

// MARK: Evaluation and early stop

extension Trainer {
    private func isEvaluationDue(_ totalSteps: Int) -> Bool {
        guard runState.evaluatedStep != step else { return false }
        return step >= totalSteps || options.evaluationSteps.map { step % $0 == 0 } ?? false
    }

    private func evaluateRun(_ dataSet: DataSet) throws(PEFTError) {
        let loss = try evaluate(dataSet).loss
        runState.evaluationLoss = loss
        runState.evaluatedStep = step
        guard let patience = options.patience else { return }
        if loss < runState.bestLoss {
            try keepBest()
            runState.bestLoss = loss
            runState.badEvaluations = 0
        } else {
            runState.badEvaluations += 1
            if runState.badEvaluations >= patience {
                try restoreBest()
                runState.isOver = true
            }
        }
    }

    private func keepBest() throws(PEFTError) {
        let engine = model.engine
        if runState.best.isEmpty {
            var best: [Tensor] = []
            for parameter in optimizer.parameters { best.append(try Tensor(engine, parameter.value.shape, .f32, .adapters)) }
            runState.best = best
        }
        for (parameter, copy) in zip(optimizer.parameters, runState.best) { engine.axpby(1, parameter.value, 0, into: copy) }
    }

    /// Sets the parameters to those of the best evaluation.
    private func restoreBest() throws(PEFTError) {
        guard !runState.best.isEmpty else { return }
        model.lock.write {
            for (parameter, copy) in zip(optimizer.parameters, runState.best) { model.engine.axpby(1, copy, 0, into: parameter.value) }
        }
        runState.evaluationLoss = runState.bestLoss
    }
}
