package import Platform

// Adapters that do something else for each task a sample can be of (Poly): before a pass, their hooks are told which.

extension Adaptation {
    /// What it does to samples of a task.
    /// - Throws: `.argument` for a task there is not, or none where adapters ask.
    package func of(task: Int?) throws(PEFTError) -> Adaptation {
        guard let taskCount else { return self }
        guard let task else { throw PEFTError(.argument, "an adapter has \(taskCount) tasks: 'task_ids' (task_id of a session) says which one each sample is of") }
        guard 0..<taskCount ~= task else { throw PEFTError(.argument, "task_ids has \(task); the adapter's tasks are 0 to \(taskCount - 1)") }
        guard runs == nil else { throw PEFTError(.unsupported, "an adapter with tasks beside layer_replication") }
        var result = self
        for index in result.layers.indices { result.layers[index].hooks = result.layers[index].hooks.map { $0.of(task: task) } }
        return result
    }
}

extension Routing {
    /// The same for samples whose tasks are known.
    /// - Parameters:
    ///   - tasks: of each sample; nil: not given.
    ///   - isEach: samples of one task are not one group: each draws for itself what is random.
    package func byTask(_ tasks: [Int32]?, batch: Int, isEach: Bool = false) throws(PEFTError) -> Routing {
        let adaptations: [Adaptation]
        switch self {
        case .all(let adaptation):
            guard adaptation.taskCount != nil else { return self }
            if !isEach || batch == 1, let first = tasks?.first, tasks?.allSatisfy({ $0 == first }) ?? false { return .all(try adaptation.of(task: Int(first))) }
            adaptations = Array(repeating: adaptation, count: batch)
        case .samples(let groups):
            guard groups.contains(where: { $0.adaptation.taskCount != nil }) else { return self }
            adaptations = self.adaptations(batch)
        }
        var groups: [(range: Range<Int>, adaptation: Adaptation)] = []
        for (sample, adaptation) in adaptations.enumerated() {
            groups.append((sample..<sample + 1, try adaptation.of(task: tasks.flatMap { sample < $0.count ? Int($0[sample]) : nil })))
        }
        return .samples(groups)
    }
}
