internal import Autograd
internal import Glibc
package import Models
package import Platform
internal import Tensors

/// Polytropon and, with several splits, multi-head routing (Ponti et al., arXiv:2202.13914; Caccia et al., arXiv:2211.03831): skills that
/// tasks mix, each part of the input and of the output in its own way,
///
///     p = σ(logits[task])  [splits, skills]    m = p / Σ_skills p    A = Σ_k m_k·A_k    B = Σ_k m_k·B_k    y += x·A·B / r
///
/// with A_k [in/splits, r] of the splits below each other and B_k [r, out/splits] beside each other. In training p is drawn around σ for
/// each sample (relaxed Bernoulli). A batch's task_ids, or a session's task_id, say the task.
package struct Poly: AdapterMethod {
    package static let peftType = "POLY"
    package static let layerKinds = ["Linear"]
    package static let defaults: JSONObject = [
        "exclude_modules": .null, "init_weights": .bool(true), "modules_to_save": .null, "n_skills": .integer(4), "n_splits": .integer(1),
        "n_tasks": .integer(1), "poly_type": .string("poly"), "r": .integer(8), "target_modules": .null,
    ]
    /// Tasks differ, weights are one.
    package static let isMergeable = false

    fileprivate let rank: Int
    fileprivate let tasks: Int
    fileprivate let skills: Int
    fileprivate let splits: Int
    fileprivate let isNeutral: Bool

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        rank = try configuration.positive("r")
        tasks = try configuration.positive("n_tasks")
        skills = try configuration.positive("n_skills")
        splits = try configuration.positive("n_splits")
        _ = try configuration.choice("poly_type", ["poly"])
        isNeutral = try configuration.flag("init_weights")
    }

    package func module(for layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule {
        let linear = try Poly.linear(layer)
        guard linear.inputSize % splits == 0, linear.outputSize % splits == 0 else {
            throw PEFTError(.argument, "n_splits is \(splits); it must divide the sizes of '\(layer.name)', \(linear.inputSize) and \(linear.outputSize)")
        }
        try AdapterConfiguration.checkRank(rank, layer)
        return try PolyLinear(linear, key: key, self, model)
    }

    package func act(on adaptation: inout Adaptation, scale: Float) throws(PEFTError) {
        adaptation.taskCount = min(adaptation.taskCount ?? tasks, tasks)
    }
}

private final class PolyLinear: AdapterModule {
    let linear: Linear
    let a: Parameter
    let b: Parameter
    let logits: Parameter
    let settings: Poly

    init(_ linear: Linear, key: String, _ settings: Poly, _ model: Model) throws(PEFTError) {
        (self.linear, self.settings) = (linear, settings)
        let (splits, skills, rank) = (settings.splits, settings.skills, settings.rank)
        let matrices = try checkedProduct(splits, skills, of: "skills")
        a = try model.parameter(key + ".poly_lora_A", [splits, skills, linear.inputSize / splits, rank])
        b = try model.parameter(key + ".poly_lora_B", [splits, skills, rank, linear.outputSize / splits])
        logits = try model.parameter(key + ".poly_router.module_logits", [settings.tasks, matrices])
    }

    var layer: any Layer { linear }
    var parameters: [Parameter] { [a, b, logits] }

    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        var random = random
        a.value.fillUniform(fanIn: linear.inputSize / settings.splits, &random)
        if settings.isNeutral { b.value.clear() } else { b.value.fillUniform(fanIn: settings.rank, &random) }
        logits.value.fill { (2 * random.uniform() - 1) * 1e-3 }
        return [:]
    }

    func hook(scale: Float, beside replacements: [String: Parameter]) -> any LayerHook { PolyHook(self, task: nil, scale: scale) }

    func fold(into weights: inout FoldedWeights, scale: Float) throws(PEFTError) {
        throw PEFTError(.unsupported, "'\(linear.name)': POLY does something else for each task, so no weights can hold it")
    }

    /// What each skill's share is, `[splits, skills]`.
    func shares(_ task: Int, _ tape: Tape) throws(PEFTError) -> Variable {
        var scores = try tape.rows(tape.variable(logits), task..<task + 1)
        if tape.isTraining {
            let noise = (0..<scores.value.count).map { _ in
                let u = min(max(tape.random.uniform(), 1e-7), 1 - 1e-7)
                return Float(log(Double(u)) - log1p(-Double(u)))
            }
            scores = try tape.add(scores, Variable(try Tensor(tape.engine, noise, shape: scores.shape)))
        }
        // p/Σp is the softmax of ln p.
        return try tape.softmax(try tape.reshaped(try tape.logSigmoid(scores), [settings.splits, settings.skills]))
    }
}

private final class PolyHook: LayerHook {
    private let module: PolyLinear
    private let task: Int?
    private let scale: Float

    init(_ module: PolyLinear, task: Int?, scale: Float) { (self.module, self.task, self.scale) = (module, task, scale) }

    func of(task: Int) -> any LayerHook { PolyHook(module, task: task, scale: scale) }

    func add(to y: consuming Variable, input x: Variable, of layer: Linear, _ tape: Tape) throws(PEFTError) -> Variable {
        guard let task else { throw PEFTError(.argument, "'\(layer.name)': POLY asks for the task of each sample ('task_ids')") }
        let settings = module.settings
        let shares = try module.shares(task, tape)
        /// The mixture of each split's skills.
        func mixtures(_ parameter: Parameter) throws(PEFTError) -> [Variable] {
            let all = try tape.matrix(parameter, rows: settings.splits * settings.skills)
            let shape = Array(parameter.value.shape.suffix(2))
            return try (0..<settings.splits).map { (split) throws(PEFTError) in
                let own = try tape.rows(all, split * settings.skills..<(split + 1) * settings.skills)
                return try tape.reshaped(try tape.linear(try tape.rows(shares, split..<split + 1), own, transposed: true), shape)
            }
        }
        let a = try tape.concatenateRows(try mixtures(module.a))
        let b = try tape.concatenateColumns(try mixtures(module.b))
        return try tape.addProduct(to: y, input: x, [.transposed(a), .transposed(b)], scale: scale / Float(settings.rank))
    }
}
