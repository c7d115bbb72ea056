package import Autograd
package import Platform
internal import Tensors

/// A place where a block adds what it computed to what it was given: where bottleneck adapters stand.
package struct BlockPlace: Hashable, Sendable {
    package enum Part: Sendable { case attention, cross, output }

    package let part: Part
    /// Number of the block; a decoder's count on from its encoder's.
    package let layer: Int
    /// The module in which the `adapters` library keeps what stands there.
    package let module: String

    package init(_ part: Part, _ layer: Int, _ module: String) { (self.part, self.layer, self.module) = (part, layer, module) }
}

/// What a block does at such a place: `norm(x + residual)`, or `x + residual` where its norm comes elsewhere.
package struct BlockJoin {
    package let residual: Variable
    let norm: LayerNorm?
    let context: ForwardContext
    /// Of the residual: rows of each sample lie together.
    package let length: Int

    package func callAsFunction(_ x: Variable) throws(PEFTError) -> Variable { try normed(try sum(x)) }

    package func sum(_ x: Variable) throws(PEFTError) -> Variable { try context.tape.add(residual, x) }

    package func normed(_ x: Variable) throws(PEFTError) -> Variable {
        try norm.map { (norm) throws(PEFTError) in try norm(x, context) } ?? x
    }
}

/// What an adapter does there. Several act one after the other; what is to be done behind them all is the last one's.
package protocol JoinHook: AnyObject, Sendable {
    /// `inside` gives what is added to `x`, not what stands for it.
    var isBeside: Bool { get }
    /// What stands for `x`, what the block computed.
    func inside(_ x: Variable, _ join: BlockJoin, _ tape: Tape) throws(PEFTError) -> Variable
    /// - Parameter x: as the block computed it.
    func after(_ y: Variable, _ x: Variable, _ join: BlockJoin, _ tape: Tape) throws(PEFTError) -> Variable
}

extension ForwardContext {
    /// Adds `x` to `residual`, with whatever adapters do in between.
    func join(_ x: consuming Variable, to residual: consuming Variable, at place: BlockPlace, _ norm: LayerNorm? = nil) throws(PEFTError) -> Variable {
        if let groups, groups.contains(where: { $0.adaptation.joins[place] != nil }) {
            let (x, residual) = (x, residual)
            return try tape.concatenateRows(try groups.map { (group) throws(PEFTError) in
                let rows = try self.rows(of: group.range, in: x.value.rows)
                let alone = try with { (context) throws(PEFTError) in context.route(.all(group.adaptation)) }
                let join = BlockJoin(residual: try tape.rows(residual, rows), norm: norm, context: alone, length: routed == batch ? length : rows.count)
                return try run(group.adaptation.joins[place] ?? [], try tape.rows(x, rows), join)
            })
        }
        if let hooks = commonAdaptation?.joins[place], !hooks.isEmpty {
            return try run(hooks, x, BlockJoin(residual: residual, norm: norm, context: self, length: length))
        }
        let sum = try tape.add(residual, x)
        return try norm.map { (norm) throws(PEFTError) in try norm(sum, self) } ?? sum
    }

    private func run(_ hooks: [any JoinHook], _ x: Variable, _ join: BlockJoin) throws(PEFTError) -> Variable {
        var y = x
        for hook in hooks { y = try hook.inside(y, join, tape) }
        guard let last = hooks.last else { return try join(y) }
        return try last.after(y, x, join, tape)
    }
}
