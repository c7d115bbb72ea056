package import Autograd
package import Models
package import Platform
internal import Tensors
internal import Tokenizers

/// A method that adapts no layer, but puts learned rows in front of something: of the input, or of the keys and values of attention.
package protocol PromptMethod: AdapterMethod {
    var encoder: PromptEncoder { get }
    /// The rows as keys and values; nil: they stand in front of the input.
    var memory: PrefixMemory? { get }
    /// They stand in the text; nil: in front of it.
    var placed: PlacedPrompt? { get }
}

extension PromptMethod {
    package var placed: PlacedPrompt? { nil }
    package var memory: PrefixMemory? { nil }
    package static var layerKinds: [String] { [] }
    package static var isMergeable: Bool { false }

    package func act(on adaptation: inout Adaptation, scale: Float) throws(PEFTError) {
        guard scale == 1 else { throw PEFTError(.unsupported, "\(Self.peftType) with a scale or weight of \(scale): virtual tokens have none") }
        if let placed { return adaptation.layers[placed.embedding.index].hooks.append(placed) }
        guard memory == nil ? adaptation.prompt == nil : adaptation.memory == nil else {
            throw PEFTError(.unsupported, "two adapters with \(memory == nil ? "virtual tokens" : "a prefix") cannot act together; activate one of them")
        }
        if let memory {
            guard adaptation.runs == nil else { throw PEFTError(.unsupported, "\(Self.peftType) beside layer_replication: it has keys for the model's own layers") }
            adaptation.memory = memory
            if memory.isGated { adaptation.readsWholeText = true }
        } else {
            adaptation.prompt = encoder
        }
    }

    package static var defaultTargets: [String: JSONValue] { [:] }
}

/// What makes the rows of virtual tokens out of an embedding while they are trained; files have its output alone.
protocol PromptNetwork: AnyObject, Sendable {
    var parameters: [Parameter] { get }
    var outputSize: Int { get }
    func initialize(_ random: inout RandomStream)
    /// `[count, n]` → `[count, outputSize]`
    func callAsFunction(_ x: Variable, _ tape: Tape) throws(PEFTError) -> Variable
}

/// Where the values of fresh virtual tokens come from.
enum PromptStart: Sendable {
    /// N(0, 1)
    case random
    case zeros
    /// Rows of the model's embedding, drawn.
    case vocabulary(Embedding)
    /// Those of a text's tokens, repeated to the length.
    case text(String, path: String?, addSpecialTokens: Bool, Embedding)
    /// Those of these tokens.
    case tokens([Int32], Embedding)
    /// From elsewhere, `[rows, width]`.
    case values(Tensor)
}

