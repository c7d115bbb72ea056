package import Adapters
package import Platform
internal import Tensors

/// How adapters become one: the names and formulas of PEFT's `add_weighted_adapter`, and more.
///
/// With ΔWᵢ = sᵢ·Bᵢ·Aᵢ and weights wᵢ, at every layer
///
///     linear          A = Σ sgn(wᵢsᵢ)·√|wᵢsᵢ|·Aᵢ    B = Σ √|wᵢsᵢ|·Bᵢ      cheap, with terms Bᵢ·Aⱼ that no adapter has
///     cat             A = rows of wᵢsᵢ·Aᵢ           B = columns of Bᵢ     exactly Σ wᵢ·ΔWᵢ, ranks add up
///     svd             the nearest of the wanted rank to Σ wᵢ·ΔWᵢ          (task arithmetic)
///     slerp           ΔW₁ and ΔW₂ mixed along the arc between them
///
/// and the same sums after pruning (`Pruning`) and an election of signs (TIES, Yadav et al., arXiv:2306.01708): of the factors
/// themselves, or with `_svd` of the ΔWᵢ.
package struct Combination: Sendable {
    enum Space { case factors, concatenated, changes, arc }
    enum Election { case none, total, frequency }

    let name: String
    let space: Space
    let pruning: Pruning
    let election: Election
    let density: Double
    /// nil: the largest of the adapters' ranks.
    let rank: RankChoice?
    /// Values of U·S and Vh beyond this quantile of them are cut off.
    let clamp: Double?
    let seed: UInt64
    private let layerWeights: LayerWeights

    /// Names that PEFT has too.
    static let peftNames = [
        "linear", "cat", "svd", "ties", "ties_svd", "dare_linear", "dare_linear_svd", "dare_ties", "dare_ties_svd", "magnitude_prune",
        "magnitude_prune_svd",
    ]
    private static let names = peftNames + ["task_arithmetic", "slerp", "della", "della_linear", "breadcrumbs", "breadcrumbs_ties"]

    package static let keys: Set<String> = [
        "combination_type", "density", "majority_sign_method", "svd_rank", "svd_energy", "svd_clamp", "epsilon", "gamma", "seed", "layer_weights",
    ]

    /// - Parameter count: adapters that are combined.
    package init(_ options: JSONObject, count: Int) throws(PEFTError) {
        guard count > 0 else { throw PEFTError(.argument, "no adapters are named; at least one is needed") }
        rank = try Combination.rank(options)
        let given = try options.text("combination_type") ?? "svd"
        // One adapter without a new rank stays what it is.
        name = count == 1 && given == "svd" && rank == nil ? "linear" : given
        guard Combination.names.contains(name) else {
            throw PEFTError(.argument, "combination_type is '\(name)'; it can be \(Combination.names.joined(separator: ", "))")
        }
        guard name != "slerp" || count == 2 else { throw PEFTError(.argument, "slerp is between 2 adapters, not \(count)") }
        let stem = name.hasSuffix("_svd") ? String(name.dropLast(4)) : name
        switch stem {
        case "cat": space = .concatenated
        case "slerp": space = .arc
        case "linear", "ties", "dare_linear", "dare_ties", "magnitude_prune": space = stem == name ? .factors : .changes
        default: space = .changes
        }
        density = try Combination.number(options, "density", within: 0...1, isNeeded: !["linear", "cat", "svd", "slerp", "task_arithmetic"].contains(name)) ?? 1
        pruning = try Combination.pruning(stem, density, options)
        election = try Combination.election(stem, options)
        clamp = try Combination.number(options, "svd_clamp", within: 0...1, isNeeded: false)
        seed = UInt64(max(try options.integer("seed") ?? 0, 0))
        layerWeights = try LayerWeights(options, count: count)
        try Combination.checkUse(options, stem, space)
    }

    private static func pruning(_ stem: String, _ density: Double, _ options: JSONObject) throws(PEFTError) -> Pruning {
        switch stem {
        case "ties", "magnitude_prune": return .magnitude
        case "dare_linear", "dare_ties": return .random
        case "della", "della_linear":
            let epsilon = try number(options, "epsilon", within: 0...1, isNeeded: false) ?? min(density, 1 - density) / 2
            guard density == 1 || (epsilon < density && density + epsilon <= 1) else {
                throw PEFTError(.argument, "density ± epsilon is \(density) ± \(epsilon), which leaves 0 … 1")
            }
            return density == 1 ? .none : .ranked(epsilon: epsilon)
        case "breadcrumbs", "breadcrumbs_ties":
            let gamma = try number(options, "gamma", within: 0...1, isNeeded: false) ?? min(0.01, 1 - density)
            guard density + gamma <= 1 else { throw PEFTError(.argument, "density + gamma is \(density + gamma); at most 1 is possible") }
            return .band(gamma: gamma)
        default: return .none
        }
    }

    private static func election(_ stem: String, _ options: JSONObject) throws(PEFTError) -> Election {
        guard ["ties", "dare_ties", "della", "breadcrumbs_ties"].contains(stem) else { return .none }
        switch try options.text("majority_sign_method") ?? "total" {
        case "total": return .total
        case "frequency": return .frequency
        case let other: throw PEFTError(.argument, "majority_sign_method is '\(other)'; it can be total or frequency")
        }
    }

    package static func rank(_ options: JSONObject) throws(PEFTError) -> RankChoice? {
        let energy = try number(options, "svd_energy", within: 0...1, isNeeded: false)
        guard let rank = try options.integer("svd_rank") else { return energy.map { .energy($0) } }
        guard energy == nil else { throw PEFTError(.argument, "svd_rank and svd_energy do not go together") }
        guard 1...65536 ~= rank else { throw PEFTError(.argument, "svd_rank is \(rank); 1 to 65536 is accepted") }
        return .fixed(rank)
    }

    /// A number above the lower end of a range.
    static func number(_ options: JSONObject, _ key: String, within range: ClosedRange<Double>, isNeeded: Bool) throws(PEFTError) -> Double? {
        guard let value = try options.double(key) else {
            if isNeeded { throw PEFTError(.argument, "\(key) is needed for this combination_type: the share of values that stay, in (0, 1]") }
            return nil
        }
        let isOpen = key != "epsilon" && key != "gamma"
        guard range.contains(value), !isOpen || value > range.lowerBound else {
            throw PEFTError(.argument, "\(key) is \(value); \(isOpen ? "(" : "[")\(range.lowerBound), \(range.upperBound)] is accepted")
        }
        return value
    }

    /// - Throws: for options that this combination has no use for.
    private static func checkUse(_ options: JSONObject, _ stem: String, _ space: Space) throws(PEFTError) {
        var unused: [String] = []
        if space == .factors || space == .concatenated { unused += ["svd_rank", "svd_energy", "svd_clamp"] }
        if !stem.hasPrefix("della") { unused.append("epsilon") }
        if !stem.hasPrefix("breadcrumbs") { unused.append("gamma") }
        for key in unused where !(options[key]?.isNull ?? true) {
            throw PEFTError(.argument, "\(key) has no meaning for this combination_type")
        }
    }

    /// The weights at one layer.
    func weights(_ weights: [Double], at layer: String) throws(PEFTError) -> [Double] {
        let factors = try layerWeights.factors(for: layer)
        return weights.enumerated().map { index, weight in factors.map { $0[index] * weight } ?? weight }
    }
}

/// `layer_weights`: {part of a layer's name, as in rank_pattern: a factor for each adapter's weight there}.
private struct LayerWeights: Sendable {
    private var rows: [(pattern: Pattern, factors: [Double])] = []

    init(_ options: JSONObject, count: Int) throws(PEFTError) {
        for (name, value) in (try options.object("layer_weights") ?? JSONObject()).pairs {
            let factors = (value.arrayValue ?? []).compactMap(\.doubleValue).filter(\.isFinite)
            guard factors.count == count, value.arrayValue?.count == count else {
                throw PEFTError(.argument, "layer_weights: '\(name)' is \(value.text()); a list of \(count) numbers is expected")
            }
            do throws(PEFTError) { rows.append((try Pattern("(?:.*\\.)?(?:\(name))(?:\\..*)?"), factors)) } catch {
                throw PEFTError(.argument, "layer_weights: \(error.message)")
            }
        }
    }

    func factors(for layer: String) throws(PEFTError) -> [Double]? {
        for row in rows where try row.pattern.matchesWhole(layer) { return row.factors }
        return nil
    }
}
