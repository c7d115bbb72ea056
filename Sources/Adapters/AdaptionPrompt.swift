internal import Autograd
package import Models
package import Platform
package import Tensors

/// Llama-Adapter (Zhang et al., arXiv:2303.16199): a prompt of its own for the attention of each of the upper layers, let in by a
/// gate that is closed at first.
package struct AdaptionPrompt: AdapterMethod {
    package static let peftType = "ADAPTION_PROMPT"
    package static let defaults: JSONObject = ["adapter_layers": .null, "adapter_len": .null, "target_modules": .null]
    package static let layerKinds: [String] = []
    package static let defaultTargets: [String: JSONValue] = [:]
    package static let isMergeable = false

    /// By the number of the layer.
    private let prompts: [Int: GatedPrompt]
    package let shared: [SavedTensor]

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        let names = model.network.attentionNames
        guard !names.isEmpty else {
            throw PEFTError(.unsupported, "ADAPTION_PROMPT for a \(model.architecture) model; it is for llama, mistral and gpt2")
        }
        if configuration.values["target_modules"]?.isNull ?? true {
            configuration.values["target_modules"] = .string(names[0].split(separator: ".").last.map { String($0) } ?? "")
        }
        guard let target = configuration.values["target_modules"]?.stringValue, !target.isEmpty else {
            throw PEFTError(.argument, "target_modules of ADAPTION_PROMPT is the name of the attention modules (\"\(names[0])\"), a text")
        }
        guard configuration.isSet("adapter_len"), configuration.isSet("adapter_layers") else { throw PEFTError(.argument, "ADAPTION_PROMPT needs adapter_len and adapter_layers") }
        let (length, count) = (try configuration.positive("adapter_len"), try configuration.positive("adapter_layers"))
        let matching = names.indices.filter { names[$0].hasSuffix(target) }
        guard count <= matching.count else {
            throw PEFTError(.argument, "adapter_layers is \(count); \(matching.count) of the model's modules end in '\(target)' (they are called like \(names[0]))")
        }
        guard let embedding = model.layers.first(where: { $0 is Embedding }) as? Embedding else { throw PEFTError(.unsupported, "ADAPTION_PROMPT without an embedding") }
        let width = embedding.dimension
        _ = try checkedProduct(length, width, of: "a prompt")
        var (prompts, saved): ([Int: GatedPrompt], [SavedTensor]) = ([:], [])
        for layer in matching.suffix(count) {
            let key = Adapter.prefix + names[layer]
            let prompt = Parameter(name: key + ".adaption_prompt", value: try Tensor.zeros(model.engine, [1, length, width], .f32, .adapters))
            let gate = Parameter(name: key + ".adaption_gate", value: try Tensor.zeros(model.engine, [1], .f32, .adapters))
            prompts[layer] = GatedPrompt(prompt: prompt, gate: gate)
            saved += [SavedTensor(prompt), SavedTensor(gate)]
        }
        (self.prompts, shared) = (prompts, saved)
    }

    /// Prompts N(0, 1), gates closed.
    package func initializeShared(_ random: RandomStream) {
        var random = random
        for (_, own) in prompts.sorted(by: { $0.key < $1.key }) {
            unsafe own.prompt.value.withMutableFloats { values in
                for index in values.indices { unsafe values[index] = random.normal() }
            }
        }
    }

    package func act(on adaptation: inout Adaptation, scale: Float) throws(PEFTError) {
        for (layer, own) in prompts {
            guard adaptation.gatedPrompts[layer] == nil else { throw PEFTError(.unsupported, "two adapters with ADAPTION_PROMPT cannot act together; activate one of them") }
            adaptation.gatedPrompts[layer] = scale == 1 ? own : GatedPrompt(prompt: own.prompt, gate: own.gate, scale: scale)
        }
    }
}
