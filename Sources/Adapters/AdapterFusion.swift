internal import Autograd
package import Models
package import Platform
package import Tensors

/// AdapterFusion (Pfeiffer et al., arXiv:2005.00247): at each place attention over what several bottleneck adapters make there. With uᵢ
/// their results, q what the block computed (or, before its norm, what the adapter sees) and r the residual,
///
///     r + V·Σᵢ σᵢ·uᵢ        σ = softmax((Q·q)·(K·uᵢ) / T)
///
/// T is 1; with `temperature` it begins at 50 and falls by 0.05 with each step of training (in the library with each pass, and it begins
/// anew whenever it is loaded; here files say what it is).
/// The members are other adapters of the model; they are named, not held.
package struct AdapterFusion: AdapterMethod {
    package static let peftType = "ADAPTER_FUSION"
    private static let choices = ["dropout_prob", "key", "query", "query_before_ln", "regularization", "residual_before", "temperature", "value", "value_before_softmax", "value_initialized"]
    private static let places: [(key: String, part: BlockPlace.Part)] = [("cross_adapter", .cross), ("mh_adapter", .attention), ("output_adapter", .output)]
    /// null: what `config` names ("dynamic", "static"); of the places: where all members stand.
    package static let defaults: JSONObject = {
        var keys: JSONObject = ["adapters": .null, "config": .null]
        for key in choices + places.map(\.key) { keys[key] = .null }
        return keys
    }()
    package static let layerKinds: [String] = []
    package static let defaultTargets: [String: JSONValue] = [:]
    package static let isMergeable = false

    let members: [String]
    let modules: [FusionModule]
    private let companion: FusionCompanion
    package var shared: [SavedTensor] { modules.flatMap { $0.parameters.map { SavedTensor($0) } } }

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        guard let width = Bottleneck.width(of: model), !model.network.joins.isEmpty else { throw PEFTError(.unsupported, "ADAPTER_FUSION for a \(model.architecture) model") }
        members = try configuration.values.strings("adapters") ?? []
        guard members.count > 1, Set(members).count == members.count else {
            throw PEFTError(.argument, "ADAPTER_FUSION needs \"adapters\", the names of two or more bottleneck adapters of the model, each once")
        }
        let name = try configuration.values.text("config") ?? "dynamic"
        guard name == "dynamic" || name == "static" else { throw PEFTError(.argument, "config is \"\(name)\"; \"dynamic\" and \"static\" are possible") }
        for key in AdapterFusion.choices where key != "dropout_prob" && configuration.values[key]?.isNull ?? true {
            let isOn = key == "key" || key == "query" || key == "value_before_softmax" || (name == "dynamic" && ["value", "regularization", "value_initialized"].contains(key))
            configuration.values[key] = .bool(isOn)
        }
        configuration.values["config"] = .null
        let settings = try FusionSettings(configuration, model)
        let isRegularized = try configuration.flag("regularization") && settings.hasValue
        var parts: Set<BlockPlace.Part> = []
        for place in AdapterFusion.places where try configuration.flag(place.key) { parts.insert(place.part) }
        modules = try model.network.joins.filter { parts.contains($0.part) }.map { (place) throws(PEFTError) in
            try FusionModule(place, width: width, settings, model.engine)
        }
        companion = FusionCompanion(isRegularized ? modules.compactMap(\.value) : [], settings.temperature)
        guard !modules.isEmpty else { throw PEFTError(.argument, "mh_adapter, output_adapter and cross_adapter are false: there is no place where all of \(members.joined(separator: ", ")) stand") }
    }

    /// The places, where a configuration does not say them: those of all its members.
    static func complete(_ configuration: inout AdapterConfiguration, _ member: (String) throws(PEFTError) -> Adapter) throws(PEFTError) {
        guard configuration.method == AdapterFusion.self, AdapterFusion.places.allSatisfy({ configuration.values[$0.key]?.isNull ?? true }) else { return }
        let adapters = try (try configuration.values.strings("adapters") ?? []).map { (name) throws(PEFTError) in (name, try member(name)) }
        for (name, adapter) in adapters where !(adapter.method is Bottleneck) {
            throw PEFTError(.unsupported, "fusion of '\(name)', which is \(adapter.configuration.method.peftType); BOTTLENECK adapters can be fused")
        }
        for place in AdapterFusion.places {
            configuration.values[place.key] = .bool(adapters.allSatisfy { $0.1.configuration.values[place.key] == .bool(true) })
        }
    }

    package func initializeShared(_ random: RandomStream) {
        var random = random
        for module in modules { module.initialize(&random) }
    }

    package func companion(of modules: [any AdapterModule], _ model: Model) throws(PEFTError) -> (any AdapterCompanion)? {
        companion
    }

    /// Adds it to what acts: the members' modules, place by place.
    func act(on adaptation: inout Adaptation, _ members: [[(method: Bottleneck, scale: Float)]]) throws(PEFTError) {
        if adaptation.coupling == nil { adaptation.coupling = members.first?.first?.method.inverse }
        for module in modules {
            let chains = members.map { chain in
                chain.compactMap { item in item.method.modules.first { $0.place == module.place }.map { BottleneckHook($0, item.scale, isFrozen: true) } }
            }.filter { !$0.isEmpty }
            guard let hook = FusionHook(module, chains) else { continue }
            // Gates of the last of a chain do not act.
            if chains.contains(where: { $0.dropLast().contains { $0.isGated } }) { adaptation.readsWholeText = true }
            adaptation.joins[module.place, default: []].append(hook)
        }
    }

    // MARK: The library's files

    /// The library's adapter_fusion_config.json as one of ours; nil: it is none.
    static func configuration(from json: JSONObject) throws(PEFTError) -> JSONObject? {
        guard json["peft_type"] == nil, let own = json["config"]?.objectValue, own["query_before_ln"] != nil else { return nil }
        var configuration: JSONObject = ["peft_type": .string(peftType)]
        for (key, value) in own.pairs { configuration[key] = value }
        let named = (try json.text("name") ?? "").split(separator: ",").map { String($0) }
        configuration["adapters"] = .array((try json.strings("adapter_names") ?? named).map { .string($0) })
        return configuration
    }

    /// The other way round.
    static func library(_ configuration: JSONObject, _ name: String, _ model: Model) -> JSONObject {
        var own = JSONObject()
        for key in choices { own[key] = configuration[key] ?? .null }
        var json = Bottleneck.library(configuration, name, model)
        (json["config"], json["config_id"], json["adapter_names"]) = (.object(own), nil, configuration["adapters"])
        return json
    }

    package func read(_ tensors: [(name: String, tensor: Tensor)], _ engine: Engine) throws(PEFTError) -> [(name: String, tensor: Tensor)] {
        Bottleneck.read(tensors, shared.map(\.key))
    }
}

