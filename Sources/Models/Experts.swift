internal import Autograd
package import Platform
package import Tensors

/// The feed-forward networks of a mixture of experts, whose matrices lie in stacks, as one module:
///
///     y = Σ share_e·down_e(f(gate)·up)        [gate up] = gateUp_e(x)        over the experts e that the row was sent to
///
/// Each product is that of a `Linear` over one matrix of a stack, with the rows that chose it, so adapters hook around it as around
/// any other.
package final class Experts: Layer, Sendable {
    package let name: String
    package let index: Int
    /// "gate_up_proj" and "down_proj".
    package let stacks: [ExpertStack]
    private let activation: ActivationKind
    /// How many a row is sent to.
    private let chosen: Int

    /// - Parameters:
    ///   - gateUp: `[experts, 2·inner, hidden]`, an expert's gate above its up.
    ///   - down: `[experts, hidden, inner]`
    init(name: String, index: Int, gateUp: Tensor, down: Tensor, chosen: Int, activation: ActivationKind) throws(PEFTError) {
        self.name = name
        self.index = index
        self.chosen = chosen
        self.activation = activation
        stacks = [try ExpertStack("gate_up_proj", name, index, gateUp), try ExpertStack("down_proj", name, index, down)]
    }

    package var kind: String { "Experts" }
    package var tensors: [(name: String, tensor: Tensor)] { stacks.map { ($0.name, $0.tensor) } }
    package func stack(_ name: String) -> ExpertStack? { stacks.first { $0.name == name } }

    package func setTensor(_ name: String, _ tensor: Tensor) throws(PEFTError) {
        guard let stack = stack(name) else { throw noTensor(name) }
        try checkReplacement(tensor, like: stack.tensor, name)
        try stack.set(tensor)
    }

    /// - Parameter logits: the router's, f32 `[rows, experts]`.
    func callAsFunction(_ x: Variable, logits: Variable, _ context: ForwardContext) throws(PEFTError) -> Variable {
        let tape = context.tape
        return try tape.concatenateRows(try context.groups(at: self, rows: x.value.rows).map { (group) throws(PEFTError) in
            try mixture(of: try tape.rows(x, group.rows), logits: try tape.rows(logits, group.rows), group.adaptation, tape)
        })
    }

    private func mixture(of x: Variable, logits: Variable, _ adaptation: LayerAdaptation?, _ tape: Tape) throws(PEFTError) -> Variable {
        let (choices, shares) = try tape.topShares(logits, chosen)
        // Row `members[e][i]` is the i-th that expert e sees, in its order of preference number `orders[e][i]`.
        var members = Array(repeating: [Int32](), count: stacks[0].matrices.count)
        var orders = Array(repeating: [Int](), count: members.count)
        for (row, choice) in choices.enumerated() {
            for (order, expert) in choice.enumerated() {
                members[expert].append(Int32(truncatingIfNeeded: row))
                orders[expert].append(order)
            }
        }
        var outputs: [Variable] = []
        var places = Array(repeating: [Int32](repeating: 0, count: choices.count), count: chosen)
        var count: Int32 = 0
        for (expert, rows) in members.enumerated() where !rows.isEmpty {
            for (row, order) in zip(rows, orders[expert]) {
                places[order][Int(row)] = count
                count += 1
            }
            outputs.append(try product(try tape.gatherRows(x, rows), expert, adaptation, tape))
        }
        let all = try tape.concatenateRows(outputs)
        let columns = try tape.splitColumns(shares, Array(repeating: 1, count: chosen))
        let parts = try zip(places, columns).map { (places, share) throws(PEFTError) in
            try tape.scaleRows(try tape.gatherRows(all, places), try tape.reshaped(share, [places.count]))
        }
        var sum = parts[0]
        for part in parts.dropFirst() { sum = try tape.add(sum, part) }
        return sum
    }

    private func product(_ x: Variable, _ expert: Int, _ adaptation: LayerAdaptation?, _ tape: Tape) throws(PEFTError) -> Variable {
        let inner = stacks[1].matrices[expert].inputSize
        let both = try stacks[0].product(x, expert, adaptation, tape)
        let halves = try tape.splitColumns(both, [inner, inner])
        return try stacks[1].product(try tape.glu(halves[0], halves[1], activation), expert, adaptation, tape)
    }
}

/// One matrix of each expert.
package final class ExpertStack: @unchecked Sendable {
    // Sendable: the tensor is replaced only by the holder of the model's write lock.

    package let name: String
    /// `[experts, out, in]`, any weight format.
    package private(set) var tensor: Tensor
    /// Of each expert, a view of the stack; `part` is its number.
    package let matrices: [Linear]

    fileprivate init(_ name: String, _ module: String, _ index: Int, _ tensor: Tensor) throws(PEFTError) {
        self.name = name
        self.tensor = tensor
        matrices = try (0..<tensor.shape[0]).map { (expert) throws(PEFTError) in
            Linear(name: "\(module).\(name)", index: index, weight: try tensor.matrix(expert), bias: nil, part: expert)
        }
    }

    /// Outputs of an expert's matrix.
    package var outputSize: Int { tensor.shape[1] }
    package var inputSize: Int { tensor.shape[2] }

    fileprivate func set(_ tensor: Tensor) throws(PEFTError) {
        for matrix in matrices { try matrix.setTensor("weight", try tensor.matrix(matrix.part)) }
        self.tensor = tensor
    }

    fileprivate func product(_ x: Variable, _ expert: Int, _ adaptation: LayerAdaptation?, _ tape: Tape) throws(PEFTError) -> Variable {
        guard let own = adaptation.own(name, tape) else { return try matrices[expert](x, adaptation, tape) }
        let all = try tape.reshaped(own, [tensor.rows, tensor.columns])
        return try matrices[expert](x, adaptation, tape, weight: try tape.rows(all, expert * outputSize..<(expert + 1) * outputSize))
    }
}

extension Tensor {
    /// One of the matrices of a stack `[n, rows, columns]`; a view.
    package func matrix(_ number: Int) throws(PEFTError) -> Tensor {
        let each = rows / max(shape[0], 1)
        return try rows(number * each..<(number + 1) * each)
    }
}
