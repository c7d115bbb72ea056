package import Models
package import Platform

/// Cartridges (Eyuboglu et al., arXiv:2506.06266): keys and values of each layer that stand for a text, learned from those the text
/// itself has. The first rows, to which attention flows by habit, stay as they are.
package struct Cartridge: PromptMethod {
    package static let peftType = "CARTRIDGE"
    package static let defaults: JSONObject = {
        var keys = PromptSettings.defaults
        keys["num_frozen_tokens"] = .integer(1)
        return keys
    }()

    package let encoder: PromptEncoder
    package let memory: PrefixMemory?

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        let settings = try PromptSettings(&configuration, model, isMemory: true)
        let size = try settings.memorySize(model)
        let frozen = try configuration.integer("num_frozen_tokens")
        guard frozen >= 0, frozen <= settings.count else {
            throw PEFTError(.argument, "num_frozen_tokens is \(frozen); there are \(settings.count) virtual tokens")
        }
        encoder = try PromptEncoder(
            Cartridge.peftType, count: settings.count, rows: settings.count, width: size, name: "trainable_embedding", frozenRows: frozen, start: .random, isNew: isNew, model)
        memory = PrefixMemory(encoder, layers: settings.layers, width: settings.width, model)
    }
}