struct FusionSettings: Sendable {
    let hasKey: Bool, hasQuery: Bool, hasValue: Bool
    let startsAsIdentity: Bool
    let readsQueryBeforeNorm: Bool
    let addsResidualFirst: Bool
    /// Of the scores.
    let dropout: Float
    /// f32 `[1]`: T, 1 nearly always.
    let temperature: Tensor

    init(_ configuration: AdapterConfiguration, _ model: Model) throws(PEFTError) {
        (hasKey, hasQuery, hasValue) = (try configuration.flag("key"), try configuration.flag("query"), try configuration.flag("value"))
        guard hasKey || hasQuery || hasValue else { throw PEFTError(.argument, "key, query and value are false: there is nothing to train") }
        (startsAsIdentity, readsQueryBeforeNorm) = (configuration.isSet("value_initialized"), try configuration.flag("query_before_ln"))
        // V is linear without bias: before or after the sum makes no difference.
        _ = try configuration.flag("value_before_softmax")
        addsResidualFirst = try configuration.flag("residual_before")
        // As in the library, 0 and null are the model's own.
        let own = try configuration.values.double("dropout_prob") ?? 0
        let p = own != 0 ? own : model.configuration["attention_probs_dropout_prob"]?.doubleValue ?? 0
        guard p >= 0, p < 1 else { throw PEFTError(.argument, "dropout_prob is \(p); it must be from 0 to below 1") }
        dropout = Float(p)
        let first = switch configuration.values["temperature"] {
        case .bool(let isOn): isOn ? FusionCompanion.highest : 1
        case let value: value?.doubleValue ?? .nan
        }
        guard first >= 1, first <= FusionCompanion.highest else {
            throw PEFTError(.argument, "temperature is \(configuration.values["temperature"]?.text() ?? "null"); true (it begins at 50), false (1) or a number between is possible")
        }
        temperature = try Tensor(model.engine, [Float(first)], shape: [1], .adapters)
    }
}

