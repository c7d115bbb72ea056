internal import Autograd
internal import Models
internal import Platform
internal import Tensors

/// Rows of an embedding that train beside an adapter (`trainable_token_indices`), and the same rows of the head that shares
/// the embedding's matrix. The values themselves are kept, whatever PEFT's name for them says.
final class TokenRows: AdapterModule {
    let layer: any Layer
    /// Places of the rows in the matrix, as they are in the configuration.
    let indices: [Int32]
    /// f32 `[indices.count, dimension]`
    let rows: Parameter
    let isTwin: Bool
    let views: [SavedTensor]
    private let slots: [Int32: Int32]
    private let isRandom: Bool
    private let engine: Engine

    /// - Parameters:
    ///   - isTwin: the rows are those of the embedding whose matrix the layer shares.
    ///   - key: under which a twin is saved once more; nil: it is not.
    ///   - isRandom: the rows begin as random numbers instead of the layer's own.
    private init(
        _ layer: any Layer, _ indices: [Int32], _ rows: Parameter, isTwin: Bool, key: String? = nil, isRandom: Bool = false,
        _ engine: Engine
    ) {
        views = key.map { [SavedTensor(rows, key: $0)] } ?? []
        self.isRandom = isRandom
        self.layer = layer
        self.indices = indices
        self.rows = rows
        self.isTwin = isTwin
        self.engine = engine
        slots = Dictionary(indices.enumerated().map { ($0.element, Int32(truncatingIfNeeded: $0.offset)) }) {
            first, _ in first
        }
    }

    /// What `trainable_token_indices` asks for: a list is for the input embedding, an object names the layers.
    static func modules(_ configuration: AdapterConfiguration, _ targets: [any Layer], _ model: Model) throws(PEFTError)
        -> [TokenRows]
    {
        guard configuration.isSet("trainable_token_indices"),
            let value = configuration.values["trainable_token_indices"]
        else { return [] }
        let wanted: [(layer: any Layer, indices: [Int32])] = try layers(value, model).map {
            (layer, list) throws(PEFTError) in
            (layer, try indices(list, of: layer))
        }
        var modules: [TokenRows] = []
        for (layer, indices) in wanted {
            if targets.contains(where: { $0.index == layer.index }) {
                throw PEFTError(
                    .argument,
                    "'\(layer.name)' is named by target_modules and by trainable_token_indices; it can be one of them")
            }
            for saved in try configuration.values.strings("modules_to_save") ?? [] where layer.name.hasSuffix(saved) {
                throw PEFTError(
                    .argument,
                    "'\(layer.name)' is named by modules_to_save and by trainable_token_indices; it can be one of them")
            }
            if let embedding = (layer as? Linear)?.tiedEmbedding,
                let own = wanted.first(where: { $0.layer.index == embedding.index })
            {
                // The embedding's rows are the head's anyway.
                if own.indices == indices { continue }
                throw PEFTError(
                    .argument,
                    "'\(layer.name)' and '\(embedding.name)' are one matrix; trainable_token_indices must name the same rows for both"
                )
            }
            let own = try TokenRows.module(layer, indices, end: ".token_adapter.trainable_tokens_delta", model)
            modules += [own] + own.heads(model)
        }
        return modules
    }

    /// The rows of one layer.
    /// - Parameter end: of the key.
    static func module(_ layer: any Layer, _ indices: [Int32], end: String, isRandom: Bool = false, _ model: Model)
        throws(PEFTError) -> TokenRows
    {
        let dimension = layer.tensor("weight")?.columns ?? 0
        let rows = try model.parameter(Adapter.prefix + layer.name + end, [indices.count, dimension])
        return TokenRows(layer, indices, rows, isTwin: false, isRandom: isRandom, model.engine)
    }

    /// The same rows of heads that share the layer's matrix.
    /// - Parameter end: of the keys that they have too; nil: none.
    func heads(end: String? = nil, _ model: Model) -> [TokenRows] {
        model.layers.compactMap { $0 as? Linear }.filter { $0.tiedEmbedding?.index == layer.index }.map { head in
            TokenRows(head, indices, rows, isTwin: true, key: end.map { Adapter.prefix + head.name + $0 }, engine)
        }
    }

    private static func layers(_ value: JSONValue, _ model: Model) throws(PEFTError) -> [(any Layer, JSONValue)] {
        let matrices = model.layers.filter { $0 is Embedding || (($0 as? Linear).map { !$0.isTransposed } ?? false) }
        guard let object = value.objectValue else {
            guard let embedding = matrices.first(where: { $0 is Embedding }) else {
                throw PEFTError(.argument, "trainable_token_indices: the model has no embedding")
            }
            return [(embedding, value)]
        }
        return try object.pairs.map { (name, list) throws(PEFTError) in
            guard let layer = matrices.first(where: { $0.name.hasSuffix(name) }) else {
                throw PEFTError(.notFound, "trainable_token_indices: the model has no embedding '\(name)'")
            }
            return (layer, list)
        }
    }

