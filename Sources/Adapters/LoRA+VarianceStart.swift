internal import Autograd
internal import Models
internal import Platform
internal import Synchronization
internal import Tensors

/// EVA (Paischer et al., arXiv:2410.07170): A begins as the principal components of what the layer sees, and ranks go to the layers
/// whose components explain most. After PEFT's `eva.py`; but `whiten` divides once, where PEFT does it again, in place, for each further
/// layer that sees the same input.
struct VarianceStart: Sendable, Equatable {
    /// A layer has at most so many times its rank.
    let rho: Double
    /// Components stand still when they turn by less than this (cosine).
    let tau: Double
    let isWhitened: Bool
    let adjustsScaling: Bool
    /// Tokens with this label are left out; nil: all tokens count.
    let ignoredLabel: Int32?

    init(_ configuration: AdapterConfiguration) throws(PEFTError) {
        let options = try configuration.values.object("eva_config") ?? JSONObject()
        for key in options.keys where !["rho", "tau", "use_label_mask", "label_mask_value", "whiten", "adjust_scaling_factors"].contains(key) {
            throw PEFTError(.argument, "eva_config has no key \"\(key)\"")
        }
        rho = try options.double("rho") ?? 2
        tau = try options.double("tau") ?? 0.99
        guard rho >= 1, rho <= 1000 else { throw PEFTError(.argument, "eva_config: rho is \(rho); 1 to 1000 is accepted") }
        guard tau > 0, tau <= 1 else { throw PEFTError(.argument, "eva_config: tau is \(tau); it must be above 0 and at most 1") }
        isWhitened = try options.boolean("whiten") ?? false
        adjustsScaling = try options.boolean("adjust_scaling_factors") ?? true
        let label = Int32(clamping: try options.integer("label_mask_value") ?? -100)
        ignoredLabel = try options.boolean("use_label_mask") ?? true ? label : nil
    }
}

/// The components of one layer's inputs.
private final class ComponentGatherer: InputGatherer {
    let layer: Linear
    /// The rank it has in the configuration, and the most it can get.
    let rank: Int
    private let state: Mutex<PrincipalComponents>
    private let converged = Mutex<[Bool]>([])
    /// What it saw last: layers behind the same tensor are alike.
    let input = Mutex<Tensor?>(nil)
    /// Rows of the batch that count; nil: all.
    let rows = Mutex<[Bool]?>(nil)
    private let tau: Double
    private let engine: Engine

    init(_ layer: Linear, rank: Int, most: Int, tau: Double, _ engine: Engine) {
        (self.layer, self.rank, self.tau, self.engine) = (layer, rank, tau, engine)
        state = Mutex(PrincipalComponents(most))
    }

    var components: PrincipalComponents { state.withLock { $0 } }

    func stands(_ count: Int) -> Bool { count == 0 || converged.withLock { $0.count >= count && $0.prefix(count).allSatisfy { $0 } } }

    func gather(_ x: Tensor) throws(PEFTError) {
        input.withLock { $0 = x }
        let x = try rows.withLock { $0 }.map { (rows) throws(PEFTError) in try x.kept(rows, engine) } ?? x
        var components = self.components
        guard x.rows >= components.count else {
            return engine.warn("'\(layer.name)' sees \(x.rows) tokens of a calibration batch, fewer than the \(components.count) components that are wanted; they are left out")
        }
        let cosines = try components.add(x, engine)
        state.withLock { $0 = components }
        if let cosines { converged.withLock { $0 = cosines.map { $0 >= tau } } }
    }
}

extension LoRA {
    /// Rounds through the batches until all components stand still.
    private static let mostRounds = 200

