package import Platform

/// How adapters act together, as a value, with the blocks of AdapterHub's `adapters` library (composition.py). Members of blocks are
/// adapters or blocks again.
package indirect enum Composition: Hashable, Sendable {
    case adapter(String, weight: Float = 1)
    /// One behind the other.
    case stack([Composition])
    /// Attention over what they do; `name` is the adapter that has it (`AdapterFusion`).
    case fuse([Composition], name: String)
    /// Σ wᵢ·yᵢ of what each makes of a layer or block.
    case average([Composition], weights: [Float])
    /// Each on so many tokens of a text, one after the other; the last one goes on to the end.
    case split([Composition], lengths: [Int])
    /// Each on so many rows of a batch.
    case batchSplit([Composition], sizes: [Int])
    /// Each on all rows of a batch: there are as many times the rows.
    case parallel([Composition])

    /// They act in this order.
    package init(_ adapters: [(name: String, weight: Float)]) throws(PEFTError) { self.init(try AdapterSet.checked(adapters)) }

    init(_ adapters: [ActiveAdapter]) { self = .stack(adapters.map { .adapter($0.name, weight: $0.weight) }) }

    var members: [Composition] {
        switch self {
        case .adapter: []
        case .stack(let members), .fuse(let members, _), .average(let members, _), .split(let members, _), .batchSplit(let members, _), .parallel(let members): members
        }
    }

    /// All that are named, fusions behind their members.
    package var adapters: [ActiveAdapter] {
        switch self {
        case .adapter(let name, let weight): [ActiveAdapter(name: name, weight: weight)]
        case .fuse(let members, let name): members.flatMap(\.adapters) + [ActiveAdapter(name: name, weight: 1)]
        default: members.flatMap(\.adapters)
        }
    }

    /// A list of adapters one behind the other.
    package var isPlain: Bool {
        guard case .stack(let members) = self else { return false }
        return members.allSatisfy { if case .adapter = $0 { true } else { false } }
    }

    /// The names of its fusions.
    var fusions: [String] {
        let inner = members.flatMap(\.fusions)
        if case .fuse(_, let name) = self { return inner + [name] }
        return inner
    }

    /// The same of other members and other names.
    private func with(_ members: [Composition], _ name: (String) -> String = { $0 }) -> Composition {
        switch self {
        case .adapter(let own, let weight): .adapter(name(own), weight: weight)
        case .stack: .stack(members)
        case .fuse(_, let own): .fuse(members, name: name(own))
        case .average(_, let weights): .average(members, weights: weights)
        case .split(_, let lengths): .split(members, lengths: lengths)
        case .batchSplit(_, let sizes): .batchSplit(members, sizes: sizes)
        case .parallel: .parallel(members)
        }
    }

    func renamed(_ name: (String) -> String) -> Composition { with(members.map { $0.renamed(name) }, name) }

    /// The same with a `fuse` for each name that is a fusion's.
    func expanded(_ fused: (String) -> [String]?) -> Composition {
        if case .adapter(let name, _) = self, let members = fused(name) { return .fuse(members.map { .adapter($0) }, name: name) }
        return with(members.map { $0.expanded(fused) })
    }

    // MARK: Rows and tokens

    /// How often the rows of a batch are there.
    var channels: Int {
        let inner = members.map(\.channels).max() ?? 1
        if case .parallel(let members) = self { return members.count * inner }
        return inner
    }

    /// What acts on which of `count` rows: from each start on, without `batchSplit` and `parallel`.
    func rows(_ count: Int) throws(PEFTError) -> [(start: Int, part: Composition)] {
        switch self {
        case .batchSplit(let members, let sizes):
            let sum = sizes.reduce(0) { $0 &+ $1 }
            guard sum == count else { throw PEFTError(.argument, "batch_sizes \(sizes) are \(sum) rows; the batch has \(count)") }
            return try behindEachOther(members, sizes) { (member, size) throws(PEFTError) in try member.rows(size) }
        case .parallel(let members):
            let size = count / max(members.count, 1)
            return try behindEachOther(members, members.map { _ in size }) { (member, size) throws(PEFTError) in try member.rows(size) }
        default: return refined(try members.map { (member) throws(PEFTError) in try member.rows(count) })
        }
    }

    /// Everything that can act on a row, without `batchSplit` and `parallel`: each member of one once, beside the first of others.
    func forEachRow() -> [Composition] {
        switch self {
        case .batchSplit(let members, _), .parallel(let members): return members.flatMap { $0.forEachRow() }
        default:
            let each = members.map { $0.forEachRow() }
            let longest = each.map(\.count).max() ?? 1
            return (0..<longest).map { row in with(each.map { $0[Swift.min(row, $0.count - 1)] }) }
        }
    }

    /// What acts on which tokens of a text: from each start on, without `split`.
    func tokens() throws(PEFTError) -> [(start: Int, part: Composition)] {
        guard case .split(let members, let lengths) = self else { return refined(try members.map { (member) throws(PEFTError) in try member.tokens() }) }
        return try behindEachOther(members, lengths) { (member, length) throws(PEFTError) in
            let parts = try member.tokens()
            guard parts.allSatisfy({ $0.start < length }) else { throw PEFTError(.argument, "a Split of \(lengths) tokens has a part with a Split for more than its \(length)") }
            return parts
        }
    }

    private func behindEachOther(
        _ members: [Composition], _ sizes: [Int], _ parts: (Composition, Int) throws(PEFTError) -> [(start: Int, part: Composition)]
    ) throws(PEFTError) -> [(start: Int, part: Composition)] {
        var (result, start): ([(start: Int, part: Composition)], Int) = ([], 0)
        for (member, size) in zip(members, sizes) {
            result += try parts(member, size).map { (start + $0.start, $0.part) }
            start += size
        }
        return result
    }

    /// This block of members that change from place to place.
    private func refined(_ parts: [[(start: Int, part: Composition)]]) -> [(start: Int, part: Composition)] {
        guard !parts.isEmpty else { return [(0, self)] }
        return Set(parts.flatMap { $0.map(\.start) }).sorted().map { start in
            (start, with(parts.compactMap { $0.last { $0.start <= start }?.part }))
        }
    }
}