/// The learned rows of one adapter, and how they come about.
package final class PromptEncoder: VirtualTokens {
    static let savedKey = "prompt_embeddings"
    static let prefix = "prompt_encoder."

    /// Virtual tokens.
    package let count: Int
    /// One for each of them, and for an encoder-decoder as many again (PEFT's `num_transformer_submodules`), which but for several tasks
    /// nothing reads.
    let shape: [Int]
    private let embedding: Parameter
    /// Rows in front of the embedding's, which do not train.
    private let frozen: Parameter?
    private let network: (any PromptNetwork)?
    private let factors: TaskFactors?
    /// Of a prefix, by layer (`PrefixTuning`).
    let gates: [TextGate]
    package let labels: ContextLabels?
    private let start: PromptStart
    private let engine: Engine
    private let isOutputOnly: String?

    /// - Parameters:
    ///   - rows: of the embedding, `width` wide.
    ///   - name: of the embedding in a training's checkpoint.
    ///   - network: nil: the embedding is what stands in front.
    ///   - factors: what tasks multiply the rows by; nil: there is one task.
    ///   - trainsEmbedding: false: the network alone is learned.
    ///   - isNew: false: it comes from a file, which has no network.
    init(
        _ method: String, count: Int, rows: Int, width: Int, name: String = "embedding.weight", frozenRows: Int = 0, network: (any PromptNetwork)? = nil,
        factors: TaskFactors? = nil, gates: [TextGate] = [], trainsEmbedding: Bool = true, start: PromptStart,
        context: ContextLabels? = nil, isNew: Bool, _ model: Model
    ) throws(PEFTError) {
        self.count = count
        self.start = start
        (self.factors, self.gates) = (factors, gates)
        labels = context
        engine = model.engine
        shape = [rows, network?.outputSize ?? width]
        self.network = isNew ? network : nil
        isOutputOnly = isNew || network == nil ? nil : method
        let size = isNew ? [rows, width] : shape
        _ = try checkedProduct(size[0], size[1], of: "virtual tokens")
        frozen = frozenRows == 0 ? nil : Parameter(
            name: PromptEncoder.prefix + "frozen_embedding", value: try Tensor.zeros(model.engine, [frozenRows, size[1]], .f32, .adapters), isTrainable: false)
        embedding = Parameter(
            name: isNew || frozen != nil ? PromptEncoder.prefix + name : PromptEncoder.savedKey,
            value: try Tensor.zeros(model.engine, [size[0] - frozenRows, size[1]], .f32, .adapters), isTrainable: trainsEmbedding && isOutputOnly == nil)
    }

    /// In torch's order.
    var parameters: [Parameter] { (frozen.map { [$0] } ?? []) + [embedding] + more + (network?.parameters ?? []) }
    /// What files have beside the rows.
    private var more: [Parameter] { (factors?.parameters ?? []) + gates.flatMap(\.parameters) }

    var saved: [SavedTensor] {
        let rows =
            if network != nil { SavedTensor(encodedBy: self, key: PromptEncoder.savedKey) } else if let frozen {
                SavedTensor(stacking: [frozen, embedding], key: PromptEncoder.savedKey)
            } else { SavedTensor(embedding, key: PromptEncoder.savedKey) }
        return [rows] + more.map { SavedTensor($0, key: String($0.name.dropFirst(PromptEncoder.prefix.count))) }
    }

    /// What files have: f32 of `shape`.
    func table(_ tape: Tape) throws(PEFTError) -> Variable {
        var x = tape.variable(embedding)
        if let frozen { x = try tape.concatenateRows([tape.variable(frozen), x]) }
        return if let network { try network(x, tape) } else { x }
    }

    package var taskCount: Int? { factors?.taskCount }
    package var leadsDecoder: Bool { factors != nil && shape[0] > count }

    package func rows(task: Int, ofDecoder: Bool, _ tape: Tape) throws(PEFTError) -> Variable {
        var table = try table(tape)
        if let factors { table = try tape.multiply(table, try factors(task, tape)) }
        return count == table.value.rows ? table : try tape.rows(table, ofDecoder ? count..<2 * count : 0..<count)
    }

    /// - Throws: `.unsupported` where only the output of a network is known.
    func checkIsTrainable() throws(PEFTError) {
        guard let method = isOutputOnly else { return }
        throw PEFTError(
            .unsupported, "files of \(method) hold the output of its encoder only, so this adapter can act but not be trained; make a new one, or load a training's checkpoint")
    }

    /// Fresh values.
    func initialize(_ random: RandomStream, _ tokenizer: Tokenizer?) throws(PEFTError) {
        var random = random
        network?.initialize(&random)
        factors?.initialize(&random)
        for gate in gates { gate.initialize(&random) }
        if let frozen, case .random = start { engine.axpby(1, try Tensor(engine, random.normals(frozen.value.count), shape: frozen.value.shape, .scratch), 0, into: frozen.value) }
        let (value, rows) = (embedding.value, embedding.value.rows)
        switch start {
        case .zeros: value.clear()
        case .random: engine.axpby(1, try Tensor(engine, random.normals(value.count), shape: value.shape, .scratch), 0, into: value)
        case .values(let tensor): engine.axpby(1, tensor, 0, into: value)
        case .tokens(let ids, let layer): try take(ids, of: layer)
        case .vocabulary(let layer):
            let bound = UInt32(clamping: layer.count)
            try take((0..<rows).map { _ in Int32(clamping: random.below(bound)) }, of: layer)
        case .text(let text, let path, let addSpecialTokens, let layer):
            let own = try path.flatMap { (path) throws(PEFTError) in Files.isFile(Files.join(path, "tokenizer.json")) ? try Tokenizer.open(path: path, budget: engine.budget) : nil }
            guard let tokenizer = own ?? tokenizer else {
                throw PEFTError(.argument, "prompt_tuning_init TEXT needs a tokenizer: the model came without one, and tokenizer_name_or_path (\(path ?? "null")) is no folder with a tokenizer.json")
            }
            let ids = try tokenizer.encode(text, addSpecialTokens: addSpecialTokens)
            guard !ids.isEmpty else { throw PEFTError(.argument, "prompt_tuning_init_text \"\(text)\" has no tokens") }
            if let wrong = ids.first(where: { $0 < 0 || Int($0) >= layer.count }) {
                throw PEFTError(.mismatch, "the tokenizer gives the id \(wrong); the model's are 0 to \(layer.count - 1)")
            }
            try take((0..<rows).map { ids[$0 % ids.count] }, of: layer)
        }
    }

    private func take(_ ids: [Int32], of layer: Embedding) throws(PEFTError) {
        let found = try Tape(engine, .f32).embedding(try Tensor(engine, ids, shape: [ids.count]), frozen: layer.weight)
        engine.axpby(1, found.value, 0, into: embedding.value)
    }
}

