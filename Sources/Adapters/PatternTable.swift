internal import Platform

/// `rank_pattern`, `alpha_pattern`: numbers for the modules that a key names. The first key in the order of the text counts
/// that matches `(.*\.)?(KEY)$`.
struct PatternTable {
    private let key: String
    private let rows: [(name: String, pattern: Pattern, value: Double)]

    init(_ configuration: AdapterConfiguration, _ key: String) throws(PEFTError) {
        self.key = key
        rows = try (try configuration.values.object(key) ?? JSONObject()).pairs.map { (name, value) throws(PEFTError) in
            guard let number = value.doubleValue else {
                throw PEFTError(.argument, "\"\(key)\": '\(name)' is \(value.text()); a number is expected")
            }
            return (name, try Pattern.configured("(?:.*\\.)?(?:\(name))", key), number)
        }
    }

    func value(for module: String) throws(PEFTError) -> Double? {
        for row in rows where try row.pattern.matchesWhole(module) { return row.value }
        return nil
    }

    /// Names keys without effect, and keys whose order decides: files have them sorted.
    func check(_ modules: [String], warn: (String) -> Void) throws(PEFTError) {
        var used: Set<String> = []
        var isAmbiguous = false
        for module in modules {
            var matching: [(name: String, pattern: Pattern, value: Double)] = []
            for row in rows where try row.pattern.matchesWhole(module) { matching.append(row) }
            used.formUnion(matching.map(\.name))
            if let first = matching.first, let sorted = matching.min(by: { $0.name < $1.name }),
                first.value != sorted.value
            {
                isAmbiguous = true
            }
        }
        let unused = rows.map(\.name).filter { !used.contains($0) }
        if !unused.isEmpty { warn("\(key): no target is named by \(unused.joined(separator: ", "))") }
        if isAmbiguous {
            warn(
                "\(key): several keys name the same module; a saved configuration has them sorted, and another may come first"
            )
        }
    }
}
