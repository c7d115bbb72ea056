internal import Autograd
package import Models
package import Platform
internal import Tensors

/// LyCORIS' "full": the change of a weight, and of a bias, as it is: `y += x·Dᵀ + d`. PEFT has no such method; it is for what others
/// trained, for small layers, and for what no factors hold. `use_bias`: biases change too, of the layers that have one.
package struct FullChange: AdapterMethod {
    package static let peftType = "FULL"
    package static let layerKinds = MatrixTarget.linears + MatrixTarget.convolutions
    package static let defaults: JSONObject = [
        "exclude_modules": .null, "init_weights": .bool(true), "layers_pattern": .null, "layers_to_transform": .null, "modules_to_save": .null,
        "target_modules": .null, "use_bias": .bool(false),
    ]

    private let hasBias: Bool
    private let isNeutral: Bool

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        hasBias = try configuration.flag("use_bias")
        isNeutral = try configuration.flag("init_weights")
    }

    package func module(for layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule {
        let target = try MatrixTarget(layer, of: FullChange.self, inGroups: false)
        let shape = target.isTransposed ? [target.inputSize, target.outputSize] : target.weightShape
        return FullModule(
            target, change: try model.parameter(key + ".diff", shape),
            shift: hasBias && target.linear.bias != nil ? try model.parameter(key + ".diff_b", [target.outputSize]) : nil, isNeutral: isNeutral)
    }
}

private final class FullModule: MatrixModule {
    let target: MatrixTarget
    private let change: Parameter
    private let shift: Parameter?
    private let isNeutral: Bool

    init(_ target: MatrixTarget, change: Parameter, shift: Parameter?, isNeutral: Bool) {
        (self.target, self.change, self.shift, self.isNeutral) = (target, change, shift, isNeutral)
    }

    var parameters: [Parameter] { [change] + [shift].compactMap { $0 } }

    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        var random = random
        if !isNeutral { change.value.fillNormal(0.02, &random) }
        return [:]
    }

    func add(to y: consuming Variable, input x: Variable, scale: Float, _ site: HookSite) throws(PEFTError) -> Variable {
        let tape = site.tape
        let matrix = try tape.matrix(change)
        let sum = try tape.addProduct(to: y, input: x, [target.isTransposed ? .transposed(matrix) : .matrix(matrix)], scale: scale)
        guard let shift else { return sum }
        return try tape.scaleColumns(sum, scale: nil, shift: try tape.scaled(tape.variable(shift), by: scale))
    }
}
