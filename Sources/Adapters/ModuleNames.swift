internal import Models

/// The names of a model's modules, as `named_modules()` has them: layers, and the groups they lie in.
struct ModuleNames {
    /// In the order of the module tree, groups before what is in them.
    let all: [String]
    private let layers: [String: any Layer]

    init(_ modules: [any Layer]) {
        var all: [String] = []
        var seen: Set<String> = []
        for layer in modules {
            for (index, character) in zip(layer.name.indices, layer.name) where character == "." {
                let group = String(layer.name[..<index])
                if seen.insert(group).inserted { all.append(group) }
            }
            if seen.insert(layer.name).inserted { all.append(layer.name) }
        }
        self.all = all
        layers = Dictionary(modules.map { ($0.name, $0) }) { first, _ in first }
    }

    /// nil: a group.
    func layer(_ name: String) -> (any Layer)? { layers[name] }

    /// A group whose members are numbered: torch's ModuleList, which is nothing that can be run or copied as a whole.
    func isList(_ name: String) -> Bool {
        let prefix = name + "."
        let members = all.filter { $0.hasPrefix(prefix) && !$0.dropFirst(prefix.count).contains(".") }
        return !members.isEmpty && members.allSatisfy { $0.dropFirst(prefix.count).allSatisfy(\.isASCIIDigit) }
    }
}

extension Character {
    var isASCIIDigit: Bool { "0"..."9" ~= self }
}

extension String {
    /// "q_proj" and "self_attn.q_proj" name "model.layers.0.self_attn.q_proj"; "proj" does not.
    func isNamed(_ suffix: String) -> Bool { self == suffix || hasSuffix("." + suffix) }
}
