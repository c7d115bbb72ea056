internal import Autograd
internal import Models
internal import Platform
internal import Tensors

/// A product of block-diagonal rotations of the columns of activations, each with its columns in another order: what OFT and BOFT
/// of LyCORIS and BOFT of PEFT rotate with. Blocks `[b, b]` are Cayley's form of skew-symmetric `factor·(R − Rᵀ)`.
final class Butterfly: Sendable {
    /// In the order in which they act: which of the parameter's factors, and `x·P` and `x·Pᵀ` around it.
    private let stages: [(factor: Int, orders: (there: ColumnMap, back: ColumnMap)?)]
    private let (blocks, blockSize): (Int, Int)
    private let skew: Float
    private let transposition: ColumnMap
    /// Small blocks side by side in the diagonal of one that products have the size for: how many, and where values go.
    private let joined: (count: Int, places: ColumnMap)
    private let made: Kept<Always, Tensor>

    /// - Parameter stages: for each the number of its factor, and the columns in the order in which its blocks take them; nil: as they are.
    init(_ stages: [(factor: Int, order: [Int]?)], blocks: Int, blockSize: Int, skew: Float, _ model: Model) throws(PEFTError) {
        let engine = model.engine
        made = Kept(model)
        (self.blocks, self.blockSize, self.skew) = (blocks, blockSize, skew)
        transposition = try Rotation.transposition(blockSize, engine)
        self.stages = try stages.map { (stage) throws(PEFTError) in
            guard let order = stage.order else { return (stage.factor, nil) }
            return (stage.factor, (try ColumnMap(engine, order, of: order.count), try ColumnMap(engine, Butterfly.inverse(order), of: order.count)))
        }
        let most = max(1, min(blocks, 32 / max(blockSize, 1)))
        let count = (1...most).last { blocks % $0 == 0 } ?? 1
        let (b, wide) = (blockSize, blockSize * count)
        joined = (
            count,
            try ColumnMap(
                engine, (0..<count * b * b).map { place in place / (b * b) * b * (wide + 1) + place % (b * b) / b * wide + place % b }, of: wide * wide)
        )
    }

    /// Of a permutation.
    static func inverse(_ order: [Int]) -> [Int] {
        var inverse = [Int](repeating: 0, count: order.count)
        for (place, column) in order.enumerated() { inverse[column] = place }
        return inverse
    }

    /// - Parameters:
    ///   - r: the free numbers of all blocks, `[factors · blocks, b²]`.
    ///   - changed: what else happens to the blocks `[factors · blocks, b, b]`.
    func callAsFunction(
        _ x: Variable, _ r: Variable, _ tape: Tape, bound: Float = 0,
        changed: @escaping (_ c: Variable, _ tape: Tape) throws(PEFTError) -> Variable = { (c, _) throws(PEFTError) in c }
    ) throws(PEFTError) -> Variable {
        let (perFactor, wide) = (blocks / joined.count, blockSize * joined.count)
        func make() throws(PEFTError) -> Variable { try matrices(r, tape, bound, changed) }
        let all = try tape.isInference ? Variable(made(tape.engine) { () throws(PEFTError) in try make().value.converted(to: .f32, tape.engine, .adapters) }) : make()
        var x = x
        for stage in stages {
            let own = stages.count == 1 ? all : try tape.rows(all, stage.factor * perFactor..<(stage.factor + 1) * perFactor)
            let matrices = try tape.reshaped(own, [perFactor, wide, wide])
            guard let orders = stage.orders else {
                x = try tape.blockLinear(x, matrices)
                continue
            }
            x = try tape.gatherColumns(try tape.blockLinear(try tape.gatherColumns(x, orders.there), matrices), orders.back)
        }
        return x
    }

    /// The blocks of all factors, some side by side: see `joined`.
    private func matrices(
        _ r: Variable, _ tape: Tape, _ bound: Float, _ changed: @escaping (_ c: Variable, _ tape: Tape) throws(PEFTError) -> Variable
    ) throws(PEFTError) -> Variable {
        try tape.remade([r]) { [self] (tape, inputs) throws(PEFTError) in
            let (b, count) = (blockSize, stages.count * blocks)
            let free = inputs[0]
            let skewed = try tape.scaled(try tape.add(free, try tape.scaled(try tape.gatherColumns(free, transposition), by: -1)), by: skew)
            let c = try changed(try Rotation.cayley(try tape.reshaped(try bounded(skewed, bound, tape), [count, b, b]), tape), tape)
            return try tape.scatterColumns(try tape.reshaped(c, [count / joined.count, joined.count * b * b]), joined.places)
        }
    }

    /// Shortened to ‖Q‖ = `bound` where it is longer; 0: never.
    private func bounded(_ q: Variable, _ bound: Float, _ tape: Tape) throws(PEFTError) -> Variable {
        guard bound > 0 else { return q }
        let factor = try tape.mapped(try tape.norm(q), { $0 > bound ? bound / $0 : 1 }, derivative: { $0 > bound ? -bound / ($0 * $0) : 0 })
        return try tape.reshaped(try tape.scaleRows(try tape.reshaped(q, [1, q.value.count]), factor), q.shape)
    }
}