/// The fusion at one place.
final class FusionModule: Sendable {
    let place: BlockPlace
    let settings: FusionSettings
    let query: (weight: Parameter, bias: Parameter)?, key: (weight: Parameter, bias: Parameter)?
    let value: Parameter?

    init(_ place: BlockPlace, width: Int, _ settings: FusionSettings, _ engine: Engine) throws(PEFTError) {
        (self.place, self.settings) = (place, settings)
        let prefix = "\(place.module).\(Bottleneck.fusionFolder)."
        func parameter(_ name: String, _ shape: [Int]) throws(PEFTError) -> Parameter { Parameter(name: prefix + name, value: try Tensor.zeros(engine, shape, .f32, .adapters)) }
        func linear(_ name: String) throws(PEFTError) -> (weight: Parameter, bias: Parameter) {
            _ = try checkedProduct(width, width, of: "a fusion")
            return (try parameter(name + ".weight", [width, width]), try parameter(name + ".bias", [width]))
        }
        query = settings.hasQuery ? try linear("query") : nil
        key = settings.hasKey ? try linear("key") : nil
        value = settings.hasValue ? try parameter("value.weight", [width, width]) : nil
    }

    var parameters: [Parameter] { [query, key].compactMap { $0 }.flatMap { [$0.weight, $0.bias] } + (value.map { [$0] } ?? []) }

    func initialize(_ random: inout RandomStream) {
        for layer in [query, key] { layer?.weight.value.fillNormal(0.02, &random) }
        guard let value else { return }
        guard settings.startsAsIdentity else { return value.value.fillNormal(0.02, &random) }
        var place = 0
        let width = value.value.columns
        value.value.fill {
            defer { place += 1 }
            return place % (width + 1) == 0 ? 1 : 1e-6
        }
    }
}

/// What it does with its members: chains of adapters one behind the other.
final class FusionHook: JoinHook {
    private let module: FusionModule
    private let chains: [[BottleneckHook]]
    private let last: BottleneckHook

    init?(_ module: FusionModule, _ chains: [[BottleneckHook]]) {
        guard let last = chains.last?.last else { return nil }
        (self.module, self.chains, self.last) = (module, chains, last)
    }

    var isBeside: Bool { last.isBeside }

    func inside(_ x: Variable, _ join: BlockJoin, _ tape: Tape) throws(PEFTError) -> Variable {
        let settings = module.settings
        // As in the library, the last member decides what all see.
        let (seen, residual) = try last.prepared(x, join)
        var made = try chains.map { (chain) throws(PEFTError) in try result(of: chain, seen, residual, join, tape) }
        if settings.addsResidualFirst { made = try made.map { (y) throws(PEFTError) in try tape.add(y, residual) } }
        var query = settings.readsQueryBeforeNorm && !isBeside ? x : seen
        if let layer = module.query { query = try tape.linear(query, tape.variable(layer.weight), bias: tape.variable(layer.bias)) }
        let ones = Variable(try Tensor(tape.engine, [Float](repeating: 1, count: x.value.columns), shape: [1, x.value.columns]))
        // (Q·q)·(K·u + b) = (Kᵀ·Q·q)·u + (Q·q)·b: one product with K, whatever the number of members.
        var (seeking, shift): (Variable, Variable?) = (query, nil)
        if let key = module.key {
            seeking = try tape.linear(query, tape.variable(key.weight), transposed: true)
            shift = try tape.linear(query, try tape.reshaped(tape.variable(key.bias), ones.shape), as: .f32)
        }
        let scores = try made.map { (y) throws(PEFTError) in
            let score = try tape.linear(try tape.multiply(seeking, y), ones, as: .f32)
            return try shift.map { (shift) throws(PEFTError) in try tape.add(score, shift) } ?? score
        }
        let temperature = unsafe settings.temperature.withFloats { unsafe $0.first ?? 1 }
        let all = try tape.dropout(try tape.concatenateColumns(scores), settings.dropout)
        let shares = try tape.softmax(temperature == 1 ? all : try tape.scaled(all, by: 1 / temperature))
        var sum: Variable?
        for (y, share) in zip(made, try tape.splitColumns(shares, Array(repeating: 1, count: made.count))) {
            let term = try tape.scaleRows(y, try tape.reshaped(share, [share.value.count]))
            if let known = sum { sum = try tape.add(known, term) } else { sum = term }
        }
        guard var y = sum else { throw PEFTError(.internal, "a fusion of nothing") }
        if let value = module.value { y = try tape.linear(y, tape.variable(value)) }
        return settings.addsResidualFirst ? y : try tape.add(y, residual)
    }

