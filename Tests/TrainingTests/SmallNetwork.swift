import Autograd
import Platform
import Tensors

@testable import Models
@testable import Training

/// A one-layer language model with its own trainable low-rank pair: everything a trainer touches (positions, masks, packed
/// rows, dropout, recomputation, a head over a vocabulary), and nothing else.
///
///     x = E[id] + P[position];  y = x·Wᵀ + 2·drop(x)·Aᵀ·Bᵀ;  h = y + attention(y, y, y);  logits = h·Hᵀ
final class SmallNetwork: Network, @unchecked Sendable {
    static let (vocabulary, size, rank, maximumLength) = (300, 16, 2, 64)

    let task = ModelTask.causalLM
    let head: Linear?
    let cacheShape: CacheShape? = nil
    let embedding: Tensor
    let places: Tensor
    let weight: Tensor
    let a: Parameter
    let b: Parameter
    let dropout: Float

    init(_ engine: Engine, dropout: Float, seed: UInt64 = 11) throws {
        var stream = RandomStream(seed: seed)
        func random(_ rows: Int, _ columns: Int, _ scale: Float) throws -> Tensor {
            try Tensor(engine, (0..<rows * columns).map { _ in stream.normal() * scale }, shape: [rows, columns], .weights)
        }
        let (n, size) = (SmallNetwork.vocabulary, SmallNetwork.size)
        embedding = try random(n, size, 1)
        places = try random(SmallNetwork.maximumLength, size, 0.5)
        weight = try random(size, size, 0.3)
        head = Linear(name: "lm_head", index: 0, weight: try random(n, size, 0.3), bias: nil)
        a = Parameter(name: "base_model.model.layer.lora_A.weight", value: try random(SmallNetwork.rank, size, 0.3))
        b = Parameter(name: "base_model.model.layer.lora_B.weight", value: try random(size, SmallNetwork.rank, 0.3))
        self.dropout = dropout
    }

    func hidden(_ input: ModelInput, _ context: ForwardContext) throws(PEFTError) -> Variable {
        guard case .ids(let ids) = input else { throw PEFTError(.argument, "ids are needed") }
        let tape = context.tape
        let x = try tape.add(try tape.embedding(ids, frozen: embedding), try tape.embedding(context.positions, frozen: places))
        guard context.recomputedBlocks > 0 else { return try block(x, context) }
        return try tape.recomputed([x]) { (tape, inputs) throws(PEFTError) in try self.block(inputs[0], context.on(tape)) }
    }

    private func block(_ x: Variable, _ context: ForwardContext) throws(PEFTError) -> Variable {
        let tape = context.tape
        let y = try tape.addLowRank(
            to: try tape.linear(x, frozen: weight), input: x, a: tape.variable(a), b: tape.variable(b), scale: 2, dropout: dropout)
        let shape = AttentionShape(batch: context.batch, queryLength: context.length, heads: 2, keyValueHeads: 2, headDim: 8, isCausal: true)
        return try tape.add(y, try tape.attention(q: y, k: y, v: y, shape: shape, keyMask: context.keyMask, firstKey: context.firstKey))
    }

    func logits(_ hidden: Variable, of input: ModelInput, rows: LogitRows, _ context: ForwardContext) throws(PEFTError) -> Variable {
        try context.tape.linear(hidden, frozen: head!.weight, as: .f32)
    }
}

/// A model over it, and a trainer.
struct SmallTraining {
    let model: Model
    let network: SmallNetwork
    let trainee: Trainee
    let trainer: Trainer

    init(threads: Int = 1, limit: Int = .max, dropout: Float = 0, seed: UInt64 = 11, rank: Int = 2, _ change: (inout TrainerOptions) -> Void = { _ in }) throws {
        let engine = Engine(threads: threads, budget: MemoryBudget(limit: limit))
        network = try SmallNetwork(engine, dropout: dropout, seed: seed)
        model = Model(
            engine: engine, precision: .f32, configuration: JSONObject(), architecture: "small", layers: [network.head!], network: network)
        trainee = Trainee(
            name: "default", entries: [(network.a.name, network.a), (network.b.name, network.b)], adaptation: { [model] in model.unadapted },
            configuration: ["peft_type": .string("LORA"), "r": .integer(Int64(rank))])
        var options = TrainerOptions()
        options.schedule = .constant
        options.optimizer.learningRate = 0.01
        change(&options)
        trainer = try Trainer(model, trainee, options)
    }

    var values: [[Float]] { get throws { [try network.a.value.floats(model.engine), try network.b.value.floats(model.engine)] } }

    /// A fixed random batch.
    static func batch(rows: Int = 2, length: Int = 20, seed: UInt64 = 5) -> Batch {
        var stream = RandomStream(seed: seed)
        let ids = (0..<rows * length).map { _ in Int32(stream.below(UInt32(SmallNetwork.vocabulary))) }
        return Batch(rows: rows, length: length, ids: ids, labels: ids)
    }

    /// Forty short lines of differing length.
    static func dataSet(_ change: (inout DataSetOptions) -> Void = { _ in }) throws -> DataSet {
        let words = ["forge", "anvil", "hammer", "coal", "steel", "ember", "tongs", "blade"]
        let lines = (0..<40).map { i in "{\"prompt\": \"\(words[i % 8])\", \"completion\": \"\((0...i % 5).map { words[(i + $0 * 3) % 8] }.joined(separator: " "))\"}\n" }
        var options = DataSetOptions()
        (options.format, options.maxLength, options.batchSize) = (.jsonLines, 48, 2)
        change(&options)
        return try DataSet(MemoryBytes(Array(lines.joined().utf8), name: "words"), ByteEncoder(), options)
    }
}
