internal import Platform

/// Renders a parsed template. Expressions are in `ChatTemplateEvaluator+Expressions.swift`.
///
/// Steps, output and depth are bounded: a template comes from a file and must not hang or exhaust the host.
struct TemplateEvaluator {
    static let maximumSteps = 4_000_000
    static let maximumOutput = 16 << 20
    static let maximumDepth = 200

    /// Variables, from the outermost scope to the innermost.
    private var scopes: [[String: TemplateValue]]
    private var output = ""
    private let budget = TemplateBudget()
    var depth = 0
    private var loopDepth = 0
    /// Whether output goes to the text itself, not to a macro's or a block's.
    private var isCapturing = false
    /// UTF-8 ranges of what `generation` blocks wrote.
    private(set) var generated: [Range<Int>] = []
    let date: TemplateDate?

    enum Flow { case normal, leavesLoop, nextIteration }

    init(variables: [String: TemplateValue], date: TemplateDate?) {
        scopes = [variables]
        self.date = date
    }

    mutating func render(_ template: [TemplateStatement]) throws(PEFTError) -> String {
        _ = try run(template)
        return output
    }

    // MARK: Limits and errors

    static func failure(_ line: Int, _ message: String, _ kind: PEFTError.Kind = .format) -> PEFTError {
        PEFTError(kind, "chat template line \(line): \(message)", detail: Int64(line))
    }

    /// Work of the size of `count` elements, or of 64 bytes of text each.
    func step(_ line: Int, _ count: Int = 1) throws(PEFTError) {
        budget.steps += count  // Safe: no value has more than 2^24 elements or bytes
        guard budget.steps <= TemplateEvaluator.maximumSteps else {
            throw TemplateEvaluator.failure(line, "more than \(TemplateEvaluator.maximumSteps) steps")
        }
    }

    func checkSize(_ bytes: Int, _ line: Int) throws(PEFTError) {
        guard bytes <= TemplateEvaluator.maximumOutput else {
            throw TemplateEvaluator.failure(line, "a text of more than \(TemplateEvaluator.maximumOutput) bytes")
        }
    }

    mutating func enter(_ line: Int) throws(PEFTError) {
        depth += 1
        guard depth <= TemplateEvaluator.maximumDepth else {
            throw TemplateEvaluator.failure(line, "nested deeper than \(TemplateEvaluator.maximumDepth)")
        }
        try step(line)
    }

    // MARK: Variables

    func variable(_ name: String) -> TemplateValue? {
        for scope in scopes.reversed() { if let value = scope[name] { return value } }
        return nil
    }

    private mutating func set(_ name: String, _ value: TemplateValue) { scopes[scopes.count - 1][name] = value }

    private mutating func set(_ names: [String], _ value: TemplateValue, _ line: Int) throws(PEFTError) {
        if names.count == 1 { return set(names[0], value) }
        guard let parts = value.elements, parts.count == names.count else {
            throw TemplateEvaluator.failure(line, "cannot unpack a \(value.typeName) into \(names.count) variables")
        }
        for (name, part) in zip(names, parts) { set(name, part) }
    }

    // MARK: Statements

    private mutating func run(_ statements: [TemplateStatement]) throws(PEFTError) -> Flow {
        for statement in statements {
            let flow = try run(statement)
            if flow != .normal { return flow }
        }
        return .normal
    }

    private mutating func write(_ text: String, _ line: Int) throws(PEFTError) {
        output += text
        try checkSize(output.utf8.count, line)
        try step(line, text.utf8.count / 64)
    }

