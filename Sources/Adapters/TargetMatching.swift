internal import Models
internal import Platform
internal import Tensors

/// Which layers an adapter is put around: PEFT's rules for `target_modules`, `exclude_modules`, `layers_to_transform`,
/// `layers_pattern`, and for what lies inside `modules_to_save`.
struct TargetMatching {
    /// A list names whole dotted suffixes; a string is a regular expression for the whole name (Python's `re.fullmatch`).
    private enum Names {
        case suffixes(Set<String>)
        case pattern(Pattern)

        init?(_ value: JSONValue?, _ key: String) throws(PEFTError) {
            switch value {
            case nil, .null: return nil
            case .string(let text): self = .pattern(try Pattern.configured(text, key))
            case .array(let list):
                var names: Set<String> = []
                for element in list {
                    guard let name = element.stringValue, !name.isEmpty else {
                        throw PEFTError(.argument, "\"\(key)\" has \(element.text()) in it; names are expected")
                    }
                    names.insert(name)
                }
                self = .suffixes(names)
            case .some(let other):
                throw PEFTError(
                    .argument, "\"\(key)\" is \(other.kindName); a list of names or a regular expression is expected")
            }
        }

        func contains(_ name: String) throws(PEFTError) -> Bool {
            switch self {
            case .suffixes(let suffixes): TargetMatching.isNamed(name, by: suffixes)
            case .pattern(let pattern): try pattern.matchesWhole(name)
            }
        }
    }

    private enum Verdict { case target, excluded, other }

    private let targets: Names
    private let excluded: Names?
    /// Each matches a saved module and everything in it.
    private let savedModules: [Pattern]
    /// nil: all.
    private let layerIndices: Set<Int>?
    /// Names of the list of layers; empty: any.
    private let layerLists: [Pattern]
    private let tied: Set<String>
    private let modules: ModuleNames

    /// Finds the targets of `configuration` among a model's layers, and writes those that it decided on (defaults, "all-linear") back.
    /// - Throws: `.argument` for settings that cannot go together; `.notFound` when nothing matches; `.unsupported` when a
    ///   group of layers is targeted.
    static func targets(_ configuration: inout AdapterConfiguration, among layers: [any Layer], _ model: Model)
        throws(PEFTError) -> [any Layer]
    {
        let modules = ModuleNames(layers)
        try checkTogether(configuration.values)
        try resolve(&configuration, layers, model, modules)
        // Parameters by themselves can be all that is adapted.
        if configuration.values["target_modules"]?.isNull ?? true { return [] }
        return try TargetMatching(configuration, modules).targets(configuration.values, model.engine.warn)
    }

    private static func checkTogether(_ values: JSONObject) throws(PEFTError) {
        let isPattern = values["target_modules"]?.stringValue != nil
        for key in ["layers_to_transform", "layers_pattern"] where isPattern && !(values[key] ?? .null).isNull {
            throw PEFTError(.argument, "\"\(key)\" cannot be used when \"target_modules\" is a string")
        }
        if values["layers_to_transform"]?.isNull ?? true, let lists = try values.strings("layers_pattern"),
            lists.contains(where: { !$0.isEmpty })
        {
            throw PEFTError(
                .argument, "\"layers_pattern\" says where layers are counted; \"layers_to_transform\" must say which")
        }
    }

