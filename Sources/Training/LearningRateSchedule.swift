internal import Glibc
internal import Platform

/// How the learning rate changes over the updates of a run; the formulas of `transformers.get_scheduler`.
package struct LearningRateSchedule: Sendable, Equatable {
    package enum Shape: String, Sendable, CaseIterable {
        /// The full rate from the first update on; as in transformers, `warmupSteps` has no part in it.
        case constant
        case constantWithWarmup = "constant_with_warmup"
        case linear
        case cosine

        /// The rate depends on how many updates the run has.
        package var needsEnd: Bool { self == .linear || self == .cosine }
    }

    package let shape: Shape
    package let warmupSteps: Int
    /// Updates of the whole run: where `linear` and `cosine` reach zero.
    package let totalSteps: Int

    package init(_ shape: Shape, warmupSteps: Int = 0, totalSteps: Int) {
        self.shape = shape
        self.warmupSteps = warmupSteps
        self.totalSteps = totalSteps
    }

    /// Factor on the base rate of update number `step`, counted from 0 (the schedule steps after the optimizer). The
    /// first update of a warm-up has rate 0, as in transformers. Past the end: 0 for `linear` and `cosine`.
    package func factor(_ step: Int) -> Double {
        if shape != .constant, step < warmupSteps { return Double(step) / Double(max(1, warmupSteps)) }
        let span = Double(max(1, totalSteps - warmupSteps))
        switch shape {
        case .constant, .constantWithWarmup:
            return 1
        case .linear:
            return max(0, Double(totalSteps - step) / span)
        case .cosine:
            // transformers lets a cosine rise again past the end of the run; nobody wants that, so it stays at zero.
            let progress = min(1, Double(step - warmupSteps) / span)
            return max(0, 0.5 * (1 + cos(.pi * progress)))
        }
    }
}