    /// What the last of a chain adds.
    private func result(of chain: [BottleneckHook], _ seen: Variable, _ residual: Variable, _ join: BlockJoin, _ tape: Tape) throws(PEFTError) -> Variable {
        var (seen, residual) = (seen, residual)
        for (index, hook) in chain.enumerated() {
            // In the library a Stack prepares for each of its adapters, also for the first.
            if chain.count > 1 { (seen, residual) = try hook.prepared(seen, join) }
            let y = try hook.branch(seen, join, tape)
            if index == chain.count - 1 { return y }
            seen = try hook.finished(y, seen, residual, join, tape)
        }
        throw PEFTError(.internal, "a fusion with an empty member")
    }

    func after(_ y: Variable, _ x: Variable, _ join: BlockJoin, _ tape: Tape) throws(PEFTError) -> Variable { try last.after(y, x, join, tape) }
}

/// The temperature, and `0.01·Σ ‖V − I‖²`: V stays near the identity it began as.
private final class FusionCompanion: AdapterCompanion, LossPenalty {
    static let highest = 50.0
    /// Of one step.
    private static let fall: Float = 0.05

    private let values: [Parameter]
    private let temperature: Tensor
    /// At the beginning.
    private let isWarm: Bool

    init(_ values: [Parameter], _ temperature: Tensor) {
        (self.values, self.temperature) = (values, temperature)
        isWarm = unsafe temperature.withFloats { unsafe ($0.first ?? 1) > 1 }
    }

    var penalty: (any LossPenalty)? { values.isEmpty ? nil : self }
    var state: [(name: String, tensor: Tensor)] { isWarm ? [("temperature", temperature)] : [] }

    func didStep(_ step: Int, _ gradients: GradientStore, factor: Double) {
        unsafe temperature.withMutableFloats { for index in $0.indices { unsafe $0[index] = max($0[index] - FusionCompanion.fall, 1) } }
    }

    func complete(_ configuration: inout JSONObject) {
        let now = unsafe temperature.withFloats { unsafe $0.first ?? 1 }
        configuration["temperature"] = now > 1 ? now == Float(FusionCompanion.highest) ? .bool(true) : .number(Double(now)) : .bool(false)
    }

    func value(_ tape: Tape) throws(PEFTError) -> Variable {
        var sum: Variable?
        for value in values {
            let width = value.value.columns
            let minusIdentity = try Tensor.zeros(tape.engine, value.value.shape)
            unsafe minusIdentity.withMutableFloats { values in
                for place in stride(from: 0, to: values.count, by: width + 1) { unsafe values[place] = -1 }
            }
            let difference = try tape.add(tape.variable(value), Variable(minusIdentity))
            let row = try tape.reshaped(difference, [1, value.value.count])
            let term = try tape.linear(row, row)
            if let known = sum { sum = try tape.add(known, term) } else { sum = term }
        }
        guard let sum else { throw PEFTError(.internal, "a penalty on nothing") }
        return try tape.reshaped(try tape.scaled(sum, by: 0.01), [1])
    }
}
