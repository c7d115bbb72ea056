package import Platform

/// How an adapter is trained. Names in messages are those of the JSON keys, which follow transformers' `TrainingArguments`.
package struct TrainerOptions: Sendable, Equatable {
    /// Whether each block's activations are kept for the backward pass or computed again.
    package enum Recomputation: Sendable, Equatable {
        case off
        case on
        /// As many blocks are computed again as the memory budget demands.
        case automatic
    }

    package var optimizer = OptimizerOptions()
    package var schedule = LearningRateSchedule.Shape.linear
    package var warmupSteps = 0
    /// Updates of the whole run; nil: as many as `epochs` over the data set make. Without either (a host that calls `step`
    /// itself) a schedule that needs an end is an error.
    package var maxSteps: Int?
    package var epochs = 1
    /// Micro-batches of one update: each loss is divided by this before its backward pass.
    package var accumulationSteps = 1
    /// nil: no clipping.
    package var maximumGradientNorm: Double? = 1
    package var recomputation = Recomputation.automatic
    /// Of dropout.
    package var seed: UInt64 = 0
    /// Updates between two evaluations of a run; nil: one at the end.
    package var evaluationSteps: Int?
    /// Evaluations in a row without a better loss after which a run stops; nil: never. The run then leaves the adapter
    /// as it was at its best evaluation.
    package var patience: Int?
    /// Dropout is active.
    package var usesDropout = true
    /// But in steps of a host's own as its model's mode says.
    package var followsMode = false
    /// Forward products round activations and weights to eight bits (`Precision.roundsForward`).
    package var roundsForward = false

    package init() {}

    /// - Throws: `.argument` naming the option, its value and its range.
    package func validate() throws(PEFTError) {
        try optimizer.validate()
        try TrainerOptions.check(warmupSteps, "warmup_steps", atLeast: 0)
        if let maxSteps { try TrainerOptions.check(maxSteps, "max_steps", atLeast: 1) }
        try TrainerOptions.check(epochs, "epochs", atLeast: 1)
        try TrainerOptions.check(accumulationSteps, "gradient_accumulation_steps", atLeast: 1)
        if let evaluationSteps { try TrainerOptions.check(evaluationSteps, "evaluation_steps", atLeast: 1) }
        if let patience { try TrainerOptions.check(patience, "early_stopping_patience", atLeast: 1) }
        if let norm = maximumGradientNorm, !(norm > 0 && norm.isFinite) {
            throw PEFTError(.argument, "max_grad_norm is \(norm); it must be above 0, or null for no clipping")
        }
    }

    private static func check(_ value: Int, _ name: String, atLeast minimum: Int) throws(PEFTError) {
        guard value >= minimum, value <= 1 << 40 else { throw PEFTError(.argument, "\(name) is \(value); it must be at least \(minimum)") }
    }

    /// All that decides the numbers of a run, for comparison with a checkpoint: name and value, in a fixed order.
    var identity: [(name: String, value: String)] {
        // A run of constant rate may be made longer; elsewhere its length is part of every rate.
        let end = schedule.needsEnd ? [("max_steps", maxSteps.map { "\($0)" } ?? "null"), ("epochs", maxSteps == nil ? "\(epochs)" : "null")] : []
        let rounding = roundsForward ? [("int8_activations", "true")] : []
        let damping = optimizer.riemannianDamping.map { [("riemannian_reg", "\($0)")] } ?? []
        return end + rounding + damping + [
            ("optimizer", optimizer.rule.rawValue), ("lr", "\(optimizer.learningRate)"), ("betas", "[\(optimizer.beta1), \(optimizer.beta2)]"),
            ("eps", "\(optimizer.epsilon)"), ("weight_decay", "\(optimizer.weightDecay)"), ("momentum", "\(optimizer.momentum)"),
            ("loraplus_lr_ratio", optimizer.loraPlusRatio.map { "\($0)" } ?? "null"),
            ("loraplus_lr_embedding", "\(optimizer.loraPlusEmbeddingRate)"), ("loraplus_weight_decay", "\(optimizer.loraPlusWeightDecay)"),
            ("lr_scheduler", schedule.rawValue), ("warmup_steps", "\(warmupSteps)"), ("gradient_accumulation_steps", "\(accumulationSteps)"),
            ("max_grad_norm", maximumGradientNorm.map { "\($0)" } ?? "null"), ("seed", "\(seed)"), ("dropout", followsMode ? "mode" : "\(usesDropout)"),
        ]
    }
}
