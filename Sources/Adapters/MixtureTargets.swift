internal import Models
internal import Platform
internal import Tensors

/// Names of a mixture's matrices from before its experts lay in stacks (transformers 4), which PEFT still takes as targets of LoRA and makes
/// `target_parameters` of (`utils/transformers_weight_conversion.py`):
///
///     gate → gate.weight    w1 and w3 → gate_up_proj, of twice the rank and alpha    w2 → down_proj
///
/// "all-linear" means them too. Files from that time have factors for each expert by itself, `…block_sparse_moe.experts.3.w1.lora_A.weight`,
/// which become those of stacks.
enum MixtureTargets {
    private static let parameters = ["gate": "gate.weight", "w1": "gate_up_proj", "w3": "gate_up_proj", "w2": "down_proj"]
    private static let fused = "gate_up_proj"

    static func isMixture(_ model: Model) -> Bool { model.layers.contains { $0 is Experts } }

    /// - Throws: `.argument` where one of w1 and w3 is a target without the other.
    static func convert(_ configuration: inout AdapterConfiguration, _ model: Model) throws(PEFTError) {
        guard isMixture(model) else { return }
        var targets: [String]
        switch configuration.values["target_modules"] {
        case .string(let text) where text.lowercased() == "all-linear":
            let heads = TargetMatching.outputHeads(configuration, model)
            let names = model.layers.filter { $0.kind == "Linear" && !heads.contains($0.name) }.compactMap { $0.name.split(separator: ".").last.map(String.init) }
            targets = Set(names).sorted() + parameters.keys.sorted()
        case .array: targets = try configuration.values.strings("target_modules") ?? []
        default: return
        }
        let old = targets.compactMap { target in parameters.keys.first { target.isNamed($0) } }
        guard !old.isEmpty else { return }
        guard old.contains("w1") == old.contains("w3") else {
            throw PEFTError(.argument, "target_modules has \(old.contains("w1") ? "w1 without w3" : "w3 without w1"); both are one matrix, \(fused)")
        }
        targets.removeAll { target in parameters.keys.contains { target.isNamed($0) } }
        let named = try configuration.values.strings("target_parameters") ?? []
        configuration.values["target_modules"] = .array(targets.map { .string($0) })
        configuration.values["target_parameters"] = .array(Set(named + old.compactMap { parameters[$0] }).sorted().map { .string($0) })
        guard old.contains("w1") else { return }
        for (pattern, usual) in [("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")] {
            var table = configuration.values[pattern]?.objectValue ?? [:]
            let value = try configuration.number(usual) * 2
            table[".*\\.\(fused)"] = Int64(exactly: value).map { .integer($0) } ?? .number(value)
            configuration.values[pattern] = .object(table)
        }
    }

    // MARK: Files

    private static let module = "block_sparse_moe"

    /// A file's tensors under the names of stacks.
    static func stacked(_ tensors: [(name: String, tensor: Tensor)], _ engine: Engine) throws(PEFTError) -> [(name: String, tensor: Tensor)] {
        var result: [(name: String, tensor: Tensor)] = []
        /// By block, then by "w1.lora_A" and so on, then by expert.
        var found: [String: [String: [Int: Tensor]]] = [:]
        for item in tensors {
            let name = item.name.split(separator: ".", omittingEmptySubsequences: false).map(String.init)
            guard let at = name.firstIndex(of: module) else {
                result.append(item)
                continue
            }
            let (block, parts) = (name[..<at].joined(separator: ".") + ".mlp.", Array(name[(at + 1)...]))
            if parts.count == 5, parts[0] == "experts", let expert = Int(parts[1]), String(expert) == parts[1], parts[4] == "weight" {
                found[block, default: [:]]["\(parts[2]).\(parts[3])", default: [:]][expert] = item.tensor
            } else {
                result.append((block + parts.joined(separator: "."), item.tensor))
            }
        }
        for (block, factors) in found.sorted(by: { $0.key < $1.key }) {
            let known = ["w1", "w2", "w3"].flatMap { ["\($0).lora_A", "\($0).lora_B"] }
            if let other = factors.keys.sorted().first(where: { !known.contains($0) }) {
                throw PEFTError(.mismatch, "'\(block)experts': an expert has '\(other)'; \(known.joined(separator: ", ")) are known")
            }
            let (hasUp, hasDown) = (factors.keys.contains { !$0.hasPrefix("w2") }, factors.keys.contains { $0.hasPrefix("w2") })
            if hasUp { result += try stack(["w1", "w3"], of: factors, hasDown ? block + "experts.base_layer" : block + "experts", engine) }
            if hasDown { result += try stack(["w2"], of: factors, block + "experts", engine) }
        }
        return result
    }

    /// One stack's factors: A `[experts·r, in]`, rows by expert, and B `[out, r·experts]`, columns by rank. Of several matrices
    /// that are one now, A's rows lie below each other and B is block diagonal.
    private static func stack(_ matrices: [String], of factors: [String: [Int: Tensor]], _ key: String, _ engine: Engine)
        throws(PEFTError) -> [(name: String, tensor: Tensor)]
    {
        let experts = factors.values.map(\.count).max() ?? 0
        var branches: [(a: [Tensor], b: [Tensor])] = []
        for matrix in matrices {
            func all(_ part: String) throws(PEFTError) -> [Tensor] {
                let list = (0..<experts).compactMap { factors["\(matrix).\(part)"]?[$0] }
                guard list.count == experts, let first = list.first, first.shape.count == 2, list.allSatisfy({ $0.shape == first.shape }) else {
                    throw PEFTError(.mismatch, "'\(key)': \(matrix).\(part).weight is there for \(list.count) of \(experts) experts, or of more than one shape; each needs a matrix like the others'")
                }
                return list
            }
            branches.append((try all("lora_A"), try all("lora_B")))
        }
        let inputs = branches[0].a[0].columns
        guard branches.allSatisfy({ $0.a[0].columns == inputs && $0.a[0].rows == $0.b[0].columns }) else {
            throw PEFTError(.mismatch, "'\(key)': factors of \(matrices.joined(separator: ", ")) do not fit each other")
        }
        let (rank, outputs) = (branches.reduce(0) { $0 + $1.a[0].rows }, branches.reduce(0) { $0 + $1.b[0].rows })
        var a: [Float] = []
        var b = [Float](repeating: 0, count: outputs * rank * experts)
        for expert in 0..<experts {
            var (firstRow, firstRank) = (0, 0)
            for branch in branches {
                a += try branch.a[expert].floats(engine)
                let (values, width) = (try branch.b[expert].floats(engine), branch.b[expert].columns)
                for (place, value) in values.enumerated() {
                    b[(firstRow + place / width) * rank * experts + (firstRank + place % width) * experts + expert] = value
                }
                firstRow += branch.b[expert].rows
                firstRank += width
            }
        }
        return [
            (key + ".lora_A.weight", try Tensor(engine, a, shape: [experts * rank, inputs], .scratch)),
            (key + ".lora_B.weight", try Tensor(engine, b, shape: [outputs, rank * experts], .scratch)),
        ]
    }
}
