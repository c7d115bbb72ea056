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

    /// - Throws: `.argument` where one of w1 and w3 is a target without the other, and for a pattern that names one of them (PEFT makes a list
    ///   of it, which can mean more layers than the pattern).
    static func convert(_ configuration: inout AdapterConfiguration, _ mixtures: [Experts], _ model: Model) throws(PEFTError) {
        guard !mixtures.isEmpty else { return }
        var targets: [String]
        switch configuration.values["target_modules"] {
        case .string(let text) where text.lowercased() == "all-linear":
            let heads = TargetMatching.outputHeads(configuration, model)
            let names = model.layers.filter { $0.kind == "Linear" && !heads.contains($0.name) }.compactMap { $0.name.split(separator: ".").last.map(String.init) }
            targets = Set(names).sorted() + parameters.keys.sorted()
        case .array: targets = try configuration.values.strings("target_modules") ?? []
        case .string(let text):
            let pattern = try Pattern.configured(text, "target_modules")
            for experts in mixtures {
                for name in ["w1", "w2", "w3"] where try pattern.matchesWhole("\(experts.name).\(name)") {
                    throw PEFTError(.argument, "target_modules '\(text)' is a pattern that means \(name) of '\(experts.name)'; name experts' matrices in a list")
                }
            }
            return
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

    /// The tensors of a file under the names of stacks.
    static func stacked(_ tensors: [(name: String, tensor: Tensor)], _ mixtures: [Experts], _ engine: Engine) throws(PEFTError) -> [(name: String, tensor: Tensor)] {
        let renamed = tensors.map { item in
            let parts = item.name.split(separator: ".", omittingEmptySubsequences: false).map { $0 == "block_sparse_moe" ? "mlp" : $0 }
            return (name: parts.joined(separator: "."), tensor: item.tensor)
        }
        var (rest, stacks): ([String: Tensor], [(name: String, tensor: Tensor)]) = (Dictionary(renamed.map { ($0.name, $0.tensor) }) { $1 }, [])
        for experts in mixtures {
            let (key, count) = (Adapter.prefix + experts.name, experts.stacks[0].matrices.count)
            /// A factor of all experts; nil: the file has it of none.
            func factor(_ name: String) throws(PEFTError) -> [Tensor]? {
                let list = (0..<count).compactMap { rest.removeValue(forKey: "\(key).\($0).\(name).weight") }
                guard let first = list.first else { return nil }
                guard list.count == count, first.shape.count == 2, list.allSatisfy({ $0.shape == first.shape }) else {
                    throw PEFTError(.mismatch, "'\(key)': \(name).weight is there for \(list.count) of \(count) experts, or of more than one shape; each needs a matrix like the others'")
                }
                return list
            }
            let up = try [factor("w1.lora_A"), factor("w1.lora_B"), factor("w3.lora_A"), factor("w3.lora_B")]
            let down = try [factor("w2.lora_A"), factor("w2.lora_B")]
            if let factors = try whole(up, key) { stacks += try stacked(factors, experts.stacks[0], key + (down[0] == nil ? "" : ".base_layer"), engine) }
            if let factors = try whole(down, key) { stacks += try stacked(factors, experts.stacks[1], key, engine) }
        }
        return renamed.filter { rest[$0.name] != nil } + stacks
    }

    private static func whole(_ factors: [[Tensor]?], _ key: String) throws(PEFTError) -> [[Tensor]]? {
        let present = factors.compactMap { $0 }
        guard present.count == factors.count || present.isEmpty else {
            throw PEFTError(.mismatch, "'\(key)': an expert has some of w1, w3 and w2, lora_A and lora_B; w1 and w3 go together, and each has both")
        }
        return present.isEmpty ? nil : present
    }

    /// One stack's factors: A `[experts·r, in]`, rows by expert, and B `[out, r·experts]`, columns by rank. Of several matrices that are one now,
    /// A's rows lie below each other and B is block diagonal.
    /// - Parameter factors: A and B of each matrix, of all experts.
    private static func stacked(_ factors: [[Tensor]], _ stack: ExpertStack, _ key: String, _ engine: Engine) throws(PEFTError) -> [(name: String, tensor: Tensor)] {
        let (downs, ups) = (stride(from: 0, to: factors.count, by: 2).map { factors[$0] }, stride(from: 1, to: factors.count, by: 2).map { factors[$0] })
        let (experts, inputs, outputs) = (downs[0].count, stack.inputSize, stack.outputSize)
        guard zip(downs, ups).allSatisfy({ $0[0].columns == inputs && $0[0].rows == $1[0].columns && $1[0].rows == outputs / ups.count && $0[0].rows > 0 }) else {
            let shapes = zip(downs, ups).map { "\($0[0].shape) and \($1[0].shape)" }
            throw PEFTError(.mismatch, "'\(key)': factors of an expert are \(shapes.joined(separator: ", ")); [r, \(inputs)] and [\(outputs / ups.count), r] are needed")
        }
        let rank = downs.reduce(0) { $0 + $1[0].rows }
        var a: [Float] = []
        var b = [Float](repeating: 0, count: outputs * rank * experts)
        for expert in 0..<experts {
            var (firstRow, firstRank) = (0, 0)
            for (down, up) in zip(downs, ups) {
                a += try down[expert].floats(engine)
                let width = up[expert].columns
                for (place, value) in try up[expert].floats(engine).enumerated() {
                    b[(firstRow + place / width) * rank * experts + (firstRank + place % width) * experts + expert] = value
                }
                firstRow += up[expert].rows
                firstRank += width
            }
        }
        return [
            (key + ".lora_A.weight", try Tensor(engine, a, shape: [experts * rank, inputs], .scratch)),
            (key + ".lora_B.weight", try Tensor(engine, b, shape: [outputs, rank * experts], .scratch)),
        ]
    }
}
