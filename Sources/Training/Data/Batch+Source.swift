package import Models
package import Platform
package import Tensors

/// Batches of encoder-decoders.
extension Batch {
    private static let decoderNames = ["decoder_input_ids": "input_ids", "decoder_attention_mask": "attention_mask"]

    /// Named arrays as `model` reads them. An encoder-decoder's encoder has `input_ids` and `attention_mask`, or
    /// `input_features`; its decoder `decoder_input_ids` and `decoder_attention_mask`, or else the labels, shifted right (without
    /// labels for tokens: the encoder's ids, as transformers has it).
    /// - Throws: `.argument` naming the array, its shape or its value.
    package init(named arrays: [(name: String, tensor: Tensor)], for model: Model) throws(PEFTError) {
        guard model.network.readsSource else {
            if let name = arrays.first(where: { Batch.decoderNames[$0.name] != nil })?.name { throw PEFTError(.argument, "a \(model.architecture) model of this kind has no '\(name)'") }
            self = try Batch(named: arrays)
            return
        }
        let source = try Batch(named: arrays.filter { $0.name == "input_ids" || $0.name == "task_ids" || $0.name == "attention_mask" || Batch.featureNames.contains($0.name) })
        let labels = arrays.filter { Batch.labelNames.contains($0.name) }
        let decoder = arrays.compactMap { item in Batch.decoderNames[item.name].map { (name: $0, tensor: item.tensor) } }
        if let other = arrays.first(where: { item in Batch.tokenNames.contains(item.name) && item.name != "attention_mask" }) {
            throw PEFTError(.argument, "an encoder-decoder has no '\(other.name)'")
        }
        if decoder.contains(where: { $0.name == "input_ids" }) {
            self = try Batch(named: decoder + labels)
        } else if decoder.isEmpty {
            try self.init(shifting: labels, source, model)
        } else {
            throw PEFTError(.argument, "'decoder_attention_mask' without 'decoder_input_ids'")
        }
        guard rows == source.rows else { throw PEFTError(.argument, "the decoder has \(rows) rows, the encoder \(source.rows)") }
        tasks = source.tasks
        self.source = SourceBatch(length: source.length, ids: source.ids, keyMask: source.keyMask, features: source.features, featureShape: source.featureShape)
    }

    /// The decoder reads what it is to write, one place later.
    private init(shifting labels: [(name: String, tensor: Tensor)], _ source: Batch, _ model: Model) throws(PEFTError) {
        let isWriting = model.task == .conditionalGeneration
        var batch = Batch(rows: source.rows, length: source.length, ids: source.ids, labels: [])
        try batch.readLabels(Dictionary(labels.map { ($0.name, $0.tensor) }, uniquingKeysWith: { $1 }))
        if isWriting {
            guard let tensor = labels.first(where: { $0.name == "labels" })?.tensor, tensor.shape.count == 2 else {
                throw PEFTError(.argument, "this model writes: 'labels' [batch, length] or 'decoder_input_ids' are needed")
            }
            (batch.rows, batch.length, batch.ids) = (tensor.rows, tensor.columns, batch.labels)
        }
        batch.shift(start: model.decoderStart, paddingID: Int32(clamping: model.configuration["pad_token_id"]?.intValue ?? 0))
        self = batch
    }

    /// A data set's batch as the decoder of `model` reads it.
    func shifted(for model: Model) -> Batch {
        guard isUnshifted else { return self }
        var batch = self
        batch.ids = labels
        batch.shift(start: model.decoderStart, paddingID: Int32(clamping: model.configuration["pad_token_id"]?.intValue ?? 0))
        batch.isUnshifted = false
        return batch
    }

    /// Moves the ids of each row one place to the right; places that are not learned become padding.
    mutating func shift(start: Int32, paddingID: Int32) {
        guard length > 0 else { return }
        ids = ids.indices.map { $0 % length == 0 ? start : ids[$0 - 1] == Sample.ignored ? paddingID : ids[$0 - 1] }
    }
}