    private mutating func run(_ statement: TemplateStatement) throws(PEFTError) -> Flow {
        let line = statement.line
        try enter(line)
        defer { depth -= 1 }
        switch statement.kind {
        case .text(let text): try write(text, line)
        case .output(let expression): try write(try value(of: expression).text, line)
        case .branch(let branches, let otherwise):
            for branch in branches where try value(of: branch.condition).isTrue { return try run(branch.body) }
            return try run(otherwise)
        case .loop(let loop): return try run(loop, line)
        case .set(let names, let expression): try set(names, try value(of: expression), line)
        case .setMember(let name, let member, let expression):
            guard case .namespace(let namespace)? = variable(name) else {
                throw TemplateEvaluator.failure(line, "\"\(name)\" is no namespace; members of others cannot be set")
            }
            namespace.members[member] = try value(of: expression)
        case .setBlock(let name, let body, let filters):
            var text = TemplateValue.string(try capture(body))
            for (filter, arguments) in filters {
                text = try apply(filter: filter, to: text, try evaluated(arguments), line)
            }
            set(name, text)
        case .macro(let macro): set(macro.name, .macro(macro))
        case .generation(let body):
            let start = output.utf8.count
            let flow = try run(body)
            if !isCapturing { generated.append(start..<output.utf8.count) }
            return flow
        case .leaveLoop: return .leavesLoop
        case .nextIteration: return .nextIteration
        }
        return .normal
    }

    private mutating func run(_ loop: TemplateStatement.Loop, _ line: Int) throws(PEFTError) -> Flow {
        let all = try value(of: loop.values)
        guard var values = all.elements else {
            throw TemplateEvaluator.failure(line, "cannot loop over a \(all.typeName)")
        }
        scopes.append([:])
        loopDepth += 1
        defer {
            scopes.removeLast()
            loopDepth -= 1
        }
        if let condition = loop.condition {
            var chosen: [TemplateValue] = []
            for value in values {
                try set(loop.targets, value, line)
                if try self.value(of: condition).isTrue { chosen.append(value) }
            }
            values = chosen
        }
        if values.isEmpty { return try run(loop.otherwise) }
        let state = TemplateLoop(values, depth: loopDepth)
        for (index, value) in values.enumerated() {
            try step(line)
            state.index = index
            scopes[scopes.count - 1] = ["loop": .loop(state)]  // what an iteration sets ends with it
            try set(loop.targets, value, line)
            if try run(loop.body) == .leavesLoop { break }
        }
        return .normal
    }

    /// What `body` writes, as a text of its own.
    private mutating func capture(_ body: [TemplateStatement]) throws(PEFTError) -> String {
        let (outer, wasCapturing) = (output, isCapturing)
        (output, isCapturing) = ("", true)
        defer { (output, isCapturing) = (outer, wasCapturing) }
        _ = try run(body)
        return output
    }

    mutating func call(_ macro: TemplateStatement.Macro, _ arguments: TemplateArguments, _ line: Int) throws(PEFTError)
        -> TemplateValue
    {
        guard arguments.positional.count <= macro.parameters.count else {
            throw TemplateEvaluator.failure(
                line,
                "macro \"\(macro.name)\" takes \(macro.parameters.count) arguments, got \(arguments.positional.count)")
        }
        var locals: [String: TemplateValue] = [:]
        for (index, parameter) in macro.parameters.enumerated() {
            if index < arguments.positional.count {
                locals[parameter.name] = arguments.positional[index]
            } else if let named = arguments.named[parameter.name] {
                locals[parameter.name] = named
            } else {
                locals[parameter.name] =
                    try parameter.standard.map { (expression) throws(PEFTError) in try value(of: expression) }
                    ?? .undefined(parameter.name)
            }
        }
        for name in arguments.named.keys.sorted() where !macro.parameters.contains(where: { $0.name == name }) {
            throw TemplateEvaluator.failure(line, "macro \"\(macro.name)\" has no parameter \"\(name)\"")
        }
        // A macro sees the outermost variables and its own, not those of the place that calls it.
        let outer = scopes
        scopes = [outer[0], locals]
        defer { scopes = outer }
        return .string(try capture(macro.body))
    }
}

/// Steps taken so far. A class, so that functions which change nothing else can count.
private final class TemplateBudget {
    var steps = 0
}

/// Evaluated arguments of a call.
struct TemplateArguments {
    var positional: [TemplateValue] = []
    var named: [String: TemplateValue] = [:]

    /// By position or by name.
    func value(_ index: Int, _ name: String) -> TemplateValue? {
        index < positional.count ? positional[index] : named[name]
    }
}
