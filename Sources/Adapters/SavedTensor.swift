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
        /// Those rows or columns of a parameter that are left.
        case kept(Parameter, RankMask, ofColumns: Bool)
        /// Of a base layer, kept beside an adapter of an embedding.
        case base(any Layer, String)
        case table(IndexTable)
        /// What an encoder gives; not set through this key.
        case encoded(PromptEncoder)
        /// Parameters below each other.
        case stacked([Parameter])
    }

    let key: String
    private let source: Source

    /// - Parameter key: nil: the parameter's name.
    init(_ parameter: Parameter, key: String? = nil) {
        self.key = key ?? parameter.name
        source = .parameter(parameter)
    }

    init(_ parameter: Parameter, rows mask: RankMask) {
        key = parameter.name
        source = .kept(parameter, mask, ofColumns: false)
    }

    init(_ parameter: Parameter, columns mask: RankMask) {
        key = parameter.name
        source = .kept(parameter, mask, ofColumns: true)
    }

    init(transposed parameter: Parameter, key: String) {
        self.key = key
        source = .transposed(parameter)
    }

    init(_ table: IndexTable) {
        key = table.key
        source = .table(table)
    }

    init(encodedBy encoder: PromptEncoder, key: String) {
        self.key = key
        source = .encoded(encoder)
    }

    init(stacking parameters: [Parameter], key: String) {
        self.key = key
        source = .stacked(parameters)
    }

    /// - Parameter key: nil: of the tensor below a target's `base_layer`.
    init(base layer: any Layer, _ tensor: String, key: String? = nil) {
        self.key = key ?? "\(Adapter.prefix)\(layer.name).base_layer.\(tensor)"
        source = .base(layer, tensor)
    }

    /// nil: nothing that is set through this key.
    var parameter: Parameter? {
        switch source {
        case .parameter(let parameter), .kept(let parameter, _, _): parameter
        case .transposed, .base, .table, .encoded, .stacked: nil
        }
    }

    /// Those that are set through this key.
    var assigned: [Parameter] {
        if case .stacked(let parameters) = source { parameters } else { parameter.map { [$0] } ?? [] }
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
        case .kept(let parameter, let mask, let ofColumns):
            mask.kept.map { ofColumns ? [parameter.value.rows, $0.count] : [$0.count, parameter.value.columns] } ?? parameter.value.shape
        case .base(let layer, let name): layer.tensor(name)?.shape ?? []
        case .table(let table): table.shape
        case .encoded(let encoder): encoder.shape
        case .stacked(let parameters): [parameters.reduce(0) { $0 + $1.value.rows }, parameters.first?.value.columns ?? 0]
        }
    }

    /// A copy of the present value; base weights in the type they have, quantised ones in f32.
    func value(_ engine: Engine) throws(PEFTError) -> Tensor {
        switch source {
        case .parameter(let parameter): return try parameter.value.converted(to: .f32, engine, .adapters)
        case .transposed(let parameter): return try parameter.value.transposed(engine)
        case .table(let table): return try table.tensor(engine)
        case .encoded(let encoder): return try encoder.table(Tape(engine, .f32)).value
        case .stacked(let parameters):
            let tape = Tape(engine, .f32)
            return try tape.concatenateRows(parameters.map { tape.variable($0) }).value.converted(to: .f32, engine, .adapters)
        case .kept(let parameter, let mask, let ofColumns):
            guard mask.kept != nil else { return try parameter.value.converted(to: .f32, engine, .adapters) }
            let result = try Tensor(engine, shape, .f32, .adapters)
            SavedTensor.copy(parameter.value, to: result, mask, ofColumns)
            return result
        case .base(let layer, let name):
            guard let tensor = layer.tensor(name) else { throw PEFTError(.internal, "\(layer.name) has no \(name)") }
            return try tensor.converted(to: tensor.dtype.isFloat ? tensor.dtype : .f32, engine, .adapters)
        }
    }

    /// Writes a value of `shape` into the parameter.
    func assign(_ value: Tensor, _ engine: Engine) throws(PEFTError) {
        if case .stacked(let parameters) = source {
            var start = 0
            for parameter in parameters {
                engine.axpby(1, try value.rows(start..<start + parameter.value.rows), 0, into: parameter.value)
                start += parameter.value.rows
            }
            return
        }
        guard let parameter else { return }
        if case .kept(_, let mask, let ofColumns) = source, mask.kept != nil {
            parameter.value.clear()
            return SavedTensor.copy(value, to: parameter.value, mask, ofColumns)
        }
        engine.axpby(1, try value.reshaped(parameter.value.shape), 0, into: parameter.value)
    }

    /// Between a matrix and what is left of it; the smaller one has as many rows or columns as the mask leaves.
    private static func copy(_ from: Tensor, to target: Tensor, _ mask: RankMask, _ ofColumns: Bool) {
        let kept = mask.kept ?? []
        let (width, result) = (from.columns, target.columns)
        let isSmaller = ofColumns ? result == kept.count : target.rows == kept.count
        unsafe from.withFloats { from in
            unsafe target.withMutableFloats { to in
                for (small, large) in kept.enumerated() {
                    let (source, place) = isSmaller ? (large, small) : (small, large)
                    if ofColumns {
                        for row in 0..<min(from.count / max(width, 1), to.count / max(result, 1)) { unsafe to[row * result + place] = from[row * width + source] }
                    } else {
                        for column in 0..<min(width, result) { unsafe to[place * result + column] = from[source * width + column] }
                    }
                }
            }
        }
    }
}
