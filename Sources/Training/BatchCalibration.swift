internal import Adapters
package import Autograd
package import Models
package import Platform
internal import Tensors

/// Labelled batches, with the model's own loss.
package struct BatchCalibration: Calibration {
    private let batches: [Batch]
    private let model: Model

    /// - Throws: `.argument` for a batch that does not fit the model or has no labels.
    package init(_ batches: [Batch], _ model: Model) throws(PEFTError) {
        for batch in batches {
            try ModelLoss.check(batch, model)
            guard batch.hasLabels else { throw PEFTError(.argument, "calibration needs 'labels'") }
        }
        (self.batches, self.model) = (batches, model)
    }

    package var batchCount: Int { batches.count }

    package func pass(_ batch: Int, _ adaptation: Adaptation, _ tape: Tape) throws(PEFTError) {
        guard batches.indices.contains(batch) else { throw PEFTError(.internal, "batch \(batch) of \(batches.count)") }
        let (loss, seed) = try ModelLoss.loss(model, batches[batch], .all(adaptation), tape)
        guard tape.isRecording else { return }
        try tape.backward(from: loss.variable, gradient: try Tensor(tape.engine, [seed], shape: [1]))
    }
}
