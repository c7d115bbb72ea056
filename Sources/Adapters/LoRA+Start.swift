internal import Platform
internal import Tensors

/// How the factors begin (`init_lora_weights`).
enum LoRAStart: Sendable, Equatable {
    /// A uniform within ±1/√in, B zero; of an embedding A zero, B standard normal.
    case standard
    /// A normal with deviation 1/r, B zero.
    case gaussian
    /// Neither is zero: the adapter acts from the start (tests).
    case random

    init(_ configuration: AdapterConfiguration, isNew: Bool) throws(PEFTError) {
        switch configuration.values["init_lora_weights"] {
        case .bool(true): self = .standard
        case .bool(false): self = .random
        case .string(let name):
            switch name.lowercased() {
            case "gaussian": self = .gaussian
            case "eva" where !isNew, "lora_ga" where !isNew: self = .standard
            default: throw LoRAStart.unknown(name)
            }
        case let other: throw PEFTError(.argument, "init_lora_weights is \(other?.text() ?? "null"); true, false or a name is expected")
        }
    }

    private static let known = ["gaussian"]
    private static let missing = ["pissa", "olora", "orthogonal", "eva", "corda", "lora_ga", "loftq", "mica"]

    private static func unknown(_ name: String) -> PEFTError {
        if missing.contains(name) { return PEFTError(.unsupported, "init_lora_weights '\(name)' is not in this version") }
        return PEFTError(.argument, "there is no initialisation init_lora_weights '\(name)'; there are true, false, \(known.joined(separator: ", "))")
    }
}

extension Tensor {
    /// Fills an f32 tensor of the caller's own, in order.
    func fill(_ next: () -> Float) {
        unsafe withMutableFloats { values in
            for index in values.indices { unsafe values[index] = next() }
        }
    }
}
