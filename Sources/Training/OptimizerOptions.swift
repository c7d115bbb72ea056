package import Platform

/// Which update rule, and its numbers. Defaults are torch's, except where a comment says otherwise.
package struct OptimizerOptions: Sendable, Equatable {
    package enum Rule: String, Sendable, CaseIterable {
        case adamw
        case adamw8bit
        case adafactor
        case lion
        case sgd
        /// LoRA-FA (arXiv:2308.03303): A stays fixed, B's gradient is projected. As in `peft.optimizers`, its β are
        /// (0.9, 0.999) and its ε is 1e-6, whatever `beta1`, `beta2`, `epsilon` say.
        case loraFA = "lorafa"
    }

    package var rule = Rule.adamw
    package var learningRate = 2e-4
    package var beta1 = 0.9
    package var beta2 = 0.999
    package var epsilon = 1e-8
    /// Decoupled for AdamW (torch's default is 0.01; PEFT's examples and this library use 0), added to the gradient for SGD.
    package var weightDecay = 0.0
    /// SGD only.
    package var momentum = 0.0
    /// Gradients of LoRA's pairs are preconditioned (`RiemannianPreconditioner`), with this on the diagonals; nil: they are not.
    package var riemannianDamping: Double?
    /// LoRA+ (arXiv:2402.12354): learning rate of B over that of A; nil: one rate for all.
    package var loraPlusRatio: Double?
    /// Rate of LoRA factors of embeddings under LoRA+; peft.optimizers' default.
    package var loraPlusEmbeddingRate = 1e-6
    /// Replaces `weightDecay` under LoRA+ for all but biases and norms.
    package var loraPlusWeightDecay = 0.0

    package init() {}

    /// - Throws: `.argument` naming the value and its range.
    package func validate() throws(PEFTError) {
        try OptimizerOptions.check(learningRate, "lr", learningRate >= 0, "at least 0")
        try OptimizerOptions.check(beta1, "betas[0]", beta1 >= 0 && beta1 < 1, "in [0, 1)")
        try OptimizerOptions.check(beta2, "betas[1]", beta2 >= 0 && beta2 < 1, "in [0, 1)")
        try OptimizerOptions.check(epsilon, "eps", epsilon >= 0, "at least 0")
        try OptimizerOptions.check(weightDecay, "weight_decay", weightDecay >= 0, "at least 0")
        try OptimizerOptions.check(momentum, "momentum", momentum >= 0 && momentum < 1, "in [0, 1)")
        if momentum != 0, rule != .sgd { throw PEFTError(.argument, "momentum \(momentum) belongs to the optimizer 'sgd', not '\(rule.rawValue)'") }
        if let damping = riemannianDamping {
            try OptimizerOptions.check(damping, "riemannian_reg", damping > 0, "above 0 (PEFT's default is 0.01)")
            if rule == .loraFA { throw PEFTError(.argument, "riemannian_reg (both factors move) and 'lorafa' (A is fixed) exclude each other") }
        }
        guard let ratio = loraPlusRatio else { return }
        try OptimizerOptions.check(ratio, "loraplus_lr_ratio", ratio > 0, "above 0")
        try OptimizerOptions.check(loraPlusEmbeddingRate, "loraplus_lr_embedding", loraPlusEmbeddingRate >= 0, "at least 0")
        try OptimizerOptions.check(loraPlusWeightDecay, "loraplus_weight_decay", loraPlusWeightDecay >= 0, "at least 0")
        if rule == .loraFA { throw PEFTError(.argument, "loraplus_lr_ratio (a rate for B over that of A) and 'lorafa' (A is fixed) exclude each other") }
    }

    private static func check(_ value: Double, _ name: String, _ isRight: Bool, _ range: String) throws(PEFTError) {
        guard isRight, value.isFinite else { throw PEFTError(.argument, "\(name) is \(value); it must be \(range)") }
    }
}
