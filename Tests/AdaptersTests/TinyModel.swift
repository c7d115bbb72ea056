import Autograd
import Platform
import Quantization
import Tensors
import Testing

@testable import Adapters
@testable import Models

/// A model with the names of a Llama and next to nothing in it:
///
///     h = embed[id];  h += v(q(norm(h))) in each of two blocks;  h += c_fc(h);  logits = h·headᵀ
final class TinyNetwork: Network, @unchecked Sendable {
    let task = ModelTask.causalLM
    let head: Linear?
    let cacheShape: CacheShape? = nil
    let embedding: Embedding
    let blocks: [(q: Linear, v: Linear, norm: RMSNorm)]
    let conv: Linear

    init(embedding: Embedding, blocks: [(q: Linear, v: Linear, norm: RMSNorm)], conv: Linear, head: Linear) {
        (self.embedding, self.blocks, self.conv, self.head) = (embedding, blocks, conv, head)
    }

    func hidden(_ input: ModelInput, _ context: ForwardContext) throws(PEFTError) -> Variable {
        guard case .ids(let ids) = input else { throw PEFTError(.argument, "ids are needed") }
        var h = try embedding(ids, context)
        for block in blocks {
            let x = try block.norm(h, context)
            h = try context.tape.add(h, try block.v(try block.q(x, context), context))
        }
        return try context.tape.add(h, try conv(h, context))
    }

    func logits(_ hidden: Variable, of input: ModelInput, rows: LogitRows, _ context: ForwardContext) throws(PEFTError)
        -> Variable
    {
        try head!(hidden, context)
    }
}

struct TinyModel {
    static let (vocabulary, size, wide) = (24, 32, 64)

    let model: Model
    let network: TinyNetwork
    let engine: Engine
    let set: AdapterSet
    let messages = Messages()

    /// - Parameter dtype: of the linear layers' weights; layers are wider where its blocks are.
    init(dtype: DType = .f32, seed: UInt64 = 1, type: String = "llama", limit: Int = .max) throws {
        let messages = messages
        engine = Engine(budget: MemoryBudget(limit: limit), log: { _, text in messages.add(text) })
        let engine = engine
        var stream = RandomStream(seed: seed)
        func random(_ shape: [Int], _ scale: Float = 0.3) throws -> Tensor {
            try Tensor(engine, (0..<shape.reduce(1, *)).map { _ in stream.normal() * scale }, shape: shape, .weights)
        }
        func weight(_ shape: [Int]) throws -> Tensor { try random(shape, scale).encoded(as: dtype, engine, .weights) }
        let d = max(TinyModel.size, dtype.blockValues)
        let (n, w, scale) = (TinyModel.vocabulary, d * TinyModel.wide / TinyModel.size, 0.3 * (Float(TinyModel.size) / Float(d)).squareRoot())
        var index = -1
        func next() -> Int {
            index += 1
            return index
        }
        let embedding = Embedding(name: "model.embed_tokens", index: next(), weight: try random([n, d], 1))
        let blocks = try (0..<2).map { i in
            (
                q: Linear(
                    name: "model.layers.\(i).self_attn.q_proj", index: next(), weight: try weight([w, d]),
                    bias: try random([w])),
                v: Linear(
                    name: "model.layers.\(i).self_attn.v_proj", index: next(), weight: try weight([d, w]), bias: nil),
                norm: RMSNorm(
                    name: "model.layers.\(i).input_layernorm", index: next(), weight: try random([d], 1), epsilon: 1e-6)
            )
        }
        let conv = Linear(
            name: "model.mix.c_fc", index: next(), weight: try weight([d, d]), bias: try random([d]), isTransposed: true
        )
        let head = Linear(name: "lm_head", index: next(), weight: try random([n, d]), bias: nil)
        network = TinyNetwork(embedding: embedding, blocks: blocks, conv: conv, head: head)
        let layers: [any Layer] = [embedding] + blocks.flatMap { [$0.q as any Layer, $0.v, $0.norm] } + [conv, head]
        model = Model(
            engine: engine, precision: .f32,
            configuration: [
                "model_type": .string(type), "architectures": .array([.string("LlamaForCausalLM")]),
                "vocab_size": .integer(Int64(n)),
            ],
            architecture: type, layers: layers, network: network)
        set = AdapterSet(model, baseName: "tiny")
    }

    /// Logits of two samples of four tokens.
    func logits(_ routing: Routing? = nil, tape: Tape? = nil) throws -> [Float] {
        try logitsVariable(routing, tape: tape ?? Tape(engine, .f32)).value.floats(engine)
    }

    /// The same for closures that the library calls.
    func output(_ tape: Tape) throws(PEFTError) -> Variable {
        do { return try logitsVariable(tape: tape) } catch { throw error as? PEFTError ?? PEFTError(.internal, "\(error)") }
    }