    /// - Returns: the configuration with the ranks that layers get, and their A.
    func componentStart(_ modules: [LinearLoRA], by calibration: any Calibration, _ start: VarianceStart, _ configuration: JSONObject, _ model: Model)
        throws(PEFTError) -> CalibratedStart
    {
        let gatherers = modules.map { module in
            ComponentGatherer(
                module.linear, rank: module.rank, most: min(Int((Double(module.rank) * start.rho).rounded(.toNearestOrEven)), module.linear.inputSize), tau: start.tau, model.engine)
        }
        var ranks = gatherers.map(\.components.count)
        var step = 0
        while !zip(gatherers, ranks).allSatisfy({ $0.stands($1) }) {
            guard step < LoRA.mostRounds * calibration.batchCount else {
                throw PEFTError(.numeric, "init_lora_weights 'eva': components of the calibration batches do not stand still; a lower tau, or more tokens in a batch")
            }
            let batch = step % calibration.batchCount
            let rows = try calibration.counted(batch, without: start.ignoredLabel)
            let moving = zip(gatherers, ranks).filter { !$0.stands($1) }.map(\.0)
            for gatherer in moving { gatherer.rows.withLock { $0 = rows } }
            try calibration.show(batch, to: moving.map { ($0.layer, $0) }, model)
            step += 1
            if gatherers.allSatisfy({ $0.components.components != nil }) { ranks = LoRA.distributed(gatherers) }
        }
        return try calibrated(modules, gatherers, ranks, start, configuration, model.engine)
    }

    /// The budget of all ranks, given to the components with the largest shares of variance.
    private static func distributed(_ gatherers: [ComponentGatherer]) -> [Int] {
        let shares = gatherers.enumerated().flatMap { index, gatherer in gatherer.components.shares.map { (index: index, share: $0) } }
        var ranks = gatherers.map { _ in 0 }
        for item in shares.sorted(by: { $0.share > $1.share }).prefix(gatherers.reduce(0) { $0 + $1.rank }) { ranks[item.index] += 1 }
        // Of layers that see the same, the first has the most.
        for index in gatherers.indices {
            let seen = gatherers[index].input.withLock { $0 }
            guard let first = gatherers.indices.first(where: { $0 < index && gatherers[$0].input.withLock { $0?.storage } === seen?.storage }) else { continue }
            if ranks[first] < ranks[index] { ranks.swapAt(first, index) }
        }
        return ranks
    }

    private func calibrated(
        _ modules: [LinearLoRA], _ gatherers: [ComponentGatherer], _ ranks: [Int], _ start: VarianceStart, _ given: JSONObject, _ engine: Engine
    ) throws(PEFTError) -> CalibratedStart {
        var result = CalibratedStart(configuration: given)
        let (rank, alpha) = (given["r"]?.intValue ?? 0, given["lora_alpha"]?.doubleValue ?? 0)
        var (rankPattern, alphaPattern) = (JSONObject(), JSONObject())
        var names: [String] = []
        for (module, (gatherer, new)) in zip(modules, zip(gatherers, ranks)) where new > 0 {
            let (name, found) = (module.linear.name, gatherer.components)
            guard let components = found.components, components.rows >= new else { throw PEFTError(.internal, "'\(name)' has no components") }
            let a = try components.rows(0..<new).converted(to: .f32, engine, .adapters)
            if start.isWhitened {
                unsafe a.withMutableFloats { a in
                    for index in a.indices { unsafe a[index] /= max(found.singularValues[index / components.columns], .leastNormalMagnitude).squareRoot() }
                }
            }
            result.values[module.a.name] = a
            names.append(name)
            if new != rank { rankPattern[name] = .integer(Int64(new)) }
            var own = module.factor * (isRankStabilized ? Double(module.rank).squareRoot() : Double(module.rank))
            if new != module.rank, start.adjustsScaling { own *= Double(new) / Double(module.rank) }
            if own != alpha { alphaPattern[name] = .number(own) }
        }
        result.configuration["rank_pattern"] = .object(rankPattern)
        result.configuration["alpha_pattern"] = .object(alphaPattern)
        result.configuration["target_modules"] = .array(names.sorted().map { .string($0) })
        return result
    }
}

extension Tensor {
    /// The rows that count, in new memory.
    fileprivate func kept(_ rows: [Bool], _ engine: Engine) throws(PEFTError) -> Tensor {
        let indices = rows.indices.filter { rows[$0] && $0 < self.rows }
        let result = try Tensor(engine, [indices.count, columns], .f32, .scratch)
        for (place, row) in indices.enumerated() { engine.axpby(1, try self.rows(row..<row + 1), 0, into: try result.rows(place..<place + 1)) }
        return result
    }
}
