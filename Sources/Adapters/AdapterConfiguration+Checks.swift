internal import Models
internal import Platform

// Settings that many methods have, read and checked alike.
extension AdapterConfiguration {
    /// A number from 0 to 1.
    func probability(_ key: String) throws(PEFTError) -> Float {
        let value = Float(try number(key))
        guard value >= 0, value <= 1 else { throw PEFTError(.argument, "\(key) is \(value); it must be from 0 to 1") }
        return value
    }

    func positive(_ key: String) throws(PEFTError) -> Int {
        let value = try integer(key)
        guard value > 0 else { throw PEFTError(.argument, "\(key) is \(value); it must be a positive integer") }
        return value
    }

    /// One of `choices`, or true or false where there is a meaning for it.
    func choice(_ key: String, _ choices: [String], orFlag: Bool = false) throws(PEFTError) -> String {
        switch values[key] {
        case .string(let text) where choices.contains(text): return text
        case .bool(let flag) where orFlag: return flag ? "true" : "false"
        case let other:
            let possible = (orFlag ? ["true", "false"] : []) + choices
            throw PEFTError(.argument, "\(key) is \(other?.text() ?? "null"); it can be \(possible.joined(separator: ", "))")
        }
    }

    /// `bias`: which of the model's biases train.
    func checkBias() throws(PEFTError) {
        _ = try choice("bias", ["none", "all", "\(method.peftType.lowercased())_only"])
    }

    static func checkRank(_ rank: Int, _ layer: any Layer) throws(PEFTError) {
        guard rank > 0 else {
            throw PEFTError(.argument, "`r` must be a positive integer; for '\(layer.name)' it is \(rank)")
        }
        // Nothing is gained above, and sizes that are computed from it must fit.
        guard rank <= 1 << 20 else { throw PEFTError(.argument, "`r` is \(rank) for '\(layer.name)'; more than \(1 << 20) are not possible") }
    }

    /// `fan_in_fan_out`: how a weight is stored is seen from the layer; PEFT corrects the flag too.
    mutating func matchLayout(of targets: [any Layer], _ warn: (String) -> Void) throws(PEFTError) {
        let isTransposed = targets.contains { $0.kind == "Conv1D" }
        guard try flag("fan_in_fan_out") != isTransposed, targets.contains(where: { $0 is Linear }) else { return }
        warn("fan_in_fan_out is set to \(isTransposed) because the target is \(isTransposed ? "Conv1D" : "a linear layer")")
        values["fan_in_fan_out"] = .bool(isTransposed)
    }

    /// What must be zero: an option that PEFT's code reads and this version has not.
    func refuse(_ keys: [String]) throws(PEFTError) {
        for key in keys where isSet(key) {
            throw PEFTError(.unsupported, "\(method.peftType) with \"\(key)\": \(values[key]?.text() ?? "") is not in this version")
        }
    }
}
