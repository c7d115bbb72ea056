internal import Autograd
package import Models
package import Platform
internal import Quantization
package import Tensors

/// The weights of one layer while adapters are folded into them: f32, decoded when first asked for.
package struct FoldedWeights {
    package let layer: any Layer
    package let engine: Engine
    /// What the layer had before anything was merged, where that is not what it has now.
    private let originals: [String: Tensor]
    private let start: [String: Tensor]
    /// By the layer's short names; only those that were asked for.
    package private(set) var tensors: [String: Tensor]

    /// - Parameter start: values that stand in for the layer's own (a trained bias).
    init(_ layer: any Layer, originals: [String: Tensor], start: [String: Tensor], _ engine: Engine) {
        self.layer = layer
        self.originals = originals
        self.engine = engine
        self.start = start
        tensors = start
    }

    /// The tensor as it is now, in memory of its own that may be changed in place; nil when the layer has none of that name.
    package mutating func tensor(_ name: String) throws(PEFTError) -> Tensor? {
        if let present = tensors[name] { return present }
        guard let stored = layer.tensor(name) else { return nil }
        let decoded = try stored.converted(to: .f32, engine, .scratch)
        tensors[name] = decoded
        return decoded
    }

    package mutating func set(_ name: String, _ tensor: Tensor) { tensors[name] = tensor }

    /// The tensor before any adapter was folded in, as stored.
    package func original(_ name: String) -> Tensor? { originals[name] ?? layer.tensor(name) }

    /// What stands for the layer's weight and bias where a change is made of them: as they were before any adapter was folded in, a trained bias included.
    func beforeFolding() -> [String: Parameter] {
        var found: [String: Parameter] = [:]
        for name in ["weight", "bias"] { found[name] = (start[name] ?? original(name)).map { Parameter(name: "", value: $0, isTrainable: false) } }
        return found
    }
}

extension FoldedWeights {
    /// A linear layer's weight and bias as a module changes them, for products of few rows: f32, bf16, or 8 bits where those round to 8 bits anyway, as they compute;
    /// nil: no weights can hold it.
    static func copies(of module: any AdapterModule, _ target: MatrixTarget, scale: Float, _ copies: DecodingCopies) throws(PEFTError) -> (weight: Tensor, bias: Tensor?)? {
        let linear = target.linear
        guard module.invocation == nil, target.kernel.isEmpty, linear.groups == 1, !linear.isTransposed else { return nil }
        var folded = FoldedWeights(linear, originals: [:], start: [:], copies.engine)
        do throws(PEFTError) {
            try module.fold(into: &folded, scale: scale)
        } catch {
            guard error.kind == .unsupported else { throw error }
            return nil
        }
        guard let weight = folded.tensors["weight"] else { return nil }
        let isRounded = copies.compute == .int8 && linear.weight.dtype.isQuantized && weight.columns % DType.q8_0.blockValues == 0
        return (try weight.encoded(as: isRounded ? .q8_0 : copies.factors, copies.engine, .adapters), folded.tensors["bias"] ?? linear.bias)
    }
}
