internal import Autograd
internal import Checkpoints
package import Models
package import Platform
package import Tensors

/// X-LoRA (Buehler and Buehler, arXiv:2402.07148): frozen LoRA experts, of which a classifier over the base model's states chooses for
/// each token how strongly each acts,
///
///     y = W·x + g·Σ_a σ_a·s_a·B_a·A_a·x        σ = softmax(classifier(states) / T)
package struct XLoRA: AdapterMethod {
    package static let peftType = "XLORA"
    package static let defaults: JSONObject = [
        "adapters": .null, "enable_softmax": .bool(true), "enable_softmax_topk": .bool(false), "global_scaling_weight": .number(1), "hidden_size": .null,
        "layerwise_scalings": .bool(false), "scaling_pass_value": .number(0), "softmax_temperature": .number(1), "top_k_lora": .null,
        "use_trainable_adapters": .bool(false), "xlora_depth": .integer(1), "xlora_dropout_p": .number(0.2), "xlora_size": .integer(2048),
    ]
    package static let layerKinds: [String] = []
    package static let defaultTargets: [String: JSONValue] = [:]
    package static let isMergeable = false

    private let router: ExpertRouter
    /// Experts that train are in its file too (PEFT's has the classifier alone, and loses them).
    private let trainable: [SavedTensor]
    package var shared: [SavedTensor] { router.classifier.flatMap { [SavedTensor($0.weight), SavedTensor($0.bias)] } + trainable }

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        let experts = try XLoRA.experts(&configuration, model)
        guard let embedding = model.layers.first(where: { $0 is Embedding }) as? Embedding else { throw PEFTError(.unsupported, "XLORA needs a model that reads tokens") }
        if configuration.values["hidden_size"]?.isNull ?? true { configuration.values["hidden_size"] = .integer(Int64(embedding.dimension)) }
        let hidden = try configuration.positive("hidden_size")
        guard hidden == embedding.dimension else { throw PEFTError(.argument, "hidden_size is \(hidden); the model's states have \(embedding.dimension)") }
        let choice = configuration.isSet("top_k_lora") ? try configuration.positive("top_k_lora") : nil
        if let choice, choice > experts.count { throw PEFTError(.argument, "top_k_lora is \(choice); there are \(experts.count) experts") }
        let (temperature, weight) = (try configuration.number("softmax_temperature"), try configuration.number("global_scaling_weight"))
        guard temperature.isFinite, temperature > 0, weight.isFinite else {
            throw PEFTError(.argument, "softmax_temperature is \(temperature) and global_scaling_weight \(weight); a positive and a finite number are possible")
        }
        // What dummy scalings are in PEFT's first pass, which uses none of them.
        _ = try configuration.number("scaling_pass_value")
        router = try ExpertRouter(
            experts, hidden: hidden, size: try configuration.positive("xlora_size"), depth: try configuration.positive("xlora_depth"),
            dropout: try configuration.probability("xlora_dropout_p"), isLayerwise: try configuration.flag("layerwise_scalings"),
            temperature: try configuration.flag("enable_softmax") ? Float(temperature) : nil, choice: choice, sharesChosen: try configuration.flag("enable_softmax_topk"),
            weight: Float(weight), model)
        trainable = try configuration.flag("use_trainable_adapters") ? experts.enumerated().flatMap { number, expert in
            expert.setTrainable(true)
            return expert.parameters.map { SavedTensor($0.parameter, key: "base_model.internal_xlora_experts.\(number).\($0.key)") }
        } : []
    }

    /// Experts are those of their own folders where a file does not have them.
    package func read(_ tensors: [(name: String, tensor: Tensor)], _ engine: Engine) throws(PEFTError) -> [(name: String, tensor: Tensor)] {
        let names = Set(tensors.map(\.name))
        return tensors + (try trainable.filter { !names.contains($0.key) }.map { (item) throws(PEFTError) in (item.key, try item.value(engine)) })
    }

    /// The adapters of the configuration, in its order; their paths become whole.
    private static func experts(_ configuration: inout AdapterConfiguration, _ model: Model) throws(PEFTError) -> [Adapter] {
        guard let paths = configuration.values["adapters"]?.objectValue, !paths.isEmpty else {
            throw PEFTError(.argument, "XLORA needs \"adapters\": {\"0\": the folder of a LoRA adapter, \"1\": …}")
        }
        var (experts, whole): ([Adapter], JSONObject) = ([], [:])
        for (key, value) in paths.pairs {
            guard let path = value.stringValue else { throw PEFTError(.argument, "adapters: \"\(key)\" is \(value.kindName), not a path") }
            let beside = configuration.folder.map { Files.join($0, path) }
            let found = beside.flatMap { Files.isFile(Files.join($0, AdapterFiles.configFile)) ? $0 : nil } ?? path
            whole[key] = .string(found)
            let files = try AdapterFiles.open(path: found, budget: model.engine.budget)
            let own = try AdapterConfiguration(files.config, warn: { model.engine.warn($0) })
            guard own.method == LoRA.self else { throw PEFTError(.argument, "adapters: '\(path)' is \(own.method.peftType); experts are LORA") }
            let (expert, changes) = try AdapterSet(model).read(files, own)
            guard expert.replacements.isEmpty, expert.replication == nil, changes.isEmpty else {
                throw PEFTError(.unsupported, "adapters: '\(path)' has more than branches of low rank (saved modules, biases, other base weights, replicated layers)")
            }
            expert.setTrainable(false)
            experts.append(expert)
        }
        configuration.values["adapters"] = .object(whole)
        return experts
    }

    package func initializeShared(_ random: RandomStream) {
        var random = random
        for layer in router.classifier {
            let bound = 1 / Float(max(layer.weight.value.columns, 1)).squareRoot()
            for parameter in [layer.weight, layer.bias] { parameter.value.fill(within: bound, &random) }
        }
    }

    package func act(on adaptation: inout Adaptation, scale: Float) throws(PEFTError) {
        guard adaptation.router == nil, scale == 1 else {
            throw PEFTError(.unsupported, "XLORA acts once and as it is (global_scaling_weight is its strength), not twice or with a scale of \(scale)")
        }
        adaptation.router = router
    }
}

