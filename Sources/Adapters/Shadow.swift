internal import Autograd
package import Models
package import Platform
package import Tensors

/// ShadowPEFT: a small copy of the decoder (`shadow_model` "mirror": its class with one block), or a trained one (`ShadowCheckpoint`), reads the input beside it, and its state s
/// goes along with the frozen blocks, which see how far they are from it and change it,
///
///     h ← h + α·W_up·W_down·drop(h − s);  h ← block(h);  s ← (1 − g)·s + g·T(h)    g = σ(G(h))
///
/// with T and G of two layers each. Its own answer, the head on s⁰, has a loss too. For decoders (`GatedDecoder`).
package struct Shadow: AdapterMethod {
    package static let peftType = "SHADOW"
    package static let defaults: JSONObject = [
        "auxiliary_loss_weight": .number(0.05), "exclude_modules": .null, "init_weights": .bool(true), "layers_pattern": .null,
        "layers_to_transform": .null, "modules_to_save": .null, "r": .integer(8), "shadow_alpha": .number(0.1), "shadow_dropout": .number(0.2),
        "shadow_hidden_size": .null, "shadow_intermediate_size": .null, "shadow_model": .string("mirror"), "shadow_num_attention_heads": .null,
        "shadow_num_hidden_layers": .null, "share_embeddings": .bool(true), "target_modules": .null, "update_hidden_size": .null,
    ]
    package static let layerKinds: [String] = []
    package static let defaultTargets: [String: JSONValue] = [:]
    package static let isMergeable = false

    private let network: ShadowNetwork
    package var shared: [SavedTensor] { network.parameters.map { SavedTensor($0) } }

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        guard model.network is GatedDecoder, let list = model.network.blockList else {
            throw PEFTError(.unsupported, "SHADOW for a \(model.architecture) model; it is for decoders like llama")
        }
        guard model.task == .causalLM || model.task == .features else { throw PEFTError(.unsupported, "SHADOW for a model with a head of another kind than a language model's") }
        let blocks = try Shadow.targets(&configuration, (0..<list.count).map { "\(list.name).\($0)" })
        network = try ShadowNetwork(configuration, blocks, model)
    }

    /// The blocks that are adapted; all of them become the configuration's when it names none.
    private static func targets(_ configuration: inout AdapterConfiguration, _ names: [String]) throws(PEFTError) -> [Int: String] {
        if configuration.values["target_modules"]?.isNull ?? true { configuration.values["target_modules"] = .array(names.map { .string($0) }) }
        let isTarget = try matcher("target_modules", configuration), isExcluded = try matcher("exclude_modules", configuration)
        var numbers: [Int]?
        switch configuration.values["layers_to_transform"] {
        case nil, .null: break
        case .array(let list): numbers = list.compactMap(\.intValue)
        case .some(let value): numbers = [value.intValue].compactMap { $0 }
        }
        if let container = try configuration.values.text("layers_pattern"), let own = names.first?.split(separator: ".").dropLast().last, container != own {
            throw PEFTError(.notFound, "layers_pattern is '\(container)'; the blocks of this model are in '\(own)'")
        }
        var targets: [Int: String] = [:]
        for (index, name) in names.enumerated() where numbers?.contains(index) != false {
            let (isTarget, isExcluded) = (try isTarget(name), try isExcluded(name))
            if isTarget, !isExcluded { targets[index] = name }
        }
        guard !targets.isEmpty else {
            let wanted = configuration.values["target_modules"]?.text() ?? ""
            throw PEFTError(.notFound, "target_modules \(wanted) names none of the blocks that SHADOW adapts, which are called like '\(names.first ?? "")'")
        }
        return targets
    }

    /// Names, or a regular expression; null: none.
    private static func matcher(_ key: String, _ configuration: AdapterConfiguration) throws(PEFTError) -> (String) throws(PEFTError) -> Bool {
        switch configuration.values[key] {
        case nil, .null: return { (_) throws(PEFTError) in false }
        case .array(let list):
            let wanted = list.compactMap(\.stringValue)
            return { (name) throws(PEFTError) in wanted.contains { name == $0 || name.hasSuffix("." + $0) } }
        case .string(let text):
            let pattern = try Pattern.configured(text, key)
            return { (name) throws(PEFTError) in try pattern.matchesWhole(name) }
        case .some(let other): throw PEFTError(.argument, "\(key) is \(other.kindName); names of blocks or a regular expression are expected")
        }
    }

    package func initializeShared(_ random: RandomStream) {
        var random = random
        network.initialize(&random)
    }

    package func act(on adaptation: inout Adaptation, scale: Float) throws(PEFTError) {
        guard adaptation.shadow == nil, scale == 1 else {
            throw PEFTError(.unsupported, "SHADOW acts once and as it is (shadow_alpha is its strength), not twice or with a scale of \(scale)")
        }
        adaptation.shadow = network
    }
}

