internal import Autograd
internal import Models
internal import Platform
internal import Synchronization
internal import Tensors

/// Somebody who is shown what a layer sees.
protocol InputGatherer: AnyObject, Sendable {
    /// - Parameter x: `[rows, in]`
    func gather(_ x: Tensor) throws(PEFTError)
}

/// Shows it to him.
private final class InputHook: LayerHook {
    private let gatherer: any InputGatherer
    init(_ gatherer: any InputGatherer) { self.gatherer = gatherer }

    func input(_ x: Variable, of layer: Linear, _ tape: Tape) throws(PEFTError) -> Variable {
        try gatherer.gather(x.value)
        return x
    }
}

/// Σ over batches of XᵀX, X divided by the magnitude of its largest value.
private final class CovarianceGatherer: InputGatherer {
    let sum: Tensor
    private let engine: Engine

    init(_ size: Int, _ engine: Engine) throws(PEFTError) {
        self.engine = engine
        sum = try .zeros(engine, [size, size], .f32, .scratch)
    }

    func gather(_ x: Tensor) throws(PEFTError) {
        let x = try x.converted(to: .f32, engine, .scratch)
        let largest = unsafe x.withFloats { unsafe abs($0.max() ?? 0) }
        guard largest > 0 else { return }
        try engine.multiply(.weightGradient, x, x, into: sum, compute: .f32, alpha: 1 / (largest * largest), accumulate: true)
    }
}

extension Calibration {
    /// Runs a batch forward in f32; what layers see is shown to the gatherers of those that have one.
    func show(_ batch: Int, to gatherers: [(layer: Linear, gatherer: any InputGatherer)], _ model: Model) throws(PEFTError) {
        var adaptation = Adaptation(layerCount: model.layers.count)
        for (layer, gatherer) in gatherers { adaptation.layers[layer.index].hooks.append(InputHook(gatherer)) }
        try pass(batch, adaptation, Tape(model.engine, .f32))
    }

    /// Gives `body` the covariance of each layer's inputs, f32 `[in, in]`, the mean over the batches; one after the other.
    func eachCovariance(_ layers: [Linear], _ model: Model, _ body: (_ index: Int, _ covariance: Tensor) throws(PEFTError) -> Void) throws(PEFTError) {
        var start = 0
        while start < layers.count {
            var end = start, bytes = 0
            while end < layers.count, end == start || bytes + 4 * layers[end].inputSize * layers[end].inputSize <= roundBytes {
                bytes += 4 * layers[end].inputSize * layers[end].inputSize
                end += 1
            }
            let gatherers = try layers[start..<end].map { (layer) throws(PEFTError) in try CovarianceGatherer(layer.inputSize, model.engine) }
            for batch in 0..<batchCount { try show(batch, to: Array(zip(layers[start..<end], gatherers)), model) }
            for (offset, gatherer) in gatherers.enumerated() {
                model.engine.axpby(1 / Float(max(batchCount, 1)), gatherer.sum, 0, into: gatherer.sum)
                try body(start + offset, gatherer.sum)
            }
            start = end
        }
    }
}
