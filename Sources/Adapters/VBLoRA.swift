internal import Autograd
internal import Glibc
package import Models
package import Platform
package import Tensors

/// VB-LoRA (Li et al., arXiv:2405.15179): A and B of all layers are put together from one bank of vectors. Each piece of
/// `vector_length` values is a mixture of the k vectors with the largest logits:
///
///     y += B·A·drop(x)      A[ρ, piece t]ᵀ = Σ_j softmax(top-k logits_A[ρ, t])_j · bank[j]       B[piece t, ρ] likewise
package struct VBLoRA: AdapterMethod {
    package static let peftType = "VBLORA"
    package static let defaults: JSONObject = [
        "bias": .string("none"), "exclude_modules": .null, "fan_in_fan_out": .bool(false), "init_logits_std": .number(0.1),
        "init_vector_bank_bound": .number(0.02), "layers_pattern": .null, "layers_to_transform": .null,
        "modules_to_save": .null, "num_vectors": .integer(256), "r": .integer(4), "save_only_topk_weights": .bool(false),
        "target_modules": .null, "topk": .integer(2), "vblora_dropout": .number(0), "vector_length": .integer(256),
    ]
    package static let defaultTargets: [String: JSONValue] = {
        var table: [String: JSONValue] = [:].with(
            (["q", "k", "v", "o", "wi", "wo"], ["t5"]), (["q", "k", "v", "o", "wi_0", "wi_1", "wo"], ["mt5"]),
            (["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"], ["bart", "opt"]),
            (["c_attn"], ["gpt2", "gpt_bigcode"]), (["query_key_value"], ["bloom", "gpt_neox"]),
            (["q_proj", "v_proj"], ["gptj", "gpt_neo", "llama", "llama4", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3"]),
            (["query", "value"], ["bert", "roberta"]), (["query_proj", "key_proj", "value_proj", "dense"], ["deberta-v2"]),
            (["in_proj"], ["deberta"]), (["q_proj", "k_proj", "v_proj", "o_proj"], ["nemotron_h"]))
        table["gemma4"] = DefaultTargets.lora["gemma4"]
        return table
    }()

    private let rank: Int
    private let length: Int
    private let topK: Int
    private let dropout: Float
    private let bound: Float
    private let deviation: Float
    private let isCompact: Bool
    private let bank: Parameter

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        rank = try configuration.positive("r")
        length = try configuration.positive("vector_length")
        topK = try configuration.positive("topk")
        dropout = try configuration.probability("vblora_dropout")
        bound = Float(try configuration.number("init_vector_bank_bound"))
        deviation = Float(try configuration.number("init_logits_std"))
        isCompact = try configuration.flag("save_only_topk_weights")
        let count = try configuration.positive("num_vectors")
        guard topK <= count else {
            throw PEFTError(.argument, "topk is \(topK); the bank has only \(count) vectors (num_vectors)")
        }
        try configuration.checkBias()
        bank = try model.parameter("base_model.vblora_vector_bank", [count, length])
    }

    package mutating func prepare(for targets: [any Layer], _ configuration: inout AdapterConfiguration, _ model: Model)
        throws(PEFTError)
    {
        try configuration.matchLayout(of: targets, { model.engine.warn($0) })
    }

    package var shared: [SavedTensor] { [SavedTensor(bank)] }

    package func initializeShared(_ random: RandomStream) {
        var random = random
        bank.value.fill { (2 * random.uniform() - 1) * bound }
    }

    package func module(for layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule {
        let linear = try VBLoRA.linear(layer)
        for (size, what) in [(linear.inputSize, "in_features"), (linear.outputSize, "out_features")] where size % length != 0 {
            throw PEFTError(
                .argument, "`\(what)` \(size) of '\(layer.name)' must be divisible by `vector_length` \(length)")
        }
        return try VBLoRALinear(
            linear, key: key + ".vblora_logits", rank: rank, bank, topK: topK, dropout: dropout, deviation: deviation, model)
    }

    // MARK: Compact files

    private static let (indexEnd, weightEnd) = ("_topk_indices", "_topk_weights")

    /// `save_only_topk_weights`: of each piece which vectors, and their weights but the last, which is what is missing to 1.
    package func written(_ tensors: [(name: String, tensor: Tensor)], _ engine: Engine) throws(PEFTError) -> [(
        name: String, tensor: Tensor
    )] {
        guard isCompact else { return tensors }
        var result: [(name: String, tensor: Tensor)] = []
        for (name, tensor) in tensors {
            guard name.split(separator: ".").last?.hasPrefix("vblora_logits_") ?? false else {
                result.append((name, tensor))
                continue
            }
            let shape = Array(tensor.shape.dropLast()), count = tensor.columns
            let picks = Tape.top(topK, of: tensor)
            let dtype: DType = count < 1 << 8 ? .u8 : count < 1 << 15 ? .i16 : .i32
            let table = IndexTable(
                key: name, shape: shape + [topK], as: dtype, below: count, picks.flatMap { $0.indices.map { Int32(clamping: $0) } })
            result.append((name + VBLoRA.indexEnd, try table.tensor(engine)))
            result.append(
                (name + VBLoRA.weightEnd, try Tensor(engine, picks.flatMap { $0.weights.dropLast() }, shape: shape + [topK - 1])))
        }
        return result
    }

    package func read(_ tensors: [(name: String, tensor: Tensor)], _ engine: Engine) throws(PEFTError) -> [(
        name: String, tensor: Tensor
    )] {
        guard isCompact else { return tensors }
        let byName = Dictionary(tensors.map { ($0.name, $0.tensor) }) { first, _ in first }
        var result: [(name: String, tensor: Tensor)] = []
        for (name, tensor) in tensors where !name.hasSuffix(VBLoRA.weightEnd) {
            guard name.hasSuffix(VBLoRA.indexEnd) else {
                result.append((name, tensor))
                continue
            }
            let base = String(name.dropLast(VBLoRA.indexEnd.count))
            let pieces = tensor.rows, count = bank.value.rows
            guard let weights = try byName[base + VBLoRA.weightEnd]?.floats(engine), weights.count == pieces * (topK - 1),
                let indices = tensor.integers(), indices.count == pieces * topK, indices.allSatisfy({ 0..<count ~= Int($0) })
            else {
                throw PEFTError(
                    .mismatch,
                    "'\(base)': \(topK) indices below \(count) and \(topK - 1) weights for each piece are needed (topk, num_vectors)")
            }
            var logits = [Float](repeating: -.infinity, count: pieces * count)
            for piece in 0..<pieces {
                let known = Array(weights[piece * (topK - 1)..<(piece + 1) * (topK - 1)])
                for (place, weight) in (known + [1 - known.reduce(0, +)]).enumerated() {
                    logits[piece * count + Int(indices[piece * topK + place])] = log(max(weight, 0))
                }
            }
            result.append((base, try Tensor(engine, logits, shape: tensor.shape.dropLast() + [count])))
        }
        return result
    }
}

private final class VBLoRALinear: LinearBranch {
    let linear: Linear
    /// f32 `[r, in/length, vectors]`
    let a: Parameter
    /// f32 `[out/length, r, vectors]`
    let b: Parameter
    private let bank: Parameter
    private let topK: Int
    private let dropout: Float
    private let deviation: Float

    init(
        _ linear: Linear, key: String, rank: Int, _ bank: Parameter, topK: Int, dropout: Float, deviation: Float, _ model: Model
    ) throws(PEFTError) {
        (self.linear, self.bank, self.topK, self.dropout, self.deviation) = (linear, bank, topK, dropout, deviation)
        let (count, length) = (bank.value.rows, bank.value.columns)
        a = try model.parameter(key + "_A", [rank, linear.inputSize / length, count])
        b = try model.parameter(key + "_B", [linear.outputSize / length, rank, count])
    }

    let isLowRank = true
    var parameters: [Parameter] { [a, b] }

    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        var random = random
        for logits in [a, b] { logits.value.fillNormal(deviation, &random) }
        return [:]
    }

    func add(to y: consuming Variable, input x: Variable, beside w: Tensor, scale: Float, _ tape: Tape)
        throws(PEFTError) -> Variable
    {
        let (rank, tiles) = (a.value.shape[0], b.value.shape[0])
        let bank = tape.variable(bank)
        let first = try tape.reshaped(try tape.topMixture(tape.variable(a), bank, topK), [rank, linear.inputSize])
        // Bᵀ [r, out]: the pieces in the order (ρ, t).
        let order = (0..<rank).flatMap { row in (0..<tiles).map { Int32(truncatingIfNeeded: $0 * rank + row) } }
        let flat = try tape.reshaped(tape.variable(b), [tiles * rank, b.value.columns])
        let second = try tape.reshaped(
            try tape.topMixture(try tape.gatherRows(flat, order), bank, topK), [rank, linear.outputSize])
        return try tape.addProduct(to: y, input: x, [.matrix(first), .transposed(second)], scale: scale, dropout: dropout)
    }
}