/// The network beside the blocks, and what is between it and each of them.
private final class ShadowNetwork: ShadowPath {
    /// Two layers with the exact GELU between them.
    private struct Perceptron: Sendable {
        let parameters: [Parameter]

        init(_ key: String, _ size: Int, _ inner: Int, _ model: Model) throws(PEFTError) {
            parameters = [
                try model.parameter(key + ".0.weight", [inner, size]), try model.parameter(key + ".0.bias", [inner]),
                try model.parameter(key + ".2.weight", [size, inner]), try model.parameter(key + ".2.bias", [size]),
            ]
        }

        func callAsFunction(_ x: Variable, _ tape: Tape) throws(PEFTError) -> Variable {
            let v = parameters.map { tape.variable($0) }
            return try tape.linear(try tape.activation(try tape.linear(x, v[0], bias: v[1]), .gelu), v[2], bias: v[3])
        }
    }

    private struct Block: Sendable {
        let down: Parameter
        let up: Parameter
        let transform: Perceptron
        let gate: Perceptron
        var parameters: [Parameter] { [down, up] + transform.parameters + gate.parameters }
    }

    let lossWeight: Float
    private let blocks: [Int: Block]
    private let backbone: GatedDecoder
    /// Its parameters in the place of its layers' own.
    private let own: Adaptation
    private let backboneParameters: [(parameter: Parameter, layer: any Layer)]
    private let projection: Parameter?
    private let sharesEmbedding: Bool
    private let alpha: Float
    private let dropout: Float
    private let isNeutral: Bool
    /// They came with values (`ShadowCheckpoint`).
    private let isTrained: (backbone: Bool, projection: Bool)

    init(_ configuration: AdapterConfiguration, _ targets: [Int: String], _ model: Model) throws(PEFTError) {
        guard let size = model.layers.lazy.compactMap({ ($0 as? Embedding)?.dimension }).first else { throw PEFTError(.unsupported, "SHADOW without an embedding") }
        (alpha, dropout) = (Float(try configuration.number("shadow_alpha")), try configuration.probability("shadow_dropout"))
        lossWeight = Float(try configuration.number("auxiliary_loss_weight"))
        isNeutral = try configuration.flag("init_weights")
        let rank = try configuration.positive("r")
        let inner = configuration.isSet("update_hidden_size") ? try configuration.positive("update_hidden_size") : rank
        guard rank <= 1 << 20, inner <= 1 << 20 else { throw PEFTError(.argument, "r is \(rank) and update_hidden_size \(inner); up to \(1 << 20) are possible") }
        blocks = try Dictionary(uniqueKeysWithValues: targets.map { (index, name) throws(PEFTError) in
            let key = Adapter.prefix + name + ".shadow_"
            return (
                index,
                Block(
                    down: try model.parameter(key + "down.default.weight", [rank, size]), up: try model.parameter(key + "up.default.weight", [size, rank]),
                    transform: try Perceptron(key + "update_transform.default", size, inner, model), gate: try Perceptron(key + "update_gate.default", size, inner, model))
            )
        })
        let path = try configuration.values.text("shadow_model") ?? "mirror"
        let trained = path == "mirror" ? nil : try ShadowCheckpoint(path, configuration, model)
        let chosen = configuration.isSet("shadow_hidden_size") ? try configuration.positive("shadow_hidden_size") : size
        let width = trained?.hiddenSize ?? chosen
        let shares = try configuration.flag("share_embeddings")
        sharesEmbedding = trained == nil && shares && width == size
        let network = if let trained { trained.config } else { try ShadowNetwork.mirror(of: model, configuration, hasTokens: !sharesEmbedding) }
        let build = try LayerBuilder(makingFor: model.engine)
        backbone = try GatedDecoder(ModelConfiguration(network, origin: "shadow_model '\(path)'"), build)
        projection = width == size && trained?.projection == nil ? nil : try model.parameter("base_model.shadow_projection.default.weight", [size, width])
        isTrained = (trained != nil, trained?.projection != nil)
        var (own, parameters): (Adaptation, [(Parameter, any Layer)]) = (Adaptation(layerCount: build.layers.count), [])
        for layer in build.layers where !(sharesEmbedding && layer is Embedding) {
            guard !(layer is Experts) else { throw PEFTError(.unsupported, "SHADOW for a mixture of experts") }
            for (name, tensor) in layer.tensors {
                try trained?.read("\(layer.name).\(name)", into: tensor, model.engine)
                // What a trained network looks up stays as it is.
                let parameter = Parameter(
                    name: "base_model.shadow_backbone.default.\(layer.name).\(name)", value: tensor, isTrainable: trained == nil || !(layer is Embedding))
                own.layers[layer.index].replacements[name] = parameter
                parameters.append((parameter, layer))
            }
        }
        (self.own, backboneParameters) = (own, parameters)
        guard let projection, let matrix = trained?.projection else { return }
        guard matrix.shape == projection.value.shape, matrix.dtype.isWeightFormat else {
            throw PEFTError(.mismatch, "shadow_model '\(path)' leads with a matrix \(matrix.shape) to the base model's states; \(projection.value.shape) is needed")
        }
        model.engine.axpby(1, try matrix.converted(to: .f32, model.engine, .scratch), 0, into: projection.value)
    }