    /// Gives `target_modules` a value that names modules: the method's default, or all linear layers.
    private static func resolve(
        _ configuration: inout AdapterConfiguration, _ layers: [any Layer], _ model: Model, _ modules: ModuleNames
    ) throws(PEFTError) {
        switch configuration.values["target_modules"] {
        case nil, .null:
            let family = model.configuration["model_type"]?.stringValue ?? model.architecture
            guard let targets = configuration.method.defaultTargets[family] else {
                if configuration.isSet("target_parameters") { return }
                throw PEFTError(
                    .argument,
                    "\"target_modules\" is null, and there is no default for a '\(family)' model: name the layers, or say \"all-linear\""
                )
            }
            configuration.values["target_modules"] = targets
        case .string(let text) where text.lowercased() == "all-linear":
            let heads = outputHeads(configuration, model)
            let names = layers.filter { ($0.kind == "Linear" || $0.kind == "Conv1D") && !heads.contains($0.name) }.map(
                \.name)
            configuration.values["target_modules"] = .array(names.sorted().map { .string($0) })
        case .array(let list):
            var seen: Set<String> = []
            let names = list.compactMap(\.stringValue).filter { seen.insert($0).inserted }
            if names.count == list.count {
                configuration.values["target_modules"] = .array(names.sorted().map { .string($0) })
            }
        default: break
        }
        if case .array(let list) = configuration.values["target_modules"], list.count >= minimumToCondense {
            let shorter = condensed(Set(list.compactMap(\.stringValue)), modules)
            if shorter.count < list.count {
                configuration.values["target_modules"] = .array(shorter.sorted().map { .string($0) })
            }
        }
    }

    /// What "all-linear" leaves out: the head of a language model, or of a classifier.
    static func outputHeads(_ configuration: AdapterConfiguration, _ model: Model) -> Set<String> {
        if let head = model.network.head { return [head.name] }
        guard configuration.taskType == "SEQ_CLS" else { return [] }
        return Set(["score", "classifier"].filter { model.layer(named: $0) != nil }.prefix(1))
    }

    // MARK: Matching

    private init(_ configuration: AdapterConfiguration, _ modules: ModuleNames) throws(PEFTError) {
        let values = configuration.values
        guard let targets = try Names(values["target_modules"], "target_modules") else {
            throw PEFTError(.internal, "target_modules was not resolved")
        }
        self.targets = targets
        excluded = try Names(values["exclude_modules"], "exclude_modules")
        savedModules = try (try values.strings("modules_to_save") ?? []).map { (name) throws(PEFTError) in
            try Pattern.configured("(?:.*\\.)?(?:\(name))(?:\\..*)?", "modules_to_save")
        }
        layerIndices = try TargetMatching.indices(values["layers_to_transform"])
        layerLists = try (try values.strings("layers_pattern") ?? []).filter { !$0.isEmpty }.map {
            (name) throws(PEFTError) in
            try Pattern.configured("(?:.*\\.)?(?:\(name))", "layers_pattern")
        }
        tied = configuration.tiedNames
        self.modules = modules
    }

    private static func indices(_ value: JSONValue?) throws(PEFTError) -> Set<Int>? {
        switch value {
        case nil, .null, .array([]): return nil
        case .array(let list):
            var indices: Set<Int> = []
            for element in list {
                guard let index = element.intValue else {
                    throw PEFTError(
                        .argument, "\"layers_to_transform\" has \(element.text()) in it; layer numbers are expected")
                }
                indices.insert(index)
            }
            return indices
        case .some(let value):
            guard let index = value.intValue else {
                throw PEFTError(
                    .argument,
                    "\"layers_to_transform\" is \(value.kindName); a layer number or a list of them is expected")
            }
            return [index]
        }
    }

    private func targets(_ values: JSONObject, _ warn: (@autoclosure () -> String) -> Void) throws(PEFTError)
        -> [any Layer]
    {
        var found: [any Layer] = []
        var count = (excluded: 0, other: 0)
        for name in modules.all where !tied.contains(name) {
            switch try verdict(name) {
            case .excluded: count.excluded += 1
            case .other: count.other += 1
            case .target:
                guard let layer = modules.layer(name) else {
                    throw PEFTError(
                        .unsupported,
                        "the target module '\(name)' is a group of modules; only single layers can be adapted")
                }
                found.append(layer)
            }
        }
        if found.isEmpty, values["target_parameters"]?.arrayValue?.isEmpty ?? true { throw nothingFound(values, count.excluded, count.other) }
        if excluded != nil, count.excluded == 0 {
            warn("exclude_modules \(values["exclude_modules"]?.text() ?? "") excluded nothing")
        }
        return found
    }

