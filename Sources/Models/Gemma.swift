internal import Autograd
internal import Platform

/// Gemma (arXiv:2403.08295), Gemma 2 (2408.00118) and the text models of Gemma 3 (2503.19786), after transformers'
/// `modeling_gemma*.py`: embeddings times √hidden, norms with weight 1 + w, GELU in the gate; from 2 on norms around each half,
/// capped scores and logits, and windows on some layers; in 3 norms on queries and keys, and a rotary table for either kind of layer.
extension DecoderFamily {
    static var gemma: DecoderFamily {
        DecoderFamily(
            modelTypes: ["gemma", "gemma2", "gemma3_text"],
            settings: { (configuration, engine) throws(PEFTError) in
                let generation = configuration.modelType == "gemma" ? 1 : configuration.modelType == "gemma2" ? 2 : 3
                let key = generation > 1 && configuration.has("hidden_activation") ? "hidden_activation" : "hidden_act"
                var configuration = configuration
                // The factors are those of the layers that see everything.
                let tables = try configuration.object("rope_parameters")
                if generation == 3, let full = try tables?.object("full_attention") { configuration = configuration.replacing("rope_parameters", .object(full.json)) }
                var settings = try DecoderSettings(configuration, engine, activation: key, or: "gelu_pytorch_tanh")
                // The first files of the first generation say "gelu" and mean the approximation.
                if generation == 1, settings.activation == .gelu { settings.activation = .geluTanh }
                try configuration.require("use_bidirectional_attention", .bool(false))
                settings.attentionBias = try configuration.flag("attention_bias", or: false) ? .required : .none
                settings.outputBias = settings.attentionBias
                settings.normOffset = 1
                settings.embeddingScale = Float(settings.hiddenSize).squareRoot()
                guard generation > 1 else { return settings }
                settings.normsOutputs = true
                settings.normsQueriesAndKeys = generation == 3
                let size = try configuration.number("query_pre_attn_scalar", or: 256)
                guard size > 0 else { throw configuration.unsupported("query_pre_attn_scalar", "numbers above 0") }
                settings.attentionScale = Float(1 / size.squareRoot())
                // (transformers' third has the setting and does nothing with it.)
                if generation == 2 { settings.attentionSoftcap = Float(try configuration.number("attn_logit_softcapping", or: 0)) }
                settings.logitSoftcap = Float(try configuration.number("final_logit_softcapping", or: 0))
                // Every other layer sees all; in 3 every sixth.
                let period = generation == 2 ? 2 : try configuration.size("sliding_window_pattern", "_sliding_window_pattern", or: 6)
                let slides = try settings.slides(configuration) ?? (0..<settings.layerCount).map { ($0 + 1) % period != 0 }
                try settings.setWindows(configuration, slides: slides)
                guard generation == 3 else { return settings }
                let base: JSONValue = configuration.json["rope_local_base_freq"] ?? .number(10000)
                let near = try tables?.object("sliding_attention")?.json ?? ["rope_type": .string("default"), "rope_theta": base]
                let table = try RotaryTable(engine, headSize: settings.headSize, configuration.replacing("rope_parameters", .object(near)))
                for layer in settings.layers.indices where slides[layer] { settings.layers[layer].rotary = table }
                return settings
            })
    }
}
