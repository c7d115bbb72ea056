package import Autograd
package import Models
package import Platform
package import Tensors

/// Prefix tuning (Li and Liang, arXiv:2101.00190): learned keys and values in front of each layer's own, which a small network may
/// make while they are trained. With `use_gating` (not PEFT's; AdapterHub's, for UniPELT) gates of each layer weigh them by what its
/// attention reads: `g·K` and `g·V`, or with `shared_gating` false a gate for each.
package struct PrefixTuning: PromptMethod {
    package static let peftType = "PREFIX_TUNING"
    package static let defaults: JSONObject = {
        var keys = PromptSettings.defaults
        keys["encoder_hidden_size"] = .null
        keys["init_weights"] = .null
        keys["prefix_projection"] = .bool(false)
        keys["shared_gating"] = .null
        keys["use_gating"] = .bool(false)
        return keys
    }()

    package let encoder: PromptEncoder
    package let memory: PrefixMemory?

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        let settings = try PromptSettings(&configuration, model, isMemory: true)
        let size = try settings.memorySize(model)
        if configuration.values["encoder_hidden_size"]?.isNull ?? true { configuration.values["encoder_hidden_size"] = .integer(Int64(settings.width)) }
        let hidden = try configuration.positive("encoder_hidden_size")
        guard hidden <= 1 << 20 else { throw PEFTError(.argument, "encoder_hidden_size is \(hidden); 1 to \(1 << 20) are possible") }
        let isZero = try configuration.values.text("init_weights").map { (name) throws(PEFTError) in
            guard name == "zero" else { throw PEFTError(.argument, "init_weights is \"\(name)\"; \"zero\" and null (random) are possible") }
            return true
        } ?? false
        let network = try configuration.flag("prefix_projection") ? try PromptMLP("transform", [settings.width, hidden, size], .tanh, endsInZero: isZero, model.engine) : nil
        let outputs = try configuration.values.boolean("shared_gating") ?? true ? 1 : 2
        let gates = try configuration.flag("use_gating") ? try (0..<settings.layers).map { (layer) throws(PEFTError) in
            try TextGate("\(PromptEncoder.prefix)prefix_gates.\(layer)", inputs: settings.embedding.dimension, outputs: outputs, model.engine)
        } : []
        guard gates.isEmpty || !model.network.readsSource else { throw PEFTError(.unsupported, "use_gating of a prefix for an encoder-decoder") }
        encoder = try PromptEncoder(
            PrefixTuning.peftType, count: settings.count, rows: settings.count, width: network == nil ? size : settings.width, network: network, gates: gates,
            start: isZero && network == nil ? .zeros : .random, isNew: isNew, model)
        memory = PrefixMemory(encoder, layers: settings.layers, width: settings.width, model)
    }
}

/// The rows of an encoder as keys and values. A row has 2·layers slots of `width` values: slot 2ℓ is the key of layer ℓ, slot 2ℓ+1 its
/// value. Of an encoder-decoder PEFT reads slots 4ℓ and 4ℓ+1, counted round and round, for its decoder.
package final class PrefixMemory: AttentionMemory {
    private let encoder: PromptEncoder
    private let layerCount: Int
    private let width: Int
    private let isOfDecoder: Bool
    private let ready: Kept<Always, [(keys: Tensor, values: Tensor)]>

    init(_ encoder: PromptEncoder, layers: Int, width: Int, _ model: Model) {
        (self.encoder, layerCount, self.width, isOfDecoder, ready) = (encoder, layers, width, model.network.readsSource, Kept(model))
    }

    package var count: Int { encoder.count }
    package var isGated: Bool { !encoder.gates.isEmpty }

    package func gate(layer: Int, _ x: Variable, length: Int, _ tape: Tape) throws(PEFTError) -> Variable? {
        layer < encoder.gates.count ? try encoder.gates[layer].means(x, length: length, tape) : nil
    }

    package func layers(_ tape: Tape) throws(PEFTError) -> [(keys: Variable, values: Variable)] {
        let slots = try tape.splitColumns(
            try tape.cast(try encoder.table(tape), to: tape.precision.activation), Array(repeating: width, count: 2 * layerCount))
        return (0..<layerCount).map { layer in
            let key = isOfDecoder ? 4 * layer % slots.count : 2 * layer
            return (slots[key], slots[key + 1])
        }
    }

    package func snapshot(_ model: Model) throws(PEFTError) -> [(keys: Tensor, values: Tensor)] {
        try ready(model.engine) { () throws(PEFTError) in
            try layers(Tape(model.engine, model.generationPrecision)).map { (keys: $0.keys.value, values: $0.values.value) }
        }
    }
}

extension PromptSettings {
    /// Values of a row that holds keys and values of all layers.
    /// - Throws: `.argument` where the model's attention has other sizes, or it has none.
    func memorySize(_ model: Model) throws(PEFTError) -> Int {
        let shape = model.network.cacheShape
        let own = (layers: shape?.layerCount ?? model.network.blockCount, width: shape.map { $0.keyValueHeads * $0.headSize } ?? embedding.dimension)
        guard own.layers > 0 else { throw PEFTError(.unsupported, "a prefix for a \(model.architecture) model, which has no attention") }
        guard layers == own.layers, width == own.width else {
            throw PEFTError(.argument, "num_layers is \(layers) and token_dim \(width); this model has \(own.layers) layers whose keys have \(own.width) values")
        }
        return try checkedProduct(2 * layers, width, of: "a prefix")
    }
}
