internal import Autograd
internal import Glibc
internal import Kernels
internal import Platform
internal import Tensors

/// Adafactor (Shazeer and Stern, arXiv:1804.04235) as transformers' Trainer has it: a given rate (no relative steps, no scaling by the
/// parameter), no first moment; of matrices the second is a product of row and column means.
///
///     β₂ = 1 − t^−0.8        u = g / √v        w ← w − lr·λ·w − lr·u / max(1, rms(u))
///
/// State of a matrix: 4 bytes for each row and column.
final class Adafactor: Optimizer {
    private var shared: OptimizedParameters
    /// Per parameter: of matrices the means of rows and of columns, of vectors all values and an empty one.
    private let rows, columns: [Tensor]
    private let engine: Engine

    private static let (epsilon, decay, threshold): (Float, Double, Float) = (1e-30, -0.8, 1)

    init(_ parameters: [Parameter], _ rates: [ParameterRates], _ engine: Engine) throws(PEFTError) {
        shared = OptimizedParameters(parameters, rates)
        self.engine = engine
        rows = try parameters.map { (parameter) throws(PEFTError) in
            let shape = parameter.value.shape
            return try Tensor.zeros(engine, shape.count > 1 ? Array(shape.dropLast()) : shape, .f32, .optimizer)
        }
        columns = try parameters.map { (parameter) throws(PEFTError) in
            let shape = parameter.value.shape
            return try Tensor.zeros(engine, shape.count > 1 ? Array(shape.dropLast(2)) + [shape[shape.count - 1]] : [1], .f32, .optimizer)
        }
    }

    var parameters: [Parameter] { shared.parameters }
    var updateCounts: [Int] {
        get { shared.updateCounts }
        set { shared.updateCounts = newValue }
    }
    var moments: [(name: String, tensors: [Tensor])] { [("exp_avg_sq_row", rows), ("exp_avg_sq_col", columns)] }

    func update(_ gradients: GradientStore, gradientScale: Double, rateFactor: Double) {
        // The clipping is of a parameter as a whole, so a parameter is one piece of work.
        let work = shared.withGradients(gradients)
        let (rates, counts) = (shared.rates, shared.updateCounts)
        engine.parallel(min(engine.pool.threadCount, work.count)) { part, parts in
            for (index, parameter, gradient) in work[work.count * Int(part) / Int(parts)..<work.count * (Int(part) + 1) / Int(parts)] {
                let (weight, shape) = (parameter.value, parameter.value.shape)
                let isMatrix = shape.count > 1
                let (height, width) = (isMatrix ? shape[shape.count - 2] : 1, shape.last ?? 1)
                unsafe pk_adafactor(
                    weight.floatPointer, gradient.floatPointer, rows[index].floatPointer, isMatrix ? columns[index].floatPointer : nil,
                    Int64(weight.count / max(height * width, 1)), Int64(height), Int64(width), Float(gradientScale),
                    Float(rates[index].learningRate * rateFactor), Float(1 - pow(Double(counts[index]), Adafactor.decay)), Adafactor.epsilon,
                    Adafactor.threshold, Float(rates[index].weightDecay))
            }
        }
    }
}