    /// - Parameter key: what the configuration calls the list.
    static func indices(_ value: JSONValue, of layer: any Layer, key: String = "trainable_token_indices") throws(PEFTError) -> [Int32] {
        let count = layer.tensor("weight")?.rows ?? 0
        guard let list = value.arrayValue, !list.isEmpty else {
            throw PEFTError(.argument, "\(key) is \(value.text()); a list of token ids is expected")
        }
        var indices: [Int32] = []
        var seen: Set<Int32> = []
        for element in list {
            guard let number = element.intValue, number >= 0, number < count, let index = Int32(exactly: number),
                seen.insert(index).inserted
            else {
                throw PEFTError(
                    .argument,
                    "\(key) has \(element.text()) in it; ids from 0 to \(count - 1), each once, are expected for '\(layer.name)'"
                )
            }
            indices.append(index)
        }
        return indices
    }

    var parameters: [Parameter] { isTwin ? [] : [rows] }

    /// The rows as they are.
    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        var random = random
        if isTwin { return [:] }
        if isRandom { rows.value.fillNormal(1, &random) } else { engine.axpby(1, try present(engine), 0, into: rows.value) }
        return [:]
    }

    /// The layer's own rows, f32.
    fileprivate func present(_ engine: Engine) throws(PEFTError) -> Tensor {
        guard let weight = layer.tensor("weight") else { throw PEFTError(.internal, "'\(layer.name)' has no weight") }
        return try Tape(engine, .f32).embedding(try Tensor(engine, indices, shape: [indices.count]), frozen: weight)
            .value
    }

    /// The scale is LoRA's business, as in PEFT: rows are in place or not.
    func hook(scale: Float, beside replacements: [String: Parameter]) -> any LayerHook { TokenRowsHook(self) }

    func fold(into weights: inout FoldedWeights, scale: Float) throws(PEFTError) {
        guard let w = try weights.tensor("weight") else { return }
        for (slot, index) in indices.enumerated() {
            engine.axpby(1, try rows.value.rows(slot..<slot + 1), 0, into: try w.rows(Int(index)..<Int(index) + 1))
        }
    }

    /// For each looked-up row: its place among the trained ones (0 where it is none), and whether it is one. Planning knows no
    /// ids; any will do.
    fileprivate func places(of ids: Tensor) -> (slots: [Int32], isTrained: [Float]) {
        let ids = unsafe ids.withInt32s { unsafe Array($0) }
        return (ids.map { slots[$0] ?? 0 }, ids.map { slots[$0] == nil ? 0 : 1 })
    }
}

private final class TokenRowsHook: LayerHook {
    private let module: TokenRows

    init(_ module: TokenRows) { self.module = module }

    /// `y[i] = rows[slot(ids[i])]` where there is one.
    func output(_ y: consuming Variable, ids: Tensor, of layer: Embedding, _ tape: Tape) throws(PEFTError) -> Variable {
        let engine = tape.engine
        var (slots, isTrained) = module.places(of: ids)
        if engine.isPlanning {
            (slots, isTrained) = (Array(repeating: 0, count: ids.count), Array(repeating: 0, count: ids.count))
        }
        guard engine.isPlanning || isTrained.contains(1) else { return y }
        let own = try tape.embedding(try Tensor(engine, slots, shape: [slots.count]), tape.variable(module.rows))
        let taken = try tape.scaleRows(own, Variable(try Tensor(engine, isTrained, shape: [slots.count])))
        let rest = try tape.scaleRows(y, Variable(try Tensor(engine, isTrained.map { 1 - $0 }, shape: [slots.count])))
        return try tape.add(rest, taken)
    }

    /// `y[:, index] += x·(row − W[index])ᵀ`: a branch of low rank, B choosing the columns.
    func add(to y: consuming Variable, input x: Variable, of layer: Linear, _ tape: Tape) throws(PEFTError) -> Variable
    {
        let engine = tape.engine
        let change = try tape.add(
            try tape.scaled(Variable(try module.present(engine)), by: -1), tape.variable(module.rows))
        let count = module.indices.count
        let choice = try Tensor.zeros(engine, [layer.outputSize, count])
        unsafe choice.withMutableFloats { choice in
            for (slot, index) in module.indices.enumerated() where Int(index) * count + slot < choice.count {
                unsafe choice[Int(index) * count + slot] = 1
            }
        }
        return try tape.addLowRank(to: y, input: x, a: change, b: Variable(choice), scale: 1)
    }
}
