internal import Autograd
package import Models
package import Platform
internal import Tensors

/// BEFT (arXiv:2509.15974): a trained bias beside the layer, `y += β`.
package struct BEFT: AdapterMethod {
    package static let peftType = "BEFT"
    package static let layerKinds = ["Linear"]
    package static let defaults: JSONObject = [
        "init_weights": .bool(true), "modules_to_save": .null, "target_modules": .null,
    ]
    package static let defaultTargets: [String: JSONValue] = [:].with(
        (["v"], ["t5", "mt5"]), (["value"], ["roberta", "bert"]), (["value_proj"], ["deberta-v2"]),
        (
            ["v_proj"],
            [
                "opt", "gptj", "gpt_neo", "bart", "llama", "llama4", "mistral", "mixtral", "phi", "gemma", "gemma2",
                "gemma3_text", "qwen2", "qwen3",
            ]
        ))

    private let isRandom: Bool

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        isRandom = try !configuration.flag("init_weights")
    }

    package func module(for layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule {
        try BEFTLinear(BEFT.linear(layer), key: key, isRandom: isRandom, model)
    }
}

private final class BEFTLinear: LinearBranch {
    let linear: Linear
    /// f32 `[1, out]`
    private let bias: Parameter
    private let isRandom: Bool

    init(_ linear: Linear, key: String, isRandom: Bool, _ model: Model) throws(PEFTError) {
        (self.linear, self.isRandom) = (linear, isRandom)
        bias = try model.parameter(key + ".beft_bias", [1, linear.outputSize])
    }

    let isElementwise = true
    var parameters: [Parameter] { [bias] }

    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        var random = random
        if isRandom { bias.value.fillNormal(1, &random) }
        return [:]
    }

    func add(to y: consuming Variable, input x: Variable, beside w: Tensor, scale: Float, _ tape: Tape)
        throws(PEFTError) -> Variable
    {
        let bias = tape.variable(bias)
        return try tape.scaleColumns(y, scale: nil, shift: scale == 1 ? bias : try tape.scaled(bias, by: scale))
    }

    /// The weight is not touched, not even by rounding.
    func fold(into weights: inout FoldedWeights, scale: Float) throws(PEFTError) {
        guard let present = try weights.tensor("bias") else {
            throw PEFTError(.unsupported, "'\(linear.name)' has no bias that BEFT's could be merged into")
        }
        weights.engine.axpby(scale, bias.value, 1, into: present)
    }
}
