package import Autograd
package import Models
package import Platform
package import Tensors

/// A method of adaptation, one instance for each adapter. To add one: a file with a type that conforms, and a line in
/// `AdapterMethods.all`.
///
/// Everything that is not the method's own is done once for all of them: matching of targets, saved modules, biases,
/// trainable tokens, files, several adapters, merging into quantised weights, status.
package protocol AdapterMethod: Sendable {
    /// PEFT's name: "LORA".
    static var peftType: String { get }
    /// The method's keys of adapter_config.json with PEFT's defaults.
    static var defaults: JSONObject { get }
    /// The kinds of layers (`Layer.kind`) it is for; "*": all.
    static var layerKinds: [String] { get }
    /// What null target_modules means, by model_type: a list of names, or a regular expression.
    static var defaultTargets: [String: JSONValue] { get }

    /// - Parameter isNew: the adapter is to be made; else it is read from a file, where settings for its making do not matter.
    /// - Throws: `.argument` for values that cannot be, `.unsupported` naming an option this version does not have.
    init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError)

    /// Told of all targets before the first module is made.
    mutating func prepare(for targets: [any Layer], _ configuration: inout AdapterConfiguration, _ model: Model)
        throws(PEFTError)

    /// What the adapter is at one of its targets.
    /// - Parameter key: "base_model.model." and the layer's name: parameters are named `key` + "." + their own.
    /// - Throws: `.unsupported` naming the layer's kind and those the method takes.
    func module(for layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule

    /// Weights can be made to do what it does.
    static var isMergeable: Bool { get }

    /// What it does besides at layers.
    /// - Parameter scale: on top of the configuration's scaling.
    /// - Throws: `.unsupported` where that cannot be beside what acts already.
    func act(on adaptation: inout Adaptation, scale: Float) throws(PEFTError)

    /// What the layers share, under names of its own ("base_model.vera_A").
    var shared: [SavedTensor] { get }
    /// Fresh values for what is shared.
    func initializeShared(_ random: RandomStream)
    /// The tensors of a file under the adapter's own keys, where the method has another form for files.
    func read(_ tensors: [(name: String, tensor: Tensor)], _ engine: Engine) throws(PEFTError) -> [(name: String, tensor: Tensor)]
    /// The other way: what a file has.
    func written(_ tensors: [(name: String, tensor: Tensor)], _ engine: Engine) throws(PEFTError) -> [(
        name: String, tensor: Tensor
    )]

    /// Modules for what is no target itself: layers that follow one, parameters that are named.
    func others(beside modules: [any AdapterModule], _ model: Model) throws(PEFTError) -> [any AdapterModule]

    /// Computes from data what `initialize` begins with.
    /// - Returns: another configuration that data decided on, with values for it; nil: as it was.
    /// - Throws: `.argument` when there is data and the configuration has no use for it, or the other way round.
    func calibrate(_ modules: [any AdapterModule], by calibration: (any Calibration)?, seed: UInt64, _ configuration: JSONObject, _ model: Model)
        throws(PEFTError) -> CalibratedStart?

    /// What the adapter is besides its modules; nil: nothing.
    func companion(of modules: [any AdapterModule], _ model: Model) throws(PEFTError) -> (any AdapterCompanion)?
}

extension AdapterMethod {
    package static var layerKinds: [String] { MatrixTarget.linears }
    package static var defaultTargets: [String: JSONValue] { DefaultTargets.lora }
    package static var isMergeable: Bool { true }
    package func module(for layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule {
        throw PEFTError(.unsupported, "\(Self.peftType) adapts no layers")
    }
    package func act(on adaptation: inout Adaptation, scale: Float) throws(PEFTError) {}

    package mutating func prepare(for targets: [any Layer], _ configuration: inout AdapterConfiguration, _ model: Model)
        throws(PEFTError)
    {}
    package var shared: [SavedTensor] { [] }
    package func initializeShared(_ random: RandomStream) {}
    package func read(_ tensors: [(name: String, tensor: Tensor)], _ engine: Engine) throws(PEFTError) -> [(
        name: String, tensor: Tensor
    )] { tensors }
    package func written(_ tensors: [(name: String, tensor: Tensor)], _ engine: Engine) throws(PEFTError) -> [(
        name: String, tensor: Tensor
    )] { tensors }
    package func calibrate(_ modules: [any AdapterModule], by calibration: (any Calibration)?, seed: UInt64, _ configuration: JSONObject, _ model: Model)
        throws(PEFTError) -> CalibratedStart?
    {
        guard calibration == nil else {
            throw PEFTError(.argument, "calibration batches were given, but this configuration's start is not computed from data (init_lora_weights 'lora_ga', 'corda' and 'eva' are)")
        }
        return nil
    }
    package func others(beside modules: [any AdapterModule], _ model: Model) throws(PEFTError) -> [any AdapterModule] { [] }
    package func companion(of modules: [any AdapterModule], _ model: Model) throws(PEFTError) -> (any AdapterCompanion)? { nil }
}

/// What an adapter is at one layer: parameters, and what they do.
package protocol AdapterModule: AnyObject, Sendable {
    var layer: any Layer { get }
    /// Under the names they are saved with; frozen ones too.
    var parameters: [Parameter] { get }
    /// Parameters of the adapter that stand in for the layer's own tensors (LN tuning).
    var replacements: [Replacement] { get }
    /// What is saved besides, and not read back.
    var views: [SavedTensor] { get }
    /// The parameters and views as they are saved.
    var saved: [SavedTensor] { get }
    /// LoRA's factor of the branch, for optimizers that ask.
    var scaling: Double? { get }
    /// A head's, when it repeats what the module of the embedding does that shares its matrix: that one alone is folded.
    var isTwin: Bool { get }
    /// `initialize` gives the layer other weights (PiSSA, OLoRA), also for an adapter whose own values come from a file.
    var changesBase: Bool { get }
    /// The tokens of a text from which on it acts; nil: from the first.
    var invocation: [Int32]? { get }
    /// What it adds depends on the weight that other adapters change too: only one of these can act on a layer.
    var readsWeight: Bool { get }

    /// Frozen tensors that are computed from the base weights and are not in PEFT's file, under the names they have beside it.
    var derived: [SavedTensor] { get }
    /// Computes what is taken from the base weights, for an adapter whose file does not bring it; the rest has its values.
    func derive() throws(PEFTError)
    /// What layers share matters for it too: it is computed again when that is set.
    var derivesFromShared: Bool { get }

    /// Fresh values.
    /// - Returns: what takes the place of the layer's own tensors, if anything; the caller sets them when all modules are made.
    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor]

