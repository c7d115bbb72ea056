internal import Autograd
package import Models
package import Platform
internal import Synchronization
internal import Tensors

/// Context-aware prompt tuning (Blau et al., arXiv:2410.17222): examples in front of the input, whose embeddings may move a little; it
/// learns from their answers, too, the last ones most.
///
/// A token has a type: 4k+1 template of an input, 4k+2 input, 4k+3 template of its answer, 4k+4 answer; answers stay as they are.
package struct CPT: PromptMethod {
    package static let peftType = "CPT"
    package static let defaults: JSONObject = {
        var keys = PromptSettings.defaults
        for key in ["cpt_mask", "cpt_token_ids", "cpt_tokens_type_mask", "tokenizer_name_or_path"] { keys[key] = .null }
        keys["opt_weighted_loss_type"] = .string("none")
        keys["opt_loss_decay_factor"] = .number(1)
        keys["opt_projection_epsilon"] = .number(0.1)
        keys["opt_projection_format_epsilon"] = .number(0.1)
        return keys
    }()

    package let encoder: PromptEncoder
    private let delta: ContextDelta

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        if configuration.taskType == nil { configuration.values["task_type"] = .string("CAUSAL_LM") }
        guard configuration.taskType == "CAUSAL_LM", model.task == .causalLM else {
            throw PEFTError(.argument, "CPT is for task_type CAUSAL_LM and models that continue text")
        }
        if configuration.values["cpt_token_ids"]?.isNull ?? true { configuration.values["cpt_token_ids"] = .array([.integer(0)]) }
        let ids = try CPT.integers("cpt_token_ids", configuration)
        for key in ["cpt_mask", "cpt_tokens_type_mask"] where configuration.values[key]?.isNull ?? true {
            configuration.values[key] = .array(Array(repeating: .integer(1), count: ids.count))
        }
        let (mask, types) = (try CPT.integers("cpt_mask", configuration), try CPT.integers("cpt_tokens_type_mask", configuration))
        guard !ids.isEmpty, mask.count == ids.count, types.count == ids.count else {
            throw PEFTError(.argument, "cpt_token_ids has \(ids.count) tokens, cpt_mask \(mask.count), cpt_tokens_type_mask \(types.count); each token needs one of all, and there must be some")
        }
        if let wrong = types.first(where: { $0 < 0 }) { throw PEFTError(.argument, "cpt_tokens_type_mask has \(wrong); types are 0 or more") }
        if configuration.values["num_virtual_tokens"]?.isNull ?? true { configuration.values["num_virtual_tokens"] = .integer(Int64(ids.count)) }
        let settings = try PromptSettings(&configuration, model)
        try settings.checkWidth()
        guard settings.count == ids.count, settings.parts == 1 else {
            throw PEFTError(.argument, "num_virtual_tokens is \(settings.count); cpt_token_ids has \(ids.count) tokens, for one transformer")
        }
        if let wrong = ids.first(where: { $0 < 0 || Int($0) >= settings.embedding.count }) {
            throw PEFTError(.argument, "cpt_token_ids has \(wrong); the model's are 0 to \(settings.embedding.count - 1)")
        }
        let decays = try configuration.choice("opt_weighted_loss_type", ["none", "decay"]) == "decay"
        let factor = try configuration.number("opt_loss_decay_factor")
        guard factor.isFinite, factor >= 0 else { throw PEFTError(.argument, "opt_loss_decay_factor is \(factor); 0 or more is possible") }
        let sizes = try ["opt_projection_epsilon", "opt_projection_format_epsilon"].map { (key) throws(PEFTError) in
            let value = try configuration.number(key)
            guard value.isFinite, value >= 0 else { throw PEFTError(.argument, "\(key) is \(value); 0 or more is possible") }
            return Float(value)
        }
        let scale = (Float(settings.width) / 2048).squareRoot()
        delta = try ContextDelta(
            width: settings.width, radii: types.map { $0 % 4 == 2 ? sizes[0] * scale : $0 % 4 == 0 ? 1e-10 : sizes[1] * scale }, learns: types.map { $0 % 4 != 0 }, model.engine)
        encoder = try PromptEncoder(
            CPT.peftType, count: ids.count, rows: ids.count, width: settings.width, network: delta, trainsEmbedding: false, start: .tokens(ids, settings.embedding),
            context: ContextLabels(ids: ids, types: types, decay: decays ? Float(factor) : nil), isNew: isNew, model)
    }

    private static func integers(_ key: String, _ configuration: AdapterConfiguration) throws(PEFTError) -> [Int32] {
        guard let list = configuration.values[key]?.arrayValue else { throw PEFTError(.argument, "\(key) must be a list of integers") }
        return try list.map { (item) throws(PEFTError) in
            guard let value = item.intValue, let small = Int32(exactly: value) else { throw PEFTError(.argument, "\(key) has an entry that is no 32-bit integer") }
            return small
        }
    }

    package func companion(of modules: [any AdapterModule], _ model: Model) throws(PEFTError) -> (any AdapterCompanion)? { delta }
}

/// What is added to the embeddings of the context: a row of each token, no longer than its radius. Before every step, as in PEFT,
/// longer rows are cut to it; until then they act as if they were, with the derivative of a row that is not.
private final class ContextDelta: PromptNetwork, AdapterCompanion {
    private let delta: Parameter
    private let radii: [Float]
    private let learns: [Bool]
    let outputSize: Int

    init(width: Int, radii: [Float], learns: [Bool], _ engine: Engine) throws(PEFTError) {
        (self.radii, self.learns, outputSize) = (radii, learns, width)
        delta = Parameter(name: PromptEncoder.prefix + "delta_embedding.weight", value: try Tensor.zeros(engine, [radii.count, width], .f32, .adapters))
    }

    var parameters: [Parameter] { [delta] }
    func initialize(_ random: inout RandomStream) {}

    func callAsFunction(_ x: Variable, _ tape: Tape) throws(PEFTError) -> Variable {
        let engine = tape.engine
        // value: cut · δ; derivative: 1 where the token learns. So a variable part of the value where it learns, and a constant rest.
        let (cuts, free) = (cuts(delta.value), learns.map { $0 ? Float(1) : 0 })
        let moving = try tape.scaleRows(tape.variable(delta), Variable(try Tensor(engine, free, shape: [free.count])))
        let rest = try Tensor(engine, zip(cuts, free).map { $0 - $1 }, shape: [free.count])
        let fixed = try Tape(engine, .f32).scaleRows(Variable(delta.value), Variable(rest))
        return try tape.add(try tape.add(x, moving), fixed)
    }

    /// The factor of each row that makes it as long as it may be.
    private func cuts(_ delta: Tensor) -> [Float] {
        let width = outputSize
        return unsafe delta.withFloats { values in
            radii.indices.map { row in
                guard (row + 1) * width <= values.count else { return 1 }
                var sum = 0.0
                for column in 0..<width { sum += unsafe Double(values[row * width + column]) * Double(values[row * width + column]) }
                let norm = Float(sum.squareRoot())
                return norm > 0 ? radii[row] / max(norm, radii[row]) : 1
            }
        }
    }

    func willStep(_ gradients: GradientStore) {
        let (factors, width) = (cuts(delta.value), outputSize)
        unsafe delta.value.withMutableFloats { values in
            for index in values.indices where index / width < factors.count { unsafe values[index] *= factors[index / width] }
        }
    }
}
