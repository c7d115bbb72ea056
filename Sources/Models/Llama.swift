internal import Platform

/// Llama (arXiv:2302.13971) and the families that differ from it by a switch: Mistral (sliding window), Qwen2 (biases),
/// Qwen3 (norms on queries and keys), SmolLM. After transformers' `modeling_llama.py` and its relatives.
extension DecoderFamily {
    static var llama: DecoderFamily {
        DecoderFamily(
            modelTypes: ["llama", "mistral", "qwen2", "qwen3"],
            settings: { (configuration, engine) throws(PEFTError) in
                var settings = try DecoderSettings(configuration, engine)
                let family = configuration.modelType
                // Qwen2 has biases on queries, keys and values without saying so.
                settings.attentionBias = family == "qwen2" ? .required : try configuration.flag("attention_bias", or: false) ? .required : .none
                settings.outputBias = family == "qwen2" ? .none : settings.attentionBias
                settings.feedForwardBias = try configuration.flag("mlp_bias", or: false) ? .required : .none
                settings.normsQueriesAndKeys = family == "qwen3"
                if family != "mistral" { settings.answersPrefix = "transformer." }
                // Mistral: on all layers. Qwen: on those that `layer_types` names, or from `max_window_layers` on.
                let isQwen = family.hasPrefix("qwen")
                guard family == "mistral" || isQwen, try configuration.flag("use_sliding_window", or: !isQwen) else { return settings }
                let first = isQwen ? configuration.json["max_window_layers"]?.intValue ?? 28 : 0
                try settings.setWindows(configuration, slides: try settings.slides(configuration) ?? (0..<settings.layerCount).map { $0 >= first })
                return settings
            })
    }
}
