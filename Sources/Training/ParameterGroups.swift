internal import Autograd

/// Learning rate and decay of one parameter, before the schedule's factor.
package struct ParameterRates: Sendable, Equatable {
    package var learningRate: Double
    package var weightDecay: Double

    /// The group a parameter belongs to, by its name and shape, as `peft.optimizers` groups them.
    ///
    /// Without LoRA+ all are alike. With it: factors of embeddings get their own rate; B and everything with one
    /// dimension gets `ratio` times the rate, and no decay if it is a bias or belongs to a LayerNorm; the rest (A, saved
    /// modules) gets the plain rate.
    ///
    /// - Parameter isLayerNorm: the parameter stands in for one of an `nn.LayerNorm`.
    package init(for name: String, dimensions: Int, isLayerNorm: Bool, _ options: OptimizerOptions) {
        learningRate = options.learningRate
        weightDecay = options.weightDecay
        guard let ratio = options.loraPlusRatio else { return }
        weightDecay = options.loraPlusWeightDecay
        if ParameterRates.has("lora_embedding_", name) {
            learningRate = options.loraPlusEmbeddingRate
        } else if ParameterRates.has("lora_B", name) || dimensions == 1 {
            learningRate *= ratio
            if isLayerNorm || ParameterRates.has("bias", name) { weightDecay = 0 }
        }
    }

    private static func has(_ part: String, _ name: String) -> Bool { name.firstRange(ofText: part) != nil }
}

extension String {
    /// Where `text` first occurs, compared byte by byte. (Foundation's and `_StringProcessing`'s searches are not used.)
    func firstRange(ofText text: String) -> Range<String.Index>? {
        let needle = Array(text.utf8)
        let hay = utf8
        var start = hay.startIndex
        while start != hay.endIndex {
            if hay[start...].starts(with: needle) { return start..<hay.index(start, offsetBy: needle.count) }
            start = hay.index(after: start)
        }
        return needle.isEmpty ? startIndex..<startIndex : nil
    }
}
