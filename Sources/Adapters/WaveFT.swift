internal import Autograd
package import Models
package import Platform
internal import Tensors

/// WaveFT (arXiv:2505.12532): as FourierFT, with the coefficients of one level of a wavelet transform in two dimensions, or
/// with plain entries of the matrix (`use_idwt` false).
package struct WaveFT: AdapterMethod {
    package static let peftType = "WAVEFT"
    package static let defaults: JSONObject = [
        "bias": .string("none"), "exclude_modules": .null, "fan_in_fan_out": .bool(false), "init_weights": .bool(true),
        "layers_pattern": .null, "layers_to_transform": .null, "modules_to_save": .null, "n_frequency": .integer(2592),
        "n_frequency_pattern": .object([:]), "proportional_parameters": .bool(false), "random_loc_seed": .integer(777),
        "scaling": .number(25), "target_modules": .null, "use_idwt": .bool(true), "wavelet_family": .string("db1"),
    ]

    private let count: Int
    private let counts: SuffixTable
    private let seed: UInt64
    private let scaling: Float
    private let isZero: Bool
    private let isProportional: Bool
    /// nil: no transform.
    private let wavelet: (name: String, low: [Float])?
    private var total = 0
    private var layers = 0

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        count = try configuration.integer("n_frequency")
        counts = try SuffixTable(configuration, "n_frequency_pattern")
        seed = try configuration.seed("random_loc_seed")
        scaling = Float(try configuration.number("scaling"))
        isZero = try configuration.flag("init_weights")
        isProportional = try configuration.flag("proportional_parameters")
        let name = try configuration.choice("wavelet_family", Wavelets.names + ["haar"])
        wavelet = try configuration.flag("use_idwt") ? Wavelets.low(name).map { (name, $0) } : nil
        try configuration.checkBias()
    }

    package mutating func prepare(for targets: [any Layer], _ configuration: inout AdapterConfiguration, _ model: Model)
        throws(PEFTError)
    {
        try configuration.matchLayout(of: targets) { model.engine.warn($0) }
        layers = targets.count
        for layer in targets {
            let linear = try WaveFT.linear(layer)
            total += linear.inputSize * linear.outputSize
        }
    }

    /// `proportional_parameters`: the coefficients of all layers together are dealt out by size.
    private func count(for linear: Linear) throws(PEFTError) -> Int {
        if isProportional {
            let share = Double(linear.inputSize * linear.outputSize) / Double(max(total, 1)) * Double(count * layers)
            return max(1, Int(share.rounded(.toNearestOrEven)))
        }
        return try counts.value(for: linear.name) ?? count
    }

    package func module(for layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule {
        let linear = try WaveFT.linear(layer)
        let count = try count(for: linear)
        try SpectrumLinear.checkCount(count, linear)
        let inputs = linear.inputSize
        var generator = TorchGenerator(seed: seed)
        let places = generator.permutation(of: inputs * linear.outputSize, first: count)
        return SpectrumLinear(
            linear, try model.parameter(key + ".waveft_spectrum", [count]),
            try change(linear, rows: places.map { $0 / inputs }, columns: places.map { $0 % inputs }, model.engine),
            scaling: scaling, deviation: isZero ? 0 : 0.01)
    }

    private func change(_ linear: Linear, rows: [Int], columns: [Int], _ engine: Engine) throws(PEFTError) -> SparseChange {
        guard let wavelet else {
            return try SparseChange(
                engine, rows: rows.map { Int32(clamping: $0) }, columns: columns.map { Int32(clamping: $0) },
                from: .none(linear.inputSize), to: .none(linear.outputSize))
        }
        let (input, output) = (WaveletSide(linear.inputSize, wavelet.name, wavelet.low.count), WaveletSide(linear.outputSize, wavelet.name, wavelet.low.count))
        // PEFT filters the quarter on the right by rows, and the one below by columns: bands are exchanged.
        var (bandRows, bandColumns): ([Int32], [Int32]) = ([], [])
        for (row, column) in zip(rows, columns) {
            let (r, c) = (row + output.offset, column + input.offset)
            let (below, right) = (r >= output.half, c >= input.half)
            bandRows.append(Int32(clamping: r % output.half + (right ? output.half : 0)))
            bandColumns.append(Int32(clamping: c % input.half + (below ? input.half : 0)))
        }
        return try SparseChange(
            engine, rows: bandRows, columns: bandColumns, from: try input.transform(engine, wavelet.low),
            to: try output.transform(engine, wavelet.low))
    }
}

/// One dimension of a weight among the coefficients: the weight stands in the middle of them, with room for the filter.
private struct WaveletSide {
    private let size: Int
    let half: Int
    let offset: Int
    private let shift: Int

    init(_ size: Int, _ name: String, _ length: Int) {
        self.size = size
        // Twice the order minus two of db and sym, six times minus two of coif.
        let order = Int(name.drop { !$0.isASCIIDigit }) ?? 1
        let reduction = (name.hasPrefix("coif") ? 6 : 2) * order - 2
        let padded = (size + reduction + 1) / 2 * 2
        half = padded / 2
        offset = (padded - size) / 2
        // What comes out is cut on both sides, and again to the size.
        let cut = (2 * length - 3) / 2
        let whole = 2 * (half - 1) + length - 2 * cut
        shift = cut + max(0, whole - size) / 2
    }

    func transform(_ engine: Engine, _ low: [Float]) throws(PEFTError) -> SpectralTransform {
        try .wavelets(engine, size, places: 2 * half, low: low, high: Wavelets.high(low), shift: shift)
    }
}
