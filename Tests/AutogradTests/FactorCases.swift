import Autograd
import Platform
import Tensors

extension OperationCase {
    /// What adapters compute their factors with.
    static let factors: [OperationCase] = [
        OperationCase(name: "exponential", inputs: [([3, 4], .activation)]) { tape, x in try tape.exponential(x[0]) },
        OperationCase(name: "scaled bases", inputs: [([2, 3], .parameter), ([3, 5], .parameter)]) { tape, x in
            try tape.scaledBases(try tensor(tape.engine, [2, 5], seed: 4), x[0], x[1])
        },
        OperationCase(name: "mixtures of the bank", inputs: [([2, 5], .parameter), ([5, 4], .parameter)]) { tape, x in
            // Far enough apart that a step does not change which are the largest.
            let apart = try Tensor(tape.engine, [0, 4, -8, -4, 8, 4, 8, -4, 0, -8] as [Float], shape: [2, 5])
            return try tape.topMixture(try tape.scaled(try tape.add(x[0], Variable(apart)), by: 0.5), x[1], 2)
        },
    ]
}
