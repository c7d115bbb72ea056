internal import Platform

/// Phi-3 (arXiv:2404.14219) and Phi-4, after transformers' `modeling_phi3.py`: Llama with one matrix for queries, keys and values
/// (`qkv_proj`) and one for gate and up (`gate_up_proj`), part of each head rotated, and tables for short and long texts.
extension DecoderFamily {
    static var phi3: DecoderFamily {
        DecoderFamily(
            modelTypes: ["phi3"],
            settings: { (configuration, engine) throws(PEFTError) in
                var settings = try DecoderSettings(configuration, engine)
                settings.isFused = true
                settings.dropout = Float(try configuration.number("resid_pdrop", or: 0))
                try settings.setWindows(configuration, slides: Array(repeating: true, count: settings.layerCount))
                return settings
            })
    }
}