    /// What it does in a computation.
    /// - Parameters:
    ///   - scale: on top of the configuration's scaling.
    ///   - replacements: what stands in for the layer's own tensors.
    func hook(scale: Float, beside replacements: [String: Parameter]) -> any LayerHook

    /// What it adds to the layer's weight, where factors say that without the weight; nil: `fold` says it.
    func change(scale: Float) throws(PEFTError) -> WeightChange?

    /// Makes the layer's weights do what the hook does.
    /// - Throws: `.unsupported` where that cannot be.
    func fold(into weights: inout FoldedWeights, scale: Float) throws(PEFTError)
}

extension AdapterModule {
    package var scaling: Double? { nil }
    package var views: [SavedTensor] { [] }
    package var derived: [SavedTensor] { [] }
    package func derive() throws(PEFTError) {}
    package var derivesFromShared: Bool { false }
    package var saved: [SavedTensor] { parameters.map { SavedTensor($0) } + views }
    package var readsWeight: Bool { false }
    package var invocation: [Int32]? { nil }
    package var replacements: [Replacement] { [] }
    package func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] { [:] }
    package func change(scale: Float) throws(PEFTError) -> WeightChange? { nil }
    package var isTwin: Bool { false }
    package var changesBase: Bool { false }
}

/// What an adapter is as a whole, where its modules are not all: AdaLoRA's allocator of ranks.
package protocol AdapterCompanion: AnyObject, Sendable {
    /// What it adds to the loss.
    var penalty: (any LossPenalty)? { get }
    /// Kept in a training's checkpoint beside the adapter.
    var state: [(name: String, tensor: Tensor)] { get }
    /// Before an optimizer step; the caller holds the model's write lock.
    func willStep(_ gradients: GradientStore)
    /// After an optimizer step; the caller holds the model's write lock.
    /// - Parameters:
    ///   - step: 1, 2, …
    ///   - factor: what clipping made of the gradients.
    func didStep(_ step: Int, _ gradients: GradientStore, factor: Double)
    /// Before the configuration is saved.
    func complete(_ configuration: inout JSONObject)
}

extension AdapterCompanion {
    package var penalty: (any LossPenalty)? { nil }
    package var state: [(name: String, tensor: Tensor)] { [] }
    package func willStep(_ gradients: GradientStore) {}
    package func didStep(_ step: Int, _ gradients: GradientStore, factor: Double) {}
    package func complete(_ configuration: inout JSONObject) {}
}

/// The methods there are.
package enum AdapterMethods {
    package static let all: [any AdapterMethod.Type] = [
        LoRA.self,
        IA3.self, LoHa.self, LoKr.self, OFT.self, BOFT.self, HRA.self, AdaLoRA.self,
        MiSS.self, RoAd.self, GraLoRA.self, DeLoRA.self, HiRA.self, LNTuning.self,
        VeRA.self, PVeRA.self, RandLoRA.self, VBLoRA.self, UniLoRA.self, TinyLoRA.self, BEFT.self, TrainableTokens.self,
        FourierFT.self, WaveFT.self, FRoD.self, SHiRA.self, SuperTuning.self, C3A.self,
        PSOFT.self, OSF.self, PEANuT.self, DEFT.self, GLoRA.self, Lily.self, AdaMSS.self, Poly.self, FullChange.self, LyCORISOFT.self, LyCORISGLoRA.self,
        PromptTuning.self, PTuning.self, MultitaskPrompt.self, PrefixTuning.self, Cartridge.self, CPT.self, AdaptionPrompt.self, XLoRA.self, Shadow.self, Bottleneck.self, AdapterFusion.self,
    ]

    /// As `peft_adapter_list_methods` has it.
    package static var description: JSONObject {
        let list = all.sorted { $0.peftType < $1.peftType }.map { method in
            var targets = JSONObject()
            for (family, names) in method.defaultTargets.sorted(by: { $0.key < $1.key }) { targets[family] = names }
            return JSONValue.object([
                "peft_type": .string(method.peftType), "layers": .array(method.layerKinds.map { .string($0) }), "options": .object(method.defaults),
                "default_targets": .object(targets),
            ])
        }
        return ["methods": .array(list)]
    }

    static func named(_ peftType: String) throws(PEFTError) -> any AdapterMethod.Type {
        guard let method = all.first(where: { $0.peftType == peftType }) else {
            let known = all.map { $0.peftType }.sorted().joined(separator: ", ")
            throw PEFTError(
                .unsupported, "there is no adapter method '\(peftType)' in this version; there are \(known)")
        }
        return method
    }
}