    private func verdict(_ name: String) throws(PEFTError) -> Verdict {
        if let excluded, try excluded.contains(name) { return .excluded }
        for saved in savedModules where try saved.matchesWhole(name) { return .excluded }
        guard try targets.contains(name) else { return .other }
        // A name that is given in full is meant, whatever its layer's number.
        guard let layerIndices, case .suffixes(let suffixes) = targets, !suffixes.contains(name) else { return .target }
        guard let index = try layerIndex(name), layerIndices.contains(index) else { return .other }
        return .target
    }

    /// The first number in the name that stands behind one of `layerLists` (any, but not the first part) and before more.
    private func layerIndex(_ name: String) throws(PEFTError) -> Int? {
        let parts = name.split(separator: ".", omittingEmptySubsequences: false)
        for (position, part) in parts.enumerated().dropLast()
        where position > 0 && !part.isEmpty && part.allSatisfy(\.isASCIIDigit) {
            if layerLists.isEmpty {
                if position > 1 { return Int(part) }
            } else {
                let list = parts[..<position].joined(separator: ".")
                for pattern in layerLists where try pattern.matchesWhole(list) { return Int(part) }
            }
        }
        return nil
    }

    private func nothingFound(_ values: JSONObject, _ excluded: Int, _ other: Int) -> PEFTError {
        let targets = values["target_modules"]?.text() ?? ""
        if excluded > 0, other == 0 {
            return PEFTError(
                .notFound, "all modules are excluded: look at target_modules, exclude_modules and modules_to_save")
        }
        var message =
            excluded > 0
            ? "no module is left to adapt: target_modules \(targets) matches only what exclude_modules or modules_to_save take out, or nothing"
            : "target_modules \(targets) is not found in the base model"
        for key in ["layers_to_transform", "layers_pattern"] {
            if let value = values[key], !value.isNull { message += "; \(key) is \(value.text())" }
        }
        let names = modules.all.filter { modules.layer($0) != nil }.map {
            $0.split(separator: ".").last.map(String.init) ?? $0
        }
        var seen: Set<String> = []
        return PEFTError(
            .notFound,
            "\(message); its layers are named \(names.filter { seen.insert($0).inserted }.prefix(16).joined(separator: ", "))"
        )
    }

    // MARK: Condensing

    /// Suffixes, as short as can be, that name these layers of a model and no others.
    static func suffixes(naming layers: [String], _ model: Model) -> [String] {
        Array(condensed(Set(layers), ModuleNames(model.layers)))
    }

    /// PEFT shortens lists from this length on, which decides only what the saved configuration says.
    private static let minimumToCondense = 20

    /// "a.b.c": c, b.c, a.b.c
    private static func suffixes(of name: String) -> [String] {
        let parts = name.split(separator: ".", omittingEmptySubsequences: false)
        return parts.indices.reversed().map { parts[$0...].joined(separator: ".") }
    }

    /// Whether one of a name's suffixes is in the list, without making the others.
    private static func isNamed(_ name: String, by suffixes: Set<String>) -> Bool {
        var rest = name[...]
        while !suffixes.contains(String(rest)) {
            guard let dot = rest.utf8.firstIndex(of: UInt8(ascii: ".")) else { return false }
            rest = rest[rest.utf8.index(after: dot)...]
        }
        return true
    }

    /// Suffixes, as short as can be, that name the same modules.
    private static func condensed(_ targets: Set<String>, _ modules: ModuleNames) -> Set<String> {
        let others = modules.all.filter { !isNamed($0, by: targets) }
        let taken = Set(others.flatMap { suffixes(of: $0) })
        let ordered = targets.map { suffixes(of: $0) }.sorted { $0.lexicographicallyPrecedes($1) }
        var required: Set<String> = []
        for suffixes in ordered where !suffixes.dropLast().contains(where: { required.contains($0) }) {
            if let shortest = suffixes.first(where: { !required.contains($0) && !taken.contains($0) }) {
                required.insert(shortest)
            }
        }
        return required.isEmpty ? targets : required
    }
}

extension Pattern {
    /// A pattern from a configuration.
    static func configured(_ text: String, _ key: String) throws(PEFTError) -> Pattern {
        do throws(PEFTError) { return try Pattern(text) } catch {
            throw PEFTError(.argument, "\"\(key)\": \(error.message)")
        }
    }
}