// MARK: Configuration

/// What prompt methods have in common: the numbers of the model, which files repeat.
struct PromptSettings {
    static let defaults: JSONObject = [
        "modules_to_save": .null, "num_attention_heads": .null, "num_layers": .null, "num_transformer_submodules": .null, "num_virtual_tokens": .null, "token_dim": .null,
    ]

    /// Virtual tokens.
    let count: Int
    /// Of one row.
    let width: Int
    /// Parts of the model that have some.
    let parts: Int
    let layers: Int
    let heads: Int
    /// The words'.
    let embedding: Embedding

    /// Reads the keys, filling in those that are null.
    /// - Parameter isMemory: rows are keys and values, of which heads may share some: their number and width are meant.
    init(_ configuration: inout AdapterConfiguration, _ model: Model, isMemory: Bool = false) throws(PEFTError) {
        let method = configuration.method.peftType
        guard let embedding = model.layers.first(where: { $0 is Embedding }) as? Embedding else {
            throw PEFTError(.unsupported, "\(method) needs a model that reads tokens; a \(model.architecture) model does not")
        }
        self.embedding = embedding
        func inferred(_ key: String, _ names: [String], least: Int = 1) throws(PEFTError) -> Int {
            if configuration.values[key]?.isNull ?? true, let value = names.lazy.compactMap({ model.configuration[$0]?.intValue }).first { configuration.values[key] = .integer(Int64(value)) }
            guard let value = try configuration.values.integer(key) else { throw PEFTError(.argument, "Please specify `\(key)`: the model's configuration does not say it") }
            guard value >= least, value <= 1 << 20 else { throw PEFTError(.argument, "\(key) is \(value); \(least) to \(1 << 20) are possible") }
            return value
        }
        guard !(configuration.values["num_virtual_tokens"]?.isNull ?? true) else { throw PEFTError(.argument, "\(method) needs num_virtual_tokens, a positive integer") }
        count = try inferred("num_virtual_tokens", [])
        layers = try inferred("num_layers", ["num_hidden_layers", "num_layers", "n_layer", "n_layers"])
        if isMemory, let shape = model.network.cacheShape {
            for (key, value) in [("token_dim", shape.keyValueHeads * shape.headSize), ("num_attention_heads", shape.keyValueHeads)] where configuration.values[key]?.isNull ?? true {
                configuration.values[key] = .integer(Int64(value))
            }
        }
        width = try inferred("token_dim", ["hidden_size", "n_embd", "d_model", "dim"])
        heads = try inferred("num_attention_heads", ["num_attention_heads", "n_head", "num_heads", "encoder_attention_heads", "n_heads"])
        if configuration.values["num_transformer_submodules"]?.isNull ?? true {
            configuration.values["num_transformer_submodules"] = .integer(configuration.taskType == "SEQ_2_SEQ_LM" ? 2 : 1)
        }
        parts = try inferred("num_transformer_submodules", [])
        if let longest = model.network.cacheShape?.maximumLength, count >= longest {
            throw PEFTError(.argument, "num_virtual_tokens is \(count), which leaves no place for tokens in the model's context of \(longest)")
        }
    }

    /// - Throws: `.mismatch` where rows are not as wide as the model's.
    func checkWidth() throws(PEFTError) {
        guard width == embedding.dimension else { throw PEFTError(.argument, "token_dim is \(width); the rows of this model's '\(embedding.name)' have \(embedding.dimension)") }
    }

    func rows() throws(PEFTError) -> Int { try checkedProduct(count, parts, of: "virtual tokens") }
}
