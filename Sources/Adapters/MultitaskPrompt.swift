internal import Autograd
internal import Checkpoints
package import Models
package import Platform
internal import Tensors

/// Multitask prompt tuning (Wang et al., arXiv:2303.02861): one prompt for all tasks, which each multiplies by a matrix of low rank of
/// its own, `P ⊙ (C_t·R_t)`. Learned over several source tasks, it is the start for a target task.
package struct MultitaskPrompt: PromptMethod {
    package static let peftType = "MULTITASK_PROMPT_TUNING"
    package static let defaults: JSONObject = {
        var keys = PromptTuning.defaults
        keys["prompt_token_ids"] = nil
        keys["num_ranks"] = .integer(1)
        keys["num_tasks"] = .integer(1)
        keys["prompt_tuning_init_state_dict_path"] = .null
        keys["prompt_tuning_init_task"] = .integer(0)
        return keys
    }()

    private static let fromSource = ["AVERAGE_SOURCE_TASKS", "EXACT_SOURCE_TASK", "ONLY_SOURCE_SHARED"]

    package let encoder: PromptEncoder

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        let settings = try PromptSettings(&configuration, model)
        try settings.checkWidth()
        let (rows, tasks, ranks) = (try settings.rows(), try configuration.positive("num_tasks"), try configuration.positive("num_ranks"))
        let factors = try TaskFactors(tasks: tasks, rows: rows, ranks: ranks, width: settings.width, model.engine)
        var start = PromptStart.zeros
        if isNew {
            start = try PromptTuning.start(configuration, settings.embedding, choices: ["RANDOM", "TEXT"] + MultitaskPrompt.fromSource)
            let name = try configuration.values.text("prompt_tuning_init") ?? ""
            if MultitaskPrompt.fromSource.contains(name) {
                start = .values(try MultitaskPrompt.source(name, configuration, factors, [rows, settings.width], model.engine))
            }
        }
        encoder = try PromptEncoder(
            MultitaskPrompt.peftType, count: settings.count, rows: rows, width: settings.width, factors: factors, start: start, isNew: isNew, model)
    }

    /// The prompt of a trained source, whose factors become those to start with.
    private static func source(_ start: String, _ configuration: AdapterConfiguration, _ factors: TaskFactors, _ shape: [Int], _ engine: Engine) throws(PEFTError) -> Tensor {
        guard let path = try configuration.values.text("prompt_tuning_init_state_dict_path") else {
            throw PEFTError(.argument, "prompt_tuning_init \(start) needs prompt_tuning_init_state_dict_path, the adapter_model.safetensors (or folder) of the source")
        }
        let file = Files.isFile(path) ? path : Files.join(path, "adapter_model.safetensors")
        let source = try Safetensors.open(path: file, budget: engine.budget)
        func tensor(_ name: String) throws(PEFTError) -> Tensor {
            guard let found = source.all.first(where: { $0.name == name })?.tensor, found.dtype.isWeightFormat else {
                throw PEFTError(.mismatch, "\(file): there is no '\(name)' of numbers, which a multitask prompt has")
            }
            return try found.converted(to: .f32, engine, .adapters)
        }
        let prompt = try tensor(PromptEncoder.savedKey)
        guard prompt.shape == shape else { throw PEFTError(.mismatch, "\(file): the source's prompt has the shape \(prompt.shape), \(shape) is needed") }
        guard start != "ONLY_SOURCE_SHARED" else { return prompt }
        guard factors.taskCount == 1 else { throw PEFTError(.argument, "num_tasks is \(factors.taskCount); \(start) gives the start of one task") }
        let task = start == "EXACT_SOURCE_TASK" ? try configuration.integer("prompt_tuning_init_task") : nil
        try factors.take(columns: try tensor("prefix_task_cols"), rows: try tensor("prefix_task_rows"), task: task, file, engine)
        return prompt
    }
}

/// What each task multiplies the prompt by: `C` `[tasks, rows, ranks]` times `R` `[tasks, ranks, width]`.
final class TaskFactors: Sendable {
    let taskCount: Int
    private let columns: Parameter
    private let rows: Parameter

    init(tasks: Int, rows: Int, ranks: Int, width: Int, _ engine: Engine) throws(PEFTError) {
        taskCount = tasks
        _ = try checkedProduct(tasks, try checkedProduct(ranks, try checkedProduct(rows, width, of: "task factors"), of: "task factors"), of: "task factors")
        func parameter(_ name: String, _ shape: [Int]) throws(PEFTError) -> Parameter {
            Parameter(name: PromptEncoder.prefix + name, value: try Tensor.zeros(engine, shape, .f32, .adapters))
        }
        columns = try parameter("prefix_task_cols", [tasks, rows, ranks])
        self.rows = try parameter("prefix_task_rows", [tasks, ranks, width])
    }

    var parameters: [Parameter] { [columns, rows] }

    /// N(0, 0.02²), but for those a source gave.
    func initialize(_ random: inout RandomStream) {
        for parameter in parameters {
            let isGiven = unsafe parameter.value.withFloats { unsafe $0.contains { $0 != 0 } }
            guard !isGiven else { continue }
            unsafe parameter.value.withMutableFloats { values in
                for index in values.indices { unsafe values[index] = 0.02 * random.normal() }
            }
        }
    }

    /// One task's, or the mean of all.
    func take(columns: Tensor, rows: Tensor, task: Int?, _ origin: String, _ engine: Engine) throws(PEFTError) {
        for (parameter, source) in [(self.columns, columns), (self.rows, rows)] {
            let (shape, count) = (source.shape, source.shape.first ?? 0)
            guard shape.count == 3, count > 0, Array(shape.dropFirst()) == Array(parameter.value.shape.dropFirst()) else {
                throw PEFTError(.mismatch, "\(origin): the source's task factors have the shape \(shape), [tasks, \(parameter.value.shape[1]), \(parameter.value.shape[2])] is needed")
            }
            if let task, task < 0 || task >= count { throw PEFTError(.argument, "prompt_tuning_init_task is \(task); the source's tasks are 0 to \(count - 1)") }
            let all = try source.reshaped([count, source.count / count])
            let sum = try parameter.value.reshaped([1, source.count / count])
            for index in task.map({ $0...$0 }) ?? 0...count - 1 { engine.axpby(task == nil ? 1 / Float(count) : 1, try all.rows(index..<index + 1), 1, into: sum) }
        }
    }

    /// `[rows, width]`
    func callAsFunction(_ task: Int, _ tape: Tape) throws(PEFTError) -> Variable {
        func factor(_ parameter: Parameter) throws(PEFTError) -> Variable {
            let (n, m) = (parameter.value.shape[1], parameter.value.shape[2])
            return try tape.rows(try tape.reshaped(tape.variable(parameter), [taskCount * n, m]), task * n..<(task + 1) * n)
        }
        return try tape.linear(try factor(columns), try factor(rows), transposed: true)
    }
}
