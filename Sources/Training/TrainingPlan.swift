internal import Autograd
internal import Models
package import Platform
package import Tensors

/// What one training step takes, found by executing it without data. Bytes as the budget counts them.
package struct TrainingPlan: Sendable {
    /// Weights and adapters as they are, and the step's own peak of each category.
    package let byCategory: [(category: MemoryCategory, bytes: Int)]
    /// Peak of all together: what the budget must have.
    package let total: Int
    /// From the first on.
    package let recomputedBlocks: Int
    /// Of the model's budget.
    package let limit: Int

    package var fits: Bool { total <= limit }

    func tooLarge(rows: Int, length: Int) -> PEFTError {
        let parts = byCategory.filter { $0.bytes > 0 }.map { "\($0.category.name) \($0.bytes)" }.joined(separator: ", ")
        let advice = recomputedBlocks > 0 ? "a smaller batch or shorter rows would help" : "gradient checkpointing, a smaller batch or shorter rows would help"
        return PEFTError(
            .memory, "a training step on \(rows) × \(length) tokens needs \(total) bytes (\(parts)), the memory budget is \(limit); \(advice)",
            detail: Int64(total - limit))
    }
}

extension Trainer {
    /// The plan of a step on `rows` × `length` tokens (all learned; an encoder-decoder: after a source of `sourceLength`, or as many,
    /// tokens); nothing is taken. With `Recomputation.automatic`:
    /// as many blocks are recomputed as the budget demands.
    package func plan(rows: Int, length: Int, featureShape: [Int] = [], sourceLength: Int? = nil, sourceShape: [Int] = [], adapters: [String?]? = nil) throws(PEFTError) -> TrainingPlan {
        let (count, overflow) = rows.multipliedReportingOverflow(by: length)
        guard rows > 0, length > 0, !overflow, count <= 1 << 24 else {
            throw PEFTError(.argument, "a plan for \(rows) rows of \(length) tokens; 1 to \(1 << 24) tokens are planned for")
        }
        let (featureShape, sourceShape) = (featureShape.isEmpty ? model.network.featureShape ?? [] : featureShape, sourceShape.isEmpty ? model.network.sourceShape ?? [] : sourceShape)
        let zeros = [Int32](repeating: 0, count: count)
        let labels = [Int32](repeating: 0, count: ModelLoss.labelCount(model.task, rows: rows, tokens: count))
        var batch = Batch(rows: rows, length: length, ids: zeros, labels: labels)
        if !featureShape.isEmpty {
            let values = try checkedProduct(rows, featureShape.reduce(1, *), of: "batch")
            batch = Batch(rows: rows, features: Array(repeating: 0, count: values), featureShape: featureShape, labels: labels)
        }
        if model.task == .questionAnswering { batch.ends = labels }
        batch.tasks = Array(repeating: 0, count: rows)
        batch.adapters = adapters
        if model.network.readsSource {
            let (source, values) = (sourceLength ?? length, try checkedProduct(rows, sourceShape.reduce(1, *), of: "batch"))
            let tokens = try checkedProduct(rows, source, of: "batch")
            batch.source = SourceBatch(length: source, ids: Array(repeating: 0, count: sourceShape.isEmpty ? tokens : 0), features: Array(repeating: 0, count: sourceShape.isEmpty ? 0 : values), featureShape: sourceShape)
        }
        try ModelLoss.check(batch, model)
        let all = max(model.network.blockCount, 1)
        if options.recomputation == .on { return try plan(batch, recomputedBlocks: all) }
        let plain = try plan(batch, recomputedBlocks: 0)
        if plain.fits || options.recomputation == .off { return plain }
        // As few as will do: each costs its forward pass once more.
        var (enough, tooFew) = (try plan(batch, recomputedBlocks: all), 0)
        while enough.fits, enough.recomputedBlocks - tooFew > 1 {
            let middle = try plan(batch, recomputedBlocks: (enough.recomputedBlocks + tooFew) / 2)
            if middle.fits { enough = middle } else { tooFew = middle.recomputedBlocks }
        }
        return enough
    }

    private func plan(_ batch: Batch, recomputedBlocks: Int) throws(PEFTError) -> TrainingPlan {
        let planner = model.engine.planner()
        let store = GradientStore(planner)
        // From an update's second micro-batch on the gradients are there before the first activation.
        if options.accumulationSteps > 1 { for parameter in trainee.trainableParameters { _ = try store.buffer(for: parameter) } }
        let tape = Tape(planner, precision, gradients: store, isTraining: options.usesDropout)
        _ = try Trainer.accumulate(model, trainee, batch, tape, accumulationSteps: options.accumulationSteps, recomputedBlocks)
        let step = planner.budget.statistics
        let now = model.engine.budget.statistics
        // This trainer's gradients may be there already: they are in the step's plan.
        var own = 0
        for parameter in trainee.trainableParameters { own += gradients.gradient(of: parameter).map { MemoryBudget.sizeClass($0.byteCount) } ?? 0 }
        var bytes: [(category: MemoryCategory, bytes: Int)] = []
        for category in MemoryCategory.allCases {
            let there = now.byCategory[category.rawValue] - (category == .gradients ? own : 0)
            bytes.append((category, there + step.peakByCategory[category.rawValue]))
        }
        return TrainingPlan(byCategory: bytes, total: now.live - own + step.peakLive, recomputedBlocks: recomputedBlocks, limit: model.engine.budget.limit)
    }
}
