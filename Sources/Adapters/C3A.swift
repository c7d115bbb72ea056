internal import Autograd
internal import Glibc
package import Models
package import Platform
internal import Tensors

/// C3A (Chen et al., arXiv:2407.19342): the change of a weight consists of circulant blocks of size b,
///
///     ΔW[m·b + p, n·b + t] = w[m, n, (t − p) mod b] / in
///
/// which Fourier transforms of the blocks make diagonal: with `v_k = (1/b)·Σ_s w_s·e^(2πi·k·s/b)` each pair of blocks has a
/// value for each frequency from 0 to b/2, of which those between stand for two.
///
/// PEFT's backward pass has a sign of a transform wrong: what it hands to the layers below is `Σ_p w[(t + p) mod b]·dy_p`
/// instead of `w[(t − p) mod b]`. Runs are to go as they go in PEFT, so it is the same here; gradients of kernels are exact.
package struct C3A: AdapterMethod {
    package static let peftType = "C3A"
    package static let layerKinds = ["Linear"]
    package static let defaults: JSONObject = [
        "bias": .string("none"), "block_size": .integer(256), "block_size_pattern": .object([:]),
        "init_weights": .string("xavier_uniform"), "layers_pattern": .null, "layers_to_transform": .null,
        "modules_to_save": .null, "target_modules": .null,
    ]
    package static var defaultTargets: [String: JSONValue] {
        DefaultTargets.lora.with((["mlp.c_proj"], ["gpt2", "gpt_bigcode"]))
    }

    private let size: Int
    private let sizes: SuffixTable
    private let start: String

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        size = try configuration.integer("block_size")
        sizes = try SuffixTable(configuration, "block_size_pattern")
        start = try configuration.choice("init_weights", ["xavier_uniform", "kaiming_uniform", "gaussian"], orFlag: true)
        try configuration.checkBias()
    }

    package func module(for layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule {
        let linear = try C3A.linear(layer)
        let size = try sizes.value(for: layer.name) ?? self.size
        guard size > 0, linear.inputSize % size == 0, linear.outputSize % size == 0 else {
            throw PEFTError(
                .argument,
                "the block size should be a factor of input and output size; for '\(layer.name)' these are \(linear.inputSize) and \(linear.outputSize), and it is \(size)"
            )
        }
        return try C3ALinear(linear, key: key, size: size, start: start, model)
    }
}

private final class C3ALinear: LinearBranch {
    let linear: Linear
    /// f32 `[out/b, in/b, b]`
    private let kernel: Parameter
    private let change: SparseChange
    /// f32 `[b/2 + 1, b]` each: from a kernel to re and im of its values.
    private let cosines: Tensor
    private let sines: Tensor
    private let start: String

    init(_ linear: Linear, key: String, size b: Int, start: String, _ model: Model) throws(PEFTError) {
        (self.linear, self.start) = (linear, start)
        let (rows, columns) = (linear.outputSize / b, linear.inputSize / b)
        kernel = try model.parameter(key + ".c3a_kernel", [rows, columns, b])
        let frequencies = b / 2 + 1
        var (places, partners): ([Int32], [Int32]) = ([], [])
        for row in 0..<rows {
            for column in 0..<columns {
                for k in 0..<frequencies {
                    places.append(Int32(clamping: row * b + k))
                    partners.append(Int32(clamping: column * b + (b - k) % b))
                }
            }
        }
        change = try SparseChange(
            model.engine, rows: places, columns: partners, from: .fourier(model.engine, linear.inputSize, block: b),
            to: .fourier(model.engine, linear.outputSize, block: b))
        func table(_ function: (Double) -> Double) throws(PEFTError) -> Tensor {
            var values: [Float] = []
            for k in 0..<frequencies {
                let share = (k == 0 || 2 * k == b ? 1 : 2) / Double(b)
                for s in 0..<b { values.append(Float(share * function(2 * Double.pi * Double(k * s % b) / Double(b)))) }
            }
            return try Tensor(model.engine, values, shape: [frequencies, b], .adapters)
        }
        cosines = try table { cos($0) }
        sines = try table { sin($0) }
    }

    var parameters: [Parameter] { [kernel] }

    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        var random = random
        let (inputs, outputs) = (Float(linear.inputSize), Float(linear.outputSize))
        switch start {
        case "true": kernel.value.clear()
        case "gaussian": kernel.value.fillNormal(1, &random)
        case "kaiming_uniform": kernel.value.fill { (2 * random.uniform() - 1) * (1 / inputs).squareRoot() }
        default: kernel.value.fill { (2 * random.uniform() - 1) * (6 / (inputs + outputs)).squareRoot() }
        }
        return [:]
    }

    func add(to y: consuming Variable, input x: Variable, beside w: Tensor, scale: Float, _ tape: Tape)
        throws(PEFTError) -> Variable
    {
        let count = change.places.count
        let kernels = try tape.matrix(kernel, rows: kernel.value.rows)
        let re = try tape.reshaped(try tape.linear(kernels, frozen: cosines), [1, count])
        let im = try tape.reshaped(try tape.linear(kernels, frozen: sines), [1, count])
        let values = try tape.concatenateRows([re, im])
        return try change.add(to: y, input: x, values, scale: scale / Float(linear.inputSize), turnsGradient: true, tape)
    }
}
