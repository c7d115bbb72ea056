internal import Autograd
internal import Models
internal import Platform
internal import Tensors

/// An Average at one layer: `y + Σ wᵢ·(yᵢ − y)`, with y the layer as other adapters left it, and yᵢ what its member i makes of that.
final class AverageHook: LayerHook {
    private let members: [(hooks: [any LayerHook], weight: Float)]
    /// What acts before this, and what stands in for the layer's tensors.
    private let before: LayerAdaptation

    init(_ members: [(hooks: [any LayerHook], weight: Float)], before: LayerAdaptation) {
        let rest = 1 - members.reduce(0) { $0 + $1.weight }
        self.members = abs(rest) > 1e-6 ? members + [([], rest)] : members
        self.before = before
    }

    var readsAllRows: Bool { members.contains { $0.hooks.contains { $0.readsAllRows } } }

    func output(_ y: consuming Variable, input x: Variable, of layer: Linear, _ tape: Tape) throws(PEFTError) -> Variable {
        let y = y
        return try members.sum(tape) { (hooks) throws(PEFTError) in
            var (seen, input): ([Variable], Variable) = ([], x)
            for hook in hooks.reversed() {
                seen.append(input)
                input = try hook.input(input, of: layer, tape)
            }
            var made = y
            if input.value.storage !== x.value.storage { made = try layer(input, before, tape, as: y.value.dtype) }
            for (hook, x) in zip(hooks, seen.reversed()) {
                made = try hook.add(to: made, input: x, of: layer, tape)
                made = try hook.output(made, input: x, of: layer, tape)
            }
            return made
        }
    }

    func output(_ y: consuming Variable, ids: Tensor, of layer: Embedding, _ tape: Tape) throws(PEFTError) -> Variable {
        let y = y
        return try members.sum(tape) { (hooks) throws(PEFTError) in
            var made = y
            for hook in hooks { made = try hook.output(made, ids: ids, of: layer, tape) }
            return made
        }
    }
}

/// The same where a block adds its residual: `Σ wᵢ·yᵢ`, as in the library.
final class AverageJoin: JoinHook {
    private let members: [(hooks: [any JoinHook], weight: Float)]
    private let last: any JoinHook

    /// - Throws: `.unsupported` for members beside the block together with members behind it.
    init?(_ members: [(hooks: [any JoinHook], weight: Float)]) throws(PEFTError) {
        guard let last = members.last(where: { !$0.hooks.isEmpty })?.hooks.last else { return nil }
        guard members.allSatisfy({ $0.hooks.last?.isBeside ?? last.isBeside == last.isBeside }) else {
            throw PEFTError(.unsupported, "an Average of adapters beside a block (is_parallel) and adapters behind it")
        }
        (self.members, self.last) = (members, last)
    }

    var isBeside: Bool { last.isBeside }

    func inside(_ x: Variable, _ join: BlockJoin, _ tape: Tape) throws(PEFTError) -> Variable {
        // A member that does not stand here leaves what the block computed; beside it, it adds nothing.
        try members.filter { !isBeside || !$0.hooks.isEmpty }.sum(tape) { (hooks) throws(PEFTError) in
            var y = x
            for hook in hooks { y = try hook.inside(y, join, tape) }
            return y
        }
    }

    func after(_ y: Variable, _ x: Variable, _ join: BlockJoin, _ tape: Tape) throws(PEFTError) -> Variable { try last.after(y, x, join, tape) }
}

extension Array {
    /// `Σ w·value(hooks)`
    fileprivate func sum<Hook>(_ tape: Tape, _ value: ([Hook]) throws(PEFTError) -> Variable) throws(PEFTError) -> Variable where Element == (hooks: [Hook], weight: Float) {
        var sum: Variable?
        for (hooks, weight) in self {
            let term = try tape.scaled(try value(hooks), by: weight)
            if let known = sum { sum = try tape.add(known, term) } else { sum = term }
        }
        guard let sum else { throw PEFTError(.internal, "an average of nothing") }
        return sum
    }
}