// MARK: JSON

extension Composition {
    private static let blocks = ["Stack", "Fuse", "Average", "Split", "BatchSplit", "Parallel"]
    private static let deepest = 8, most = 1024

    /// A name, a list (a Stack), or the library's {"type": "Average", "children": […], "kwargs": {"weights": […]}}.
    package init(_ json: JSONValue, depth: Int = 0) throws(PEFTError) {
        guard depth < Composition.deepest else { throw PEFTError(.argument, "a composition deeper than \(Composition.deepest) blocks") }
        switch json {
        case .string(let name): self = .adapter(name)
        case .array(let list): self = .stack(try Composition.members(list, "Stack", depth))
        case .object(let object):
            try object.check(["type", "children", "kwargs"], "a composition")
            guard let type = try object.text("type"), let children = try object.list("children") else {
                throw PEFTError(.argument, "a block of a composition needs \"type\" (\(Composition.blocks.joined(separator: ", "))) and \"children\", a list of names and blocks")
            }
            try self.init(type, children, try object.object("kwargs") ?? [:], depth)
        default: throw PEFTError(.argument, "a composition is \(json.kindName); a name, a list or a block is needed")
        }
    }

    private init(_ type: String, _ children: [JSONValue], _ settings: JSONObject, _ depth: Int) throws(PEFTError) {
        if type == "single" {
            guard children.count == 1, let name = children[0].stringValue else { throw PEFTError(.argument, "a \"single\" has one name in its children") }
            try settings.check(["weight"], "single")
            self = .adapter(name, weight: try Composition.finite(try settings.float("weight") ?? 1))
            return
        }
        let members = try Composition.members(children, type, depth)
        /// One number for all, or one for each.
        func sizes(_ key: String) throws(PEFTError) -> [Int] {
            try settings.check([key], type)
            let value = settings[key] ?? .null
            let sizes = value.intValue.map { size in members.map { _ in size } } ?? (value.arrayValue ?? []).compactMap(\.intValue)
            guard sizes.count == members.count, sizes.allSatisfy({ $0 > 0 && $0 <= 1 << 24 }) else {
                throw PEFTError(.argument, "\(key) is \(value.text()); \(type) of \(members.count) needs a positive integer, or one for each")
            }
            return sizes
        }
        switch type {
        case "Stack", "Parallel":
            try settings.check([], type)
            self = type == "Stack" ? .stack(members) : .parallel(members)
        case "Fuse":
            try settings.check(["name"], type)
            self = .fuse(members, name: try settings.text("name") ?? members.compactMap { $0.adapters.last?.name }.joined(separator: ","))
        case "Average":
            try settings.check(["weights", "normalize_weights"], type)
            self = .average(members, weights: try Composition.weights(settings, members.count))
        case "Split": self = .split(members, lengths: try sizes("splits"))
        case "BatchSplit": self = .batchSplit(members, sizes: try sizes("batch_sizes"))
        default: throw PEFTError(.argument, "there is no block \"\(type)\"; there are \(Composition.blocks.joined(separator: ", "))")
        }
        try checkNesting(type)
    }

