internal import Autograd
package import Models
package import Platform
internal import Tensors

/// FourierFT (Gao et al., arXiv:2405.03003): the change of a weight has few Fourier coefficients, at places that a seed
/// chooses,
///
///     ΔW = scaling·Re(ifft2(F))        F[row_p, column_p] = c_p
package struct FourierFT: AdapterMethod {
    package static let peftType = "FOURIERFT"
    package static let defaults: JSONObject = [
        "bias": .string("none"), "exclude_modules": .null, "fan_in_fan_out": .bool(false), "init_weights": .bool(false),
        "layers_pattern": .null, "layers_to_transform": .null, "modules_to_save": .null, "n_frequency": .integer(1000),
        "n_frequency_pattern": .object([:]), "random_loc_seed": .integer(777), "scaling": .number(150),
        "target_modules": .null,
    ]
    package static var defaultTargets: [String: JSONValue] {
        DefaultTargets.lora.with((["mlp.c_proj"], ["gpt2", "gpt_bigcode"]))
    }

    private let count: Int
    private let counts: SuffixTable
    private let seed: UInt64
    private let scaling: Double
    private let isZero: Bool
    private var transforms: [Int: SpectralTransform] = [:]

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        count = try configuration.integer("n_frequency")
        counts = try SuffixTable(configuration, "n_frequency_pattern")
        seed = try configuration.seed("random_loc_seed")
        scaling = try configuration.number("scaling")
        isZero = try configuration.flag("init_weights")
        try configuration.checkBias()
    }

    package mutating func prepare(for targets: [any Layer], _ configuration: inout AdapterConfiguration, _ model: Model)
        throws(PEFTError)
    {
        try configuration.matchLayout(of: targets) { model.engine.warn($0) }
        for layer in targets {
            let linear = try FourierFT.linear(layer)
            for size in [linear.inputSize, linear.outputSize] where transforms[size] == nil {
                transforms[size] = try .fourier(model.engine, size, block: size)
            }
        }
    }

    package func module(for layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule {
        let linear = try FourierFT.linear(layer)
        let count = try counts.value(for: layer.name) ?? self.count
        try SpectrumLinear.checkCount(count, linear)
        let (inputs, outputs) = (linear.inputSize, linear.outputSize)
        guard let from = transforms[inputs], let to = transforms[outputs] else { throw PEFTError(.internal, "FOURIERFT: no transforms") }
        var generator = TorchGenerator(seed: seed)
        let places = generator.permutation(of: inputs * outputs, first: count)
        let change = try SparseChange(
            model.engine, rows: places.map { Int32(clamping: $0 / inputs) }, columns: places.map { Int32(clamping: $0 % inputs) },
            from: from, to: to)
        let spectrum = try model.parameter(key + ".fourierft_spectrum", [count])
        return SpectrumLinear(
            linear, spectrum, change, scaling: Float(scaling / Double(inputs * outputs)), deviation: isZero ? 0 : 1)
    }
}
