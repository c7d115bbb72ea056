internal import Autograd
package import Models
package import Platform
internal import Tensors

/// LN tuning (Zhao et al., arXiv:2312.11420): norms, or any other layers that are named, are trained themselves.
package struct LNTuning: AdapterMethod {
    package static let peftType = "LN_TUNING"
    package static let layerKinds = ["*"]
    package static let defaults: JSONObject = ["exclude_modules": .null, "modules_to_save": .null, "target_modules": .null]
    package static var defaultTargets: [String: JSONValue] { DefaultTargets.lnTuning }

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {}

    package func module(for layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule {
        try TunedLayer(layer, key: key, model.engine)
    }
}

/// A layer whose tensors have copies that train.
private final class TunedLayer: AdapterModule {
    let layer: any Layer
    let replacements: [Replacement]
    var parameters: [Parameter] { [] }

    init(_ layer: any Layer, key: String, _ engine: Engine) throws(PEFTError) {
        self.layer = layer
        replacements = try layer.tensors.map { (name, tensor) throws(PEFTError) in
            let key = "\(key).ln_tuning_layers.\(name)"
            let parameter = Parameter(name: key, value: try tensor.converted(to: .f32, engine, .adapters))
            return Replacement(layer: layer, tensor: name, parameter: parameter, key: key, reason: .tuned)
        }
    }

    func hook(scale: Float, beside replacements: [String: Parameter]) -> any LayerHook { IdleHook() }
    /// Replacements are merged as such.
    func fold(into weights: inout FoldedWeights, scale: Float) throws(PEFTError) {}
}

private final class IdleHook: LayerHook {}