    private static func members(_ list: [JSONValue], _ type: String, _ depth: Int) throws(PEFTError) -> [Composition] {
        guard !list.isEmpty, list.count <= most else { throw PEFTError(.argument, "a \(type) of \(list.count); 1 to \(most) members are possible") }
        return try list.map { (item) throws(PEFTError) in try Composition(item, depth: depth + 1) }
    }

    private static func weights(_ settings: JSONObject, _ count: Int) throws(PEFTError) -> [Float] {
        guard let list = try settings.list("weights") else { return Array(repeating: 1 / Float(count), count: count) }
        let weights = list.compactMap(\.doubleValue)
        let sum = weights.reduce(0, +)
        guard weights.count == count, list.count == count else { throw PEFTError(.argument, "weights has \(list.count) entries for \(count) members; a number for each is needed") }
        guard try settings.boolean("normalize_weights") ?? true else { return try weights.map { (weight) throws(PEFTError) in try finite(Float(weight)) } }
        guard sum.isFinite, sum != 0 else { throw PEFTError(.argument, "weights add up to \(sum), by which they are to be divided; set normalize_weights to false") }
        return try weights.map { (weight) throws(PEFTError) in try finite(Float(weight / sum)) }
    }

    private static func finite(_ weight: Float) throws(PEFTError) -> Float {
        guard weight.isFinite else { throw PEFTError(.argument, "a weight is \(weight); a finite number is needed") }
        return weight
    }

    /// Rows are repeated once, at the beginning; what is fused is adapters, alone or one behind the other.
    private func checkNesting(_ type: String) throws(PEFTError) {
        for member in members {
            if case .stack = self {} else if member.channels > 1 { throw PEFTError(.unsupported, "a Parallel inside of \(type); it can be the whole or stand in a Stack") }
            if case .fuse = self {
                switch member {
                case .adapter: continue
                case .stack where member.isPlain: continue
                default: throw PEFTError(.unsupported, "Fuse has a member that is neither an adapter nor a Stack of adapters")
                }
            }
        }
        if case .stack = self, members.count(where: { $0.channels > 1 }) > 1 { throw PEFTError(.unsupported, "two Parallels in one Stack") }
    }

    /// As it is read.
    package var json: JSONValue {
        func block(_ type: String, _ settings: JSONObject = [:]) -> JSONValue {
            var object: JSONObject = ["type": .string(type), "children": .array(members.map(\.json))]
            if !settings.isEmpty { object["kwargs"] = .object(settings) }
            return .object(object)
        }
        func list(_ sizes: [Int]) -> JSONValue { .array(sizes.map { .integer(Int64($0)) }) }
        return switch self {
        case .adapter(let name, 1): .string(name)
        case .adapter(let name, let weight): .object(["type": .string("single"), "children": .array([.string(name)]), "kwargs": .object(["weight": .number(Double(weight))])])
        case .stack: block("Stack")
        case .fuse(_, let name): block("Fuse", ["name": .string(name)])
        case .average(_, let weights): block("Average", ["weights": .array(weights.map { .number(Double($0)) }), "normalize_weights": .bool(false)])
        case .split(_, let lengths): block("Split", ["splits": list(lengths)])
        case .batchSplit(_, let sizes): block("BatchSplit", ["batch_sizes": list(sizes)])
        case .parallel: block("Parallel")
        }
    }
}
