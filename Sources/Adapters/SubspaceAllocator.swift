internal import Autograd
internal import Glibc
internal import Platform
internal import Tensors

/// How many of AdaMSS' groups still train after a step.
struct SubspaceSchedule: Sendable {
    let target: Int
    let (first, last, interval): (Int, Int, Int)
    let exponent: Double
    /// Of the means over time.
    let (importance, uncertainty): (Float, Float)

    /// - Returns: nil: all train always.
    init?(_ configuration: AdapterConfiguration) throws(PEFTError) {
        target = try configuration.positive("asa_target_subspaces")
        first = try configuration.integer("init_warmup")
        last = try configuration.integer("final_warmup")
        interval = try configuration.positive("mask_interval")
        exponent = try configuration.number("asa_schedule_exponent")
        (importance, uncertainty) = (try configuration.probability("asa_importance_beta"), try configuration.probability("asa_uncertainty_beta"))
        guard try configuration.flag("use_asa") else { return nil }
        guard first >= 0, last > first, last < 1 << 40, exponent > 0 else {
            throw PEFTError(.argument, "init_warmup \(first), final_warmup \(last), asa_schedule_exponent \(exponent): a first step, a later one, and a positive number are expected")
        }
    }

    func count(_ step: Int, of total: Int) -> Int {
        let left = 1 - Double(step - first) / Double(last - first)
        return Int(Double(target) + Double(total - target) * pow(left, exponent))
    }
}

/// Adaptive subspace allocation of AdaMSS: groups that matter least for the loss stop training, for good: the score of a
/// group is the mean of Ī·Ū (`Importance`) over A plus that over B.
final class SubspaceAllocator: AdapterCompanion {
    private let groups: [(a: Importance, b: Importance)]
    private let schedule: SubspaceSchedule
    /// f32 `[groups]`: 1: it trains.
    private let isKept: Tensor

    init(_ pairs: [(a: Parameter, b: Parameter)], _ schedule: SubspaceSchedule, _ engine: Engine) throws(PEFTError) {
        groups = try pairs.map { (pair) throws(PEFTError) in (try Importance(pair.a, engine), try Importance(pair.b, engine)) }
        self.schedule = schedule
        isKept = try Tensor(engine, [pairs.count], .f32, .adapters)
        isKept.fill { 1 }
    }

    private var all: [Importance] { groups.flatMap { [$0.a, $0.b] } }
    private var kept: [Bool] { unsafe isKept.withFloats { unsafe $0.map { $0 != 0 } } }

    var state: [(name: String, tensor: Tensor)] {
        [("kept_groups", isKept)] + all.flatMap(\.state)
    }

    func willStep(_ gradients: GradientStore) {
        for (group, isKept) in zip(groups, kept) where !isKept { (group.a.parameter.isTrainable, group.b.parameter.isTrainable) = (false, false) }
    }

    func didStep(_ step: Int, _ gradients: GradientStore, factor: Double) {
        let step = step - 1  // PEFT's callback counts the steps before this one.
        guard schedule.first...schedule.last ~= step else { return }
        for item in all where item.parameter.isTrainable {
            item.observe(gradients, factor, beta: schedule.importance, gamma: schedule.uncertainty, isAroundNew: false)
        }
        guard step % schedule.interval == 0 else { return }
        keep(schedule.count(step, of: groups.count))
        for item in all { item.clear() }
    }

    /// As in PEFT what scores as high as the last of `count` does not train on either.
    private func keep(_ count: Int) {
        let training = groups.indices.filter { groups[$0].a.parameter.isTrainable }
        guard count < training.count else { return }
        let scores = training.map { score(groups[$0].a) + score(groups[$0].b) }
        let threshold = count > 0 ? scores.sorted(by: >)[count - 1] : .infinity
        unsafe isKept.withMutableFloats { kept in
            for (group, score) in zip(training, scores) where !(score > threshold) { unsafe kept[group] = 0 }
        }
        for group in training { (groups[group].a.parameter.isTrainable, groups[group].b.parameter.isTrainable) = (kept[group], kept[group]) }
    }

    private func score(_ item: Importance) -> Float {
        unsafe item.mean.withFloats { mean in
            unsafe item.variation.withFloats { variation in
                unsafe zip(mean, variation).reduce(0) { $0 + $1.0 * $1.1 } / Float(max(mean.count, 1))
            }
        }
    }
}
