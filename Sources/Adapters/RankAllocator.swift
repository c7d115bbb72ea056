internal import Autograd
internal import Models
internal import Platform
internal import Tensors

/// How many ranks there are after a step, all layers together.
struct RankSchedule: Sendable {
    let target: Int
    /// Steps before the first allocation, after the last, between two.
    let (warmup, final, interval): (Int, Int, Int)
    let total: Int
    /// Of the means over time.
    let (sensitivity, uncertainty): (Float, Float)

    init(_ configuration: AdapterConfiguration) throws(PEFTError) {
        target = try configuration.positive("target_r")
        warmup = try configuration.integer("tinit")
        final = try configuration.integer("tfinal")
        interval = try configuration.positive("deltaT")
        total = try configuration.values.integer("total_step") ?? 0
        let size = 1 << 40  // so that differences fit
        guard total > 0, total < size else { throw PEFTError(.argument, "total_step is \(configuration.values["total_step"]?.text() ?? "null"); ADALORA must know how many steps there will be") }
        guard warmup >= 0, final >= 0, warmup < size, final < size, warmup < total - final else {
            throw PEFTError(.argument, "tinit \(warmup) and tfinal \(final) leave no step of \(total) (total_step) for allocating ranks")
        }
        sensitivity = Float(try configuration.number("beta1"))
        uncertainty = Float(try configuration.number("beta2"))
        guard sensitivity > 0, sensitivity < 1, uncertainty > 0, uncertainty < 1 else {
            throw PEFTError(.argument, "beta1 is \(sensitivity) and beta2 \(uncertainty); they must be between 0 and 1")
        }
    }

    /// Falls with the third power from `start` to `end`.
    func budget(_ step: Int, from start: Int, to end: Int) -> Int {
        if step <= warmup { return start }
        if step >= total - final { return end }
        let left = 1 - Double(step - warmup) / Double(total - final - warmup)
        return Int(Double(start - end) * (left * left * left) + Double(end))
    }
}

/// Which of a layer's ranks are left: f32 `[r]`, 1 or 0.
final class RankMask: Sendable {
    let values: Tensor

    init(_ rank: Int, _ engine: Engine) throws(PEFTError) {
        values = try Tensor(engine, [rank], .f32, .adapters)
        values.fill { 1 }
    }

    var list: [Bool] { unsafe values.withFloats { unsafe $0.map { $0 != 0 } } }
    /// nil: all.
    var kept: [Int]? {
        let list = list
        return list.allSatisfy { $0 } ? nil : list.indices.filter { list[$0] }
    }
}

/// Gives ranks to the layers whose parameters matter most for the loss, and takes others: the score of rank i is the sum of Ī·Ū
/// (`Importance`) for E_i, and of the means over A_i and B_i.
final class RankAllocator: AdapterCompanion {
    private let modules: [AdaLoRAModule]
    private let schedule: RankSchedule
    private let orthogonality: Float
    /// Of A, E and B of each module.
    private let importance: [Importance]
    /// f32 `[1]`: 1 when ranks were taken.
    private let decided: Tensor

    init(_ modules: [AdaLoRAModule], _ schedule: RankSchedule, orthogonality: Float, _ engine: Engine) throws(PEFTError) {
        self.modules = modules
        self.schedule = schedule
        self.orthogonality = orthogonality
        importance = try modules.flatMap(\.parameters).map { (parameter) throws(PEFTError) in try Importance(parameter, engine) }
        decided = try .zeros(engine, [1], .f32, .adapters)
    }

    var state: [(name: String, tensor: Tensor)] {
        [("allocated", decided)] + importance.flatMap(\.state) + modules.map { ($0.e.name + ".kept", $0.mask.values) }
    }

    func complete(_ configuration: inout JSONObject) {
        guard unsafe decided.withFloats({ unsafe $0.first == 1 }) else { return }
        var pattern = JSONObject()
        for module in modules { pattern[module.layer.name + ".lora_E"] = .array(module.mask.list.map { .bool($0) }) }
        configuration["rank_pattern"] = .object(pattern)
    }

