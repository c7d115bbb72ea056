internal import Adapters
package import Autograd
package import Models
package import Platform
internal import Tensors

/// Batches, with the model's own loss where they are labelled.
package struct BatchCalibration: Calibration {
    private let batches: [Batch]
    private let model: Model

    /// - Throws: `.argument` for a batch that does not fit the model.
    package init(_ batches: [Batch], _ model: Model) throws(PEFTError) {
        for batch in batches { try ModelLoss.check(batch, model) }
        (self.batches, self.model) = (batches, model)
    }

    package var batchCount: Int { batches.count }

    package func pass(_ batch: Int, _ adaptation: Adaptation, _ tape: Tape) throws(PEFTError) {
        guard batches.indices.contains(batch) else { throw PEFTError(.internal, "batch \(batch) of \(batches.count)") }
        guard tape.isRecording else {
            let (input, context, _) = try ModelLoss.input(batches[batch], model, .all(adaptation), tape)
            let hidden = try model.hidden(input, context)
            if let head = model.network.head, adaptation[head] != nil { _ = try model.logits(hidden, of: input, context) }
            return
        }
        guard batches[batch].hasLabels else { throw PEFTError(.argument, "a start along gradients needs calibration batches with 'labels'") }
        let (loss, seed) = try ModelLoss.loss(model, batches[batch], .all(adaptation), tape)
        try tape.backward(from: loss.variable, gradient: try Tensor(tape.engine, [seed], shape: [1]))
    }

    package func counted(_ batch: Int, without label: Int32?) throws(PEFTError) -> [Bool]? {
        guard batches.indices.contains(batch) else { throw PEFTError(.internal, "batch \(batch) of \(batches.count)") }
        let (mask, labels) = (batches[batch].keyMask, batches[batch].labels)
        let tokens = batches[batch].ids.count
        let isLabelled = label != nil && labels.count == tokens
        guard mask != nil || isLabelled, tokens > 0 else { return nil }
        return (0..<tokens).map { (mask?[$0] ?? 1) != 0 && !(isLabelled && labels[$0] == label) }
    }
}
