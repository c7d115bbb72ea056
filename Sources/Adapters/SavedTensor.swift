internal import Autograd
internal import Models
internal import Platform
internal import Tensors

/// One tensor of an adapter's file, and where it comes from.
struct SavedTensor: Sendable {
    private enum Source {
        case parameter(Parameter)
        /// Of a base layer, kept beside an adapter of an embedding.
        case base(any Layer, String)
    }

    let key: String
    private let source: Source

    init(_ parameter: Parameter) {
        key = parameter.name
        source = .parameter(parameter)
    }

    init(base layer: any Layer, _ tensor: String) {
        key = "\(Adapter.prefix)\(layer.name).base_layer.\(tensor)"
        source = .base(layer, tensor)
    }

    /// nil: nothing of the adapter's own.
    var parameter: Parameter? {
        if case .parameter(let parameter) = source { parameter } else { nil }
    }

    var shape: [Int] {
        switch source {
        case .parameter(let parameter): parameter.value.shape
        case .base(let layer, let name): layer.tensor(name)?.shape ?? []
        }
    }

    /// A copy of the present value; base weights in the type they have, quantised ones in f32.
    func value(_ engine: Engine) throws(PEFTError) -> Tensor {
        switch source {
        case .parameter(let parameter): return try parameter.value.converted(to: .f32, engine, .adapters)
        case .base(let layer, let name):
            guard let tensor = layer.tensor(name) else { throw PEFTError(.internal, "\(layer.name) has no \(name)") }
            return try tensor.converted(to: tensor.dtype.isFloat ? tensor.dtype : .f32, engine, .adapters)
        }
    }

    /// The present value of something that is not the adapter's own.
    var baseTensor: Tensor? {
        if case .base(let layer, let name) = source { layer.tensor(name) } else { nil }
    }
}