    func didStep(_ step: Int, _ gradients: GradientStore, factor: Double) {
        let last = schedule.total - schedule.final
        if step < last {
            for item in importance { item.observe(gradients, factor, beta: schedule.sensitivity, gamma: schedule.uncertainty, isAroundNew: true) }
        }
        if step == last || step < last && step > schedule.warmup && step % schedule.interval == 0 { allocate(step) }
        if step == last { for item in importance { item.clear() } }
        // What was given up stays given up.
        if step >= last { for module in modules { drop(module) } }
    }

    /// Takes the ranks with the lowest scores, as many as there are too many.
    private func allocate(_ step: Int) {
        let scores = modules.indices.map { self.scores(of: $0) }
        let all = scores.flatMap { $0 }
        let surplus = all.count - schedule.budget(step, from: all.count, to: schedule.target * modules.count)
        let threshold = surplus > 0 && surplus <= all.count ? all.sorted()[surplus - 1] : -.infinity
        for (module, scores) in zip(modules, scores) {
            unsafe module.mask.values.withMutableFloats { kept in
                for rank in 0..<min(kept.count, scores.count) { unsafe kept[rank] = scores[rank] <= threshold ? 0 : 1 }
            }
            drop(module)
        }
        decided.fill { 1 }
    }

    private func drop(_ module: AdaLoRAModule) {
        let kept = module.mask.list
        unsafe module.e.value.withMutableFloats { e in
            for rank in 0..<min(e.count, kept.count) where !kept[rank] { unsafe e[rank] = 0 }
        }
    }

    /// Of each rank of a module.
    private func scores(of index: Int) -> [Float] {
        let (a, e, b) = (importance[3 * index], importance[3 * index + 1], importance[3 * index + 2])
        let rank = e.mean.count
        let inA = sums(a, rank, perRow: max(a.mean.columns, 1)).map { $0 / Float(max(a.mean.columns, 1)) }
        let inB = sums(b, rank, perRow: nil).map { $0 / Float(max(b.mean.rows, 1)) }
        let inE = sums(e, rank, perRow: 1)
        return (0..<rank).map { inE[$0] + inA[$0] + inB[$0] }
    }

    /// Σ Ī·Ū for each rank: over its row of so many values, or (nil) over its column.
    private func sums(_ item: Importance, _ rank: Int, perRow: Int?) -> [Float] {
        unsafe item.mean.withFloats { mean in
            unsafe item.variation.withFloats { variation in
                var sums = [Float](repeating: 0, count: rank)
                for place in 0..<min(mean.count, variation.count) {
                    unsafe sums[perRow.map { place / $0 } ?? place % rank] += mean[place] * variation[place]
                }
                return sums
            }
        }
    }

    // MARK: The term of the loss

    var penalty: (any LossPenalty)? { orthogonality > 0 ? Orthogonality(modules, weight: orthogonality) : nil }

    /// `weight` times the mean of ‖A·Aᵀ − I‖ and ‖Bᵀ·B − I‖ over all modules.
    private final class Orthogonality: LossPenalty {
        private let modules: [AdaLoRAModule]
        private let weight: Float

        init(_ modules: [AdaLoRAModule], weight: Float) {
            self.modules = modules
            self.weight = weight
        }

        func value(_ tape: Tape) throws(PEFTError) -> Variable {
            var sum = Variable(try .zeros(tape.engine, [1]))
            for module in modules where module.a.value.rows > 0 {
                let (a, b) = (tape.variable(module.a), tape.variable(module.b))
                sum = try tape.add(sum, try distance(try tape.linear(a, a), tape))
                sum = try tape.add(sum, try distance(try tape.transposedProduct(b, b), tape))
            }
            return try tape.scaled(sum, by: weight / Float(max(2 * modules.count, 1)))
        }

        private func distance(_ product: Variable, _ tape: Tape) throws(PEFTError) -> Variable {
            let rank = product.value.rows
            let identity = try Tensor.unitRows(tape.engine, 0..<rank, rank)
            return try tape.norm(try tape.add(product, try tape.scaled(Variable(identity), by: -1)))
        }
    }
}
