internal import Autograd
internal import Models
internal import Platform
internal import Tensors

/// Two frozen random matrices that all layers of an adapter use, each the part of its size: A `[r, largest in]`, B
/// `[largest out, r]`. They are saved, or drawn again from their seed.
struct SharedProjections: Sendable {
    let a: Parameter
    let b: Parameter
    /// In the file, if it has them.
    let saved: [SavedTensor]

    /// - Parameters:
    ///   - name: the method's, in front of "_A" and "_B".
    ///   - ranks: rows of A, columns of B.
    init(
        _ name: String, ranks: (a: Int, b: Int), for targets: [Linear], _ configuration: AdapterConfiguration, _ model: Model
    ) throws(PEFTError) {
        let input = targets.map(\.inputSize).max() ?? 0
        let output = targets.map(\.outputSize).max() ?? 0
        a = try model.parameter("base_model.\(name)_A", [ranks.a, input], isTrainable: false)
        b = try model.parameter("base_model.\(name)_B", [output, ranks.b], isTrainable: false)
        saved = try configuration.flag("save_projection") ? [SavedTensor(a), SavedTensor(b)] : []
        var generator = TorchGenerator(seed: try configuration.seed("projection_prng_key"))
        a.value.set(generator.kaiming(a.value.count, fanIn: input))
        b.value.set(generator.kaiming(b.value.count, fanIn: ranks.b))
    }

    func a(for linear: Linear, _ tape: Tape) throws(PEFTError) -> Variable { try tape.leftColumns(of: a.value, linear.inputSize) }
    func b(for linear: Linear) throws(PEFTError) -> Tensor { try b.value.rows(0..<linear.outputSize) }
}

extension AdapterConfiguration {
    /// A seed as torch takes it: any integer of 64 bits.
    func seed(_ key: String) throws(PEFTError) -> UInt64 { UInt64(bitPattern: Int64(try integer(key))) }
}
