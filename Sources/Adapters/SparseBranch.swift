internal import Autograd
internal import Models
internal import Platform
internal import Tensors

/// A branch whose change of the weight is a sparse matrix, between transforms of input and output or without: FourierFT,
/// WaveFT, SHiRA, C3A and the sparse part of Super-Tuning.
struct SparseChange: Sendable {
    let places: SparsePlaces
    let from: SpectralTransform
    let to: SpectralTransform

    /// - Parameter places: one after the other, `row·in + column`, of a matrix without transforms.
    init(_ engine: Engine, flat places: [Int32], of linear: Linear) throws(PEFTError) {
        let width = Int32(clamping: max(linear.inputSize, 1))
        try self.init(
            engine, rows: places.map { $0 / width }, columns: places.map { $0 % width }, from: .none(linear.inputSize),
            to: .none(linear.outputSize))
    }

    init(_ engine: Engine, rows: [Int32], columns: [Int32], from: SpectralTransform, to: SpectralTransform) throws(PEFTError) {
        (self.from, self.to) = (from, to)
        places = try SparsePlaces(engine, rows: rows, columns: columns, from: from, to: to)
    }

    func add(to y: consuming Variable, input x: Variable, _ values: Variable, scale: Float, turnsGradient: Bool = false, _ tape: Tape) throws(PEFTError)
        -> Variable
    {
        try tape.addSpectral(to: y, input: x, values, at: places, from: from, to: to, scale: scale, turnsGradient: turnsGradient)
    }

    /// As `LayerHook.product`: one product with the changed weight, where the values are entries of it. Generation keeps to `add`: for few rows a copy
    /// of the weight is the dearer.
    func product(of x: Variable, _ values: Variable, bias: Variable?, scale: Float, _ site: HookSite, as dtype: DType?) throws(PEFTError) -> Variable? {
        guard from.isNone, to.isNone, !site.tape.isInference else { return nil }
        return try site.tape.linear(
            x, frozen: site.weight, plus: values, at: places, scale: scale, bias: bias, transposed: site.layer.isTransposed, as: dtype)
    }
}

/// What FourierFT and WaveFT are at a layer: coefficients at places that a seed chooses.
final class SpectrumLinear: LinearBranch {
    let linear: Linear
    /// f32 `[n]`
    private let spectrum: Parameter
    private let change: SparseChange
    private let scaling: Float
    /// Of the fresh coefficients; 0: they are zero.
    private let deviation: Float

    init(_ linear: Linear, _ spectrum: Parameter, _ change: SparseChange, scaling: Float, deviation: Float) {
        (self.linear, self.spectrum, self.change, self.scaling, self.deviation) = (linear, spectrum, change, scaling, deviation)
    }

    var parameters: [Parameter] { [spectrum] }

    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        var random = random
        spectrum.value.fillNormal(deviation, &random)
        return [:]
    }

    func add(to y: consuming Variable, input x: Variable, beside w: Tensor, scale: Float, _ tape: Tape)
        throws(PEFTError) -> Variable
    {
        try change.add(to: y, input: x, tape.variable(spectrum), scale: scale * scaling, tape)
    }

    /// How many coefficients a layer has.
    static func checkCount(_ count: Int, _ linear: Linear) throws(PEFTError) {
        let most = linear.inputSize * linear.outputSize
        guard count > 0, count <= most else {
            throw PEFTError(.argument, "`n_frequency` is \(count) for '\(linear.name)'; it must be from 1 to \(most), its size")
        }
        guard most <= Int32.max else {
            throw PEFTError(.unsupported, "'\(linear.name)' has \(most) weights; places are 32 bits wide")
        }
    }
}

/// `n_frequency_pattern`, `block_size_pattern`: integers for the modules whose names end in a key behind a dot.
struct SuffixTable {
    private let rows: [(name: String, pattern: Pattern, value: Int)]

    init(_ configuration: AdapterConfiguration, _ key: String) throws(PEFTError) {
        rows = try (try configuration.values.object(key) ?? JSONObject()).pairs.map { (name, value) throws(PEFTError) in
            guard let number = value.intValue else {
                throw PEFTError(.argument, "\"\(key)\": '\(name)' is \(value.text()); an integer is expected")
            }
            return (name, try Pattern.configured(".*\\.(?:\(name))", key), number)
        }
    }

    /// PEFT also takes a key that is the whole name.
    func value(for module: String) throws(PEFTError) -> Int? {
        for row in rows {
            if row.name == module { return row.value }
            if try row.pattern.matchesWhole(module) { return row.value }
        }
        return nil
    }
}
