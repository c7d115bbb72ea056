internal import Autograd
internal import Models
internal import Platform
internal import Tensors

/// A module of an embedding that acts through a hook of its own, as it stands.
protocol EmbeddingModule: AdapterModule {
    var embedding: Embedding { get }
    /// What the rows `y` that were found for `ids` become.
    /// - Parameter table: what they were found in.
    func output(_ y: Variable, ids: Tensor, scale: Float, _ table: Tensor, _ tape: Tape) throws(PEFTError) -> Variable
}

extension EmbeddingModule {
    var layer: any Layer { embedding }

    func hook(scale: Float, beside replacements: [String: Parameter]) -> any LayerHook {
        EmbeddingHook(self, scale: scale, replacements["weight"])
    }

    /// Every row is looked up, and becomes what the hook makes of it.
    func fold(into weights: inout FoldedWeights, scale: Float) throws(PEFTError) {
        guard let rows = try weights.tensor("weight"), let original = weights.original("weight") else { return }
        let tape = Tape(weights.engine, .f32)
        let tile = 1024
        for start in stride(from: 0, to: rows.rows, by: tile) {
            let range = start..<min(start + tile, rows.rows)
            let ids = try Tensor(weights.engine, range.map { Int32(truncatingIfNeeded: $0) }, shape: [range.count])
            let part = try rows.rows(range)
            let changed = try output(Variable(part), ids: ids, scale: scale, original, tape).value
            if changed.storage !== part.storage { weights.engine.axpby(1, changed, 0, into: part) }
        }
    }
}

private final class EmbeddingHook: LayerHook {
    private let module: any EmbeddingModule
    private let scale: Float
    private let table: Parameter?

    init(_ module: any EmbeddingModule, scale: Float, _ table: Parameter?) {
        self.module = module
        self.scale = scale
        self.table = table
    }

    func output(_ y: consuming Variable, ids: Tensor, of layer: Embedding, _ tape: Tape) throws(PEFTError) -> Variable {
        try module.output(y, ids: ids, scale: scale, table?.value ?? layer.weight, tape)
    }
}
