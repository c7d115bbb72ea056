internal import Autograd
internal import Models
internal import Platform
internal import Tensors

/// One tensor of an adapter's file, and where it comes from.
package struct SavedTensor: Sendable {
    private enum Source {
        case parameter(Parameter)
        /// A parameter that is saved elsewhere, the other way round.
        case transposed(Parameter)
        /// Of a base layer, kept beside an adapter of an embedding.
        case base(any Layer, String)
        case table(IndexTable)
    }

    let key: String
    private let source: Source

    /// - Parameter key: nil: the parameter's name.
    init(_ parameter: Parameter, key: String? = nil) {
        self.key = key ?? parameter.name
        source = .parameter(parameter)
    }

    init(transposed parameter: Parameter, key: String) {
        self.key = key
        source = .transposed(parameter)
    }

    init(_ table: IndexTable) {
        key = table.key
        source = .table(table)
    }

    init(base layer: any Layer, _ tensor: String) {
        key = "\(Adapter.prefix)\(layer.name).base_layer.\(tensor)"
        source = .base(layer, tensor)
    }

    /// nil: nothing that is set through this key.
    var parameter: Parameter? {
        if case .parameter(let parameter) = source { parameter } else { nil }
    }

    /// Integers that are set through this key.
    var table: IndexTable? {
        if case .table(let table) = source { table } else { nil }
    }

    /// The base layer whose tensor this is.
    var base: (layer: any Layer, tensor: String)? {
        if case .base(let layer, let tensor) = source { (layer, tensor) } else { nil }
    }

    var shape: [Int] {
        switch source {
        case .parameter(let parameter): parameter.value.shape
        case .transposed(let parameter): parameter.value.shape.reversed()
        case .base(let layer, let name): layer.tensor(name)?.shape ?? []
        case .table(let table): table.shape
        }
    }

    /// A copy of the present value; base weights in the type they have, quantised ones in f32.
    func value(_ engine: Engine) throws(PEFTError) -> Tensor {
        switch source {
        case .parameter(let parameter): return try parameter.value.converted(to: .f32, engine, .adapters)
        case .transposed(let parameter): return try parameter.value.transposed(engine)
        case .table(let table): return try table.tensor(engine)
        case .base(let layer, let name):
            guard let tensor = layer.tensor(name) else { throw PEFTError(.internal, "\(layer.name) has no \(name)") }
            return try tensor.converted(to: tensor.dtype.isFloat ? tensor.dtype : .f32, engine, .adapters)
        }
    }
}