    /// The decoder's configuration with fewer blocks, no head and, where it reads what the decoder looked up, no tokens.
    private static func mirror(of model: Model, _ configuration: AdapterConfiguration, hasTokens: Bool) throws(PEFTError) -> JSONObject {
        var json = model.configuration
        json["architectures"] = .array([.string("MirrorModel")])
        if !hasTokens { json["vocab_size"] = .integer(1) }
        let count = configuration.isSet("shadow_num_hidden_layers") ? try configuration.positive("shadow_num_hidden_layers") : 1
        json["num_hidden_layers"] = .integer(Int64(count))
        for (key, name) in [("shadow_hidden_size", "hidden_size"), ("shadow_intermediate_size", "intermediate_size"), ("shadow_num_attention_heads", "num_attention_heads")]
        where configuration.isSet(key) { json[name] = .integer(Int64(try configuration.positive(key))) }
        if let types = json["layer_types"]?.arrayValue, let last = types.last {
            json["layer_types"] = .array((0..<count).map { $0 < types.count ? types[$0] : last })
        }
        if let most = json["max_window_layers"]?.intValue, most > count { json["max_window_layers"] = .integer(Int64(count)) }
        return json
    }

    var parameters: [Parameter] {
        blocks.sorted { $0.key < $1.key }.flatMap(\.value.parameters) + backboneParameters.map(\.parameter) + [projection].compactMap { $0 }
    }

    /// Injection of nothing, layers as torch makes them, the network beside as transformers does.
    func initialize(_ random: inout RandomStream) {
        for (_, block) in blocks.sorted(by: { $0.key < $1.key }) {
            block.down.value.fillUniform(fanIn: block.down.value.columns, &random)
            if isNeutral { block.up.value.clear() } else { block.up.value.fillUniform(fanIn: block.up.value.columns, &random) }
            for part in [block.transform, block.gate] {
                for (index, parameter) in part.parameters.enumerated() { parameter.value.fillUniform(fanIn: part.parameters[index / 2 * 2].value.columns, &random) }
            }
        }
        for (parameter, layer) in backboneParameters where !isTrained.backbone {
            if parameter.value.shape.count > 1 {
                parameter.value.fillNormal(0.02, &random)
            } else if let norm = layer as? RMSNorm {
                parameter.value.fill { 1 - norm.offset }
            } else {
                parameter.value.clear()
            }
        }
        if !isTrained.projection { projection?.value.fillUniform(fanIn: projection?.value.columns ?? 1, &random) }
    }

    func start(_ x: Variable, _ input: ModelInput, _ context: ForwardContext) throws(PEFTError) -> Variable {
        let state = try backbone.hidden(sharesEmbedding ? .embeddings(x) : input, try context.beside(backbone, own))
        guard let projection else { return state }
        return try context.tape.linear(state, context.tape.variable(projection))
    }

    func injected(into h: Variable, _ state: Variable, block: Int, _ tape: Tape) throws(PEFTError) -> Variable {
        guard let block = blocks[block] else { return h }
        let distance = try tape.dropout(try tape.add(h, try tape.scaled(state, by: -1)), dropout)
        return try tape.addLowRank(to: h, input: distance, a: tape.variable(block.down), b: tape.variable(block.up), scale: alpha)
    }

    func updated(_ state: Variable, by h: Variable, block: Int, _ tape: Tape) throws(PEFTError) -> Variable {
        guard let block = blocks[block] else { return state }
        let gate = try tape.activation(try block.gate(h, tape), .sigmoid)
        let difference = try tape.add(try block.transform(h, tape), try tape.scaled(state, by: -1))
        return try tape.add(state, try tape.multiply(gate, difference))
    }
}
