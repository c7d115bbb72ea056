package import Autograd
package import Platform

extension ActivationKind {
    /// The names of config.json (transformers' ACT2FN) and what they compute.
    private static let byName: [String: ActivationKind] = [
        "silu": .silu, "swish": .silu, "gelu": .gelu, "gelu_python": .gelu, "gelu_new": .geluTanh, "gelu_fast": .geluTanh, "gelu_pytorch_tanh": .geluTanh,
        "quick_gelu": .quickGelu, "relu": .relu, "tanh": .tanh, "sigmoid": .sigmoid,
    ]

    package static var names: [String] { byName.keys.sorted() }

    package init?(named name: String) {
        guard let kind = ActivationKind.byName[name] else { return nil }
        self = kind
    }

    /// The activation that `key` of a configuration names.
    package init(_ key: String, of configuration: ModelConfiguration, or fallback: String? = nil) throws(PEFTError) {
        guard let kind = ActivationKind.byName[try configuration.text(key, or: fallback)] else {
            throw configuration.unsupported(key, ActivationKind.byName.keys.sorted().joined(separator: ", "))
        }
        self = kind
    }
}
