package import Platform

/// How a file of training text becomes samples and batches.
package struct DataSetOptions: Sendable, Equatable {
    package enum Learned: String, Sendable, CaseIterable {
        /// The assistant's words of a conversation, the completion of a prompt, all of a text.
        case assistant
        case all
    }

    package enum BadRecords: String, Sendable, CaseIterable {
        case error
        /// Left out and counted; the first ones are named in a warning.
        case skip
    }

    /// nil: by the ending of the file's name, else plain text.
    package var format: DataFormat?
    /// Tokens of a sample, and of a row of a batch.
    package var maxLength = 512
    package var truncation = Truncation.keepStart
    package var learned = Learned.assistant
    /// Rows of a batch.
    package var batchSize = 1
    /// Several samples share a row; each sees only itself and counts its positions from 0.
    package var packing = false
    /// The prompt is what an encoder reads, the completion what its decoder writes.
    package var isForEncoderDecoders = false
    package var shuffle = true
    package var seed: UInt64 = 0
    package var badRecords = BadRecords.error
    /// Longest record of the file; a longer one is a bad file.
    package var maximumRecordBytes = 64 << 20

    package init() {}

    package func validate() throws(PEFTError) {
        guard maxLength >= 2 else { throw PEFTError(.argument, "max_length is \(maxLength); it must be at least 2, one token to read and one to predict") }
        guard maxLength <= 1 << 24 else { throw PEFTError(.argument, "max_length is \(maxLength); the limit is \(1 << 24)") }
        guard batchSize >= 1, batchSize <= 1 << 20 else { throw PEFTError(.argument, "batch_size is \(batchSize); it must be in 1…\(1 << 20)") }
        guard !isForEncoderDecoders || !packing && truncation != .split && learned == .assistant else {
            throw PEFTError(.argument, "with encoder_decoder a sample has a row of its own (no packing, no truncation 'split'), and the completion is learned")
        }
        guard maximumRecordBytes >= 1 else { throw PEFTError(.argument, "max_line_bytes is \(maximumRecordBytes); it must be at least 1") }
    }
}

extension DataSetOptions {
    /// All that decides which samples come in which order.
    var identity: String {
        "format \(format?.rawValue ?? "text"), max_length \(maxLength), truncation \(truncation.rawValue), loss_on \(learned.rawValue), batch_size \(batchSize), "
            + "packing \(packing), shuffle \(shuffle), seed \(seed)" + (isForEncoderDecoders ? ", encoder_decoder" : "")
    }
}

/// Which part of a data set is kept back for evaluation.
package enum HeldOut: Sendable, Equatable {
    /// This share of the records, chosen by the data set's seed.
    case share(Double)
    /// Every n-th record.
    case every(Int)
}