/// The classifier, and what experts do where.
private final class ExpertRouter: TokenRouter {
    let classifier: [(weight: Parameter, bias: Parameter)]
    /// By layer, in the order of the model: each expert's branch, nil where it has none.
    private let layers: [(layer: any Layer, branches: [(any AdapterModule)?])]
    private let expertCount: Int
    private let dropout: Float
    private let isLayerwise: Bool
    /// nil: scores are weights.
    private let temperature: Float?
    private let choice: Int?
    private let sharesChosen: Bool
    private let weight: Float

    init(
        _ experts: [Adapter], hidden: Int, size: Int, depth: Int, dropout: Float, isLayerwise: Bool, temperature: Float?, choice: Int?, sharesChosen: Bool, weight: Float,
        _ model: Model
    ) throws(PEFTError) {
        guard depth <= 64, size <= 1 << 20 else { throw PEFTError(.argument, "xlora_depth is \(depth) and xlora_size \(size); up to 64 and \(1 << 20) are possible") }
        (expertCount, self.dropout, self.isLayerwise, self.temperature) = (experts.count, depth > 1 ? dropout : 0, isLayerwise, temperature)
        (self.choice, self.sharesChosen, self.weight) = (choice, sharesChosen, weight)
        var layers: [(layer: any Layer, branches: [(any AdapterModule)?])] = []
        for layer in model.layers {
            let branches = experts.map { expert in expert.modules.first { $0.layer.index == layer.index } }
            guard branches.contains(where: { $0 != nil }) else { continue }
            for case let branch? in branches where !((branch as? LinearLoRA).map { $0.magnitude == nil && $0.bias == nil && $0.layer is Linear } ?? (branch is EmbeddingLoRA)) {
                throw PEFTError(.unsupported, "XLORA: an expert is more than LoRA of a linear layer or embedding at '\(layer.name)'")
            }
            guard layer.index != model.network.head?.index else { throw PEFTError(.unsupported, "XLORA: an expert adapts the head '\(layer.name)'") }
            layers.append((layer, branches))
        }
        self.layers = layers
        let outputs = try checkedProduct(experts.count, isLayerwise ? layers.count : 1, of: "classes")
        let sizes = [hidden] + Array(repeating: size, count: depth - 1) + [outputs]
        // Slots of torch's Sequential: linear, ReLU, and dropout where there is some.
        let stride = dropout > 0 ? 3 : 2
        classifier = try zip(sizes, sizes.dropFirst()).enumerated().map { (index, sizes) throws(PEFTError) in
            let key = "base_model.internal_xlora_classifier.layers.\(index * stride)"
            return (
                Parameter(name: key + ".weight", value: try Tensor.zeros(model.engine, [sizes.1, sizes.0], .f32, .adapters)),
                Parameter(name: key + ".bias", value: try Tensor.zeros(model.engine, [sizes.1], .f32, .adapters))
            )
        }
    }

