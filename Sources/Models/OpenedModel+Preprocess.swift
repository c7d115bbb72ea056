package import Platform
package import Tensors

extension OpenedModel {
    /// What the model reads of raw pictures (u8 `[height, width, 3]` each: "pixel_values") or recordings (f32 `[samples]` each:
    /// "input_features"), as its folder's preprocessor_config.json says.
    /// - Throws: `.notFound` without that file; `.argument` naming an array that is neither.
    package func preprocessed(_ raw: [(name: String, tensor: Tensor)]) throws(PEFTError) -> (name: String, tensor: Tensor) {
        guard let preprocessing else { throw PEFTError(.notFound, "the model came without a preprocessor_config.json that says what it does with pictures or recordings") }
        guard !raw.isEmpty else { throw PEFTError(.argument, "there is no picture or recording") }
        let settings = ModelConfiguration(preprocessing, origin: "preprocessor_config.json")
        // Recordings are cut into frames.
        if settings.has("hop_length") || settings.has("feature_extractor_type") { return ("input_features", try LogMel(settings).features(raw, model.engine)) }
        return ("pixel_values", try PictureInput(settings).features(raw, model.engine))
    }
}
