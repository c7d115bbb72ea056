package import Autograd
package import Models
package import Platform
internal import Tensors

/// Batches that the start of an adapter is computed from. The passes are the caller's: this room knows no losses.
package protocol Calibration {
    var batchCount: Int { get }
    /// Runs a batch forward and, on a tape that records, the derivatives of its loss backward: that one needs labels.
    func pass(_ batch: Int, _ adaptation: Adaptation, _ tape: Tape) throws(PEFTError)
    /// Which rows of a pass count: no padding, and none with this label (nil: whatever their labels are); nil: all.
    func counted(_ batch: Int, without label: Int32?) throws(PEFTError) -> [Bool]?
}

/// What data decided before an adapter is made.
package struct CalibratedStart {
    /// With PEFT's keys.
    var configuration: JSONObject
    /// By saved key.
    var values: [String: Tensor] = [:]
}

/// Gradients and covariances of so many bytes are gathered in one round through the batches.
let roundBytes = 256 << 20

extension Calibration {
    /// Gives `body` the gradient of the loss to each layer's weight, f32 `[out, in]`, the mean over the batches; one after the other.
    func eachWeightGradient(_ layers: [Linear], _ model: Model, _ body: (_ index: Int, _ gradient: Tensor) throws(PEFTError) -> Void) throws(PEFTError) {
        var start = 0
        while start < layers.count {
            var end = start, bytes = 0
            while end < layers.count, end == start || bytes + 4 * layers[end].weight.count <= roundBytes {
                bytes += 4 * layers[end].weight.count
                end += 1
            }
            var adaptation = Adaptation(layerCount: model.layers.count)
            let weights = layers[start..<end].map { Parameter(name: $0.name + ".weight", value: $0.weight) }
            for (layer, weight) in zip(layers[start..<end], weights) { adaptation.layers[layer.index].replacements["weight"] = weight }
            let gradients = GradientStore(model.engine)
            for batch in 0..<batchCount { try pass(batch, adaptation, Tape(model.engine, model.precision, gradients: gradients)) }
            for (offset, weight) in weights.enumerated() {
                let (layer, sum) = (layers[start + offset], try gradients.buffer(for: weight))
                model.engine.axpby(1 / Float(max(batchCount, 1)), sum, 0, into: sum)
                try body(start + offset, layer.isTransposed ? try sum.transposed(model.engine) : sum)
            }
            start = end
        }
    }
}
