internal import Models
internal import Platform

/// Names of a mixture's matrices from before its experts lay in stacks (transformers 4), which PEFT still takes as targets of LoRA and makes
/// `target_parameters` of (`utils/transformers_weight_conversion.py`):
///
///     gate → gate.weight    w1 and w3 → gate_up_proj, of twice the rank and alpha    w2 → down_proj
///
/// "all-linear" means them too.
enum MixtureTargets {
    private static let parameters = ["gate": "gate.weight", "w1": "gate_up_proj", "w3": "gate_up_proj", "w2": "down_proj"]
    private static let fused = "gate_up_proj"

    /// - Throws: `.argument` where one of w1 and w3 is a target without the other.
    static func convert(_ configuration: inout AdapterConfiguration, _ model: Model) throws(PEFTError) {
        guard model.layers.contains(where: { $0 is Experts }) else { return }
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
            table[".*\\.\(fused)"] = value == value.rounded() ? .integer(Int64(value)) : .number(value)
            configuration.values[pattern] = .object(table)
        }
    }
}