    func logitsVariable(_ routing: Routing? = nil, tape: Tape) throws -> Variable {
        let ids: [Int32] = [1, 5, 9, 2, 20, 7, 7, 3]
        let routing = try (routing ?? .all(set.activeAdaptation())).byTask([1, 0], batch: 2, isEach: tape.isTraining)
        let byToken = try routing.byToken(ids, batch: 2)
        let context = ForwardContext(
            tape: tape, routing: byToken ?? routing, isByToken: byToken != nil, batch: 2, length: 4,
            positions: try Tensor(engine, [0, 1, 2, 3, 0, 1, 2, 3] as [Int32], shape: [8]))
        let input = ModelInput.ids(try Tensor(engine, ids, shape: [8]))
        return try model.logits(try model.hidden(input, context), of: input, context)
    }

    /// dL/dp of random entries of every trainable parameter by central differences; L = Σ logits · weights.
    /// - Parameter movesNorms: norms of weights, which are otherwise kept for as long as nobody writes, follow the differences.
    func checkGradients(seed: UInt64, movesNorms: Bool = false, of names: (String) -> Bool = { _ in true }) throws {
        let store = GradientStore(engine)
        let tape = Tape(engine, .f32, gradients: store)
        let output = try logitsVariable(tape: tape)
        var stream = RandomStream(seed: seed)
        let weights = (0..<output.value.count).map { _ in stream.normal() }
        try tape.backward(from: output, gradient: try Tensor(engine, weights, shape: output.shape))
        // On a tape that records: what decoding keeps is not asked for.
        func loss() throws -> Double { zip(try logits(tape: Tape(engine, .f32, gradients: GradientStore(engine))), weights).reduce(0) { $0 + Double($1.0) * Double($1.1) } }
        for (key, parameter) in try set.trainableParameters() where names(key) {
            let gradient = try #require(store.gradient(of: parameter), "\(key)").floats(engine)
            let scale = gradient.map(abs).max() ?? 0
            for _ in 0..<3 {
                let index = Int(stream.below(UInt32(parameter.value.count)))
                func shifted(_ by: Float) throws -> Double {
                    parameter.value.withMutableFloats { $0[index] += by }
                    if movesNorms { model.lock.write {} }
                    defer { parameter.value.withMutableFloats { $0[index] -= by } }
                    return try loss()
                }
                let numeric = (try shifted(0.02) - shifted(-0.02)) / 0.04
                #expect(
                    abs(Double(gradient[index]) - numeric) < 0.02 * Double(scale) + 1e-3,
                    "\(key)[\(index)]: \(gradient[index]) and \(numeric)")
            }
        }
    }

    /// Gives every parameter of an adapter random values, so that it does something. Not FRoD's V: inverses of random matrices would say more
    /// about their rounding than about it.
    func randomize(_ name: String, seed: UInt64 = 3, scale: Float = 0.3) throws {
        var stream = RandomStream(seed: seed)
        let scale = scale * (Float(TinyModel.size) / Float(network.embedding.dimension)).squareRoot()
        let values = try set.state(of: name).filter { !$0.name.contains("base_layer.weight") && !$0.name.contains("frod_V") && $0.tensor.dtype.isFloat }.map { (name, tensor) in
            (
                name,
                try Tensor(engine, try tensor.floats(engine).map { $0 + stream.normal() * scale }, shape: tensor.shape)
            )
        }
        try set.setState(of: name, values.map { (name: $0.0, tensor: $0.1) })
    }
}

/// What the library said to its host's log.
final class Messages: @unchecked Sendable {
    private(set) var all: [String] = []
    func add(_ text: String) { all.append(text) }
}

/// Largest difference, relative to the largest value.
func difference(_ a: [Float], _ b: [Float]) -> Float {
    guard a.count == b.count else { return .infinity }
    let largest = b.map(abs).max() ?? 1
    return zip(a, b).map { abs($0 - $1) }.max().map { $0 / max(largest, 1e-30) } ?? 0
}

/// A configuration with the settings that most tests have.
func lora(_ changes: JSONObject = [:]) -> JSONObject {
    var config: JSONObject = [
        "peft_type": .string("LORA"), "r": .integer(4), "lora_alpha": .integer(6),
        "target_modules": .array([.string("q_proj"), .string("v_proj")]),
        "task_type": .string("CAUSAL_LM"),
    ]
    for (key, value) in changes.pairs { config[key] = value }
    return config
}

func names(_ list: String...) -> JSONValue { .array(list.map { .string($0) }) }

/// What `body` throws; nil when it does not.
func failure(_ body: () throws -> Void) -> PEFTError? {
    do { try body() } catch { return error as? PEFTError }
    return nil
}

extension PEFTError {
    func says(_ word: String) -> Bool { message.contains(word) }
}