    func routed(_ adaptation: Adaptation, by states: Variable, _ tape: Tape) throws(PEFTError) -> Adaptation {
        var x = try tape.cast(states, to: .f32)
        for (index, layer) in classifier.enumerated() {
            if index > 0 { x = try tape.dropout(try tape.activation(x, .relu), dropout) }
            x = try tape.linear(x, tape.variable(layer.weight), bias: tape.variable(layer.bias))
        }
        let scores = isLayerwise ? try tape.splitColumns(x, Array(repeating: expertCount, count: layers.count)) : [x]
        let given = try scores.map { (scores) throws(PEFTError) in try self.weights(scores, tape) }
        let shares = try given.map { (weights) throws(PEFTError) in try chosen(weights, tape) }
        var routed = adaptation
        routed.shares = given.map(\.value)
        for (number, item) in layers.enumerated() {
            let columns = shares[isLayerwise ? number : 0]
            routed.layers[item.layer.index].hooks.append(WeighedExperts(item.branches, columns, weight))
        }
        return routed
    }

    /// `[rows, experts]`, before the strongest are chosen.
    private func weights(_ scores: Variable, _ tape: Tape) throws(PEFTError) -> Variable {
        guard let temperature else { return scores }
        return try tape.softmax(temperature == 1 ? scores : try tape.scaled(scores, by: 1 / temperature))
    }

    /// A column for each expert, `[rows]`.
    private func chosen(_ weights: Variable, _ tape: Tape) throws(PEFTError) -> [Variable] {
        var x = weights
        if let choice {
            let values = tape.engine.isPlanning ? Array(repeating: 0, count: x.value.count) : try x.value.floats(tape.engine)
            var mask = [Float](repeating: 0, count: values.count)
            for start in stride(from: 0, to: values.count, by: expertCount) {
                for index in (start..<start + expertCount).sorted(by: { values[$0] > values[$1] }).prefix(choice) { mask[index] = 1 }
            }
            // PEFT takes this softmax over all tokens of a batch together; a token's share would depend on its neighbours.
            x = sharesChosen ? try tape.softmax(x, mask: mask) : try tape.multiply(x, Variable(try Tensor(tape.engine, mask, shape: x.shape)))
        } else if sharesChosen {
            x = try tape.softmax(x)
        }
        return try tape.splitColumns(x, Array(repeating: 1, count: expertCount)).map { (column) throws(PEFTError) in try tape.reshaped(column, [column.value.count]) }
    }
}

/// The experts at one layer in one pass.
private final class WeighedExperts: LayerHook, @unchecked Sendable {
    // Sendable: it belongs to one pass.
    private let branches: [(any AdapterModule)?]
    private let shares: [Variable]
    private let weight: Float

    init(_ branches: [(any AdapterModule)?], _ shares: [Variable], _ weight: Float) { (self.branches, self.shares, self.weight) = (branches, shares, weight) }

    func add(to y: consuming Variable, input x: Variable, of layer: Linear, _ tape: Tape) throws(PEFTError) -> Variable {
        var y = y
        for (branch, share) in zip(branches, shares) {
            guard let lora = branch as? LinearLoRA else { continue }
            guard share.value.count == x.value.rows else { throw PEFTError(.unsupported, "XLORA at '\(layer.name)', which sees \(x.value.rows) rows for \(share.value.count) tokens") }
            let inner = try tape.linear(try tape.dropout(x, lora.dropout), try tape.matrix(lora.a))
            y = try sum(y, inner, share, try tape.matrix(lora.b), lora.factor, tape)
        }
        return y
    }

    func output(_ y: consuming Variable, ids: Tensor, of layer: Embedding, _ tape: Tape) throws(PEFTError) -> Variable {
        var y = y
        for (branch, share) in zip(branches, shares) {
            guard let lora = branch as? EmbeddingLoRA else { continue }
            guard share.value.count == ids.count else { throw PEFTError(.unsupported, "XLORA at '\(layer.name)', which sees \(ids.count) ids for \(share.value.count) tokens") }
            let none = Variable(try Tensor.zeros(tape.engine, y.shape, y.value.dtype))
            let made = try tape.addLowRankEmbedding(to: none, ids: ids, a: tape.variable(lora.a), b: tape.variable(lora.b), scale: Float(lora.factor) * weight)
            y = try tape.add(y, try tape.scaleRows(made, share))
        }
        return y
    }

    /// `y + g·s·B·(σ ⊙ inner)`
    private func sum(_ y: consuming Variable, _ inner: Variable, _ share: Variable, _ b: Variable, _ factor: Double, _ tape: Tape) throws(PEFTError) -> Variable {
        let product = try tape.linear(try tape.scaleRows(inner, share), b)
        return try tape.add(y, try tape.scaled(product, by: Float(factor) * weight))
    }
}
