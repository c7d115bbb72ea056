package import Autograd
package import Models
package import Platform
package import Tensors

/// Hosts that compute forward and backward themselves: gradients gather in the trainer, and an update uses them up.
extension Trainer {
    /// For one run of a layer; give it to `keep(_:)` afterwards, so that the next has dropout masks of its own.
    package func tape() -> Tape { Tape(model.engine, precision, gradients: gradients, isTraining: options.usesDropout, random: random) }

    package func keep(_ tape: Tape) { random = tape.random }

    package func adaptation() throws(PEFTError) -> Adaptation { try trainee.adaptation() }

    /// - Throws: `.numeric` for gradients that are not finite, which are dropped.
    package func update() throws(PEFTError) -> StepResult {
        var result = StepResult()
        do throws(PEFTError) { try update(try schedule(), &result) } catch {
            gradients.clear()
            throw error
        }
        result.step = step
        return result
    }

    /// By saved key; 0 where none arrived.
    package func gathered() throws(PEFTError) -> [(key: String, gradient: Tensor)] {
        var all: [(key: String, gradient: Tensor)] = []
        for (key, parameter) in trainee.entries where parameter.isTrainable {
            let copy = try Tensor(model.engine, parameter.value.shape, .f32, .scratch)
            model.engine.axpby(1, try gradients.buffer(for: parameter), 0, into: copy)
            all.append((key, copy))
        }
        return all
    }

    package func clearGradients() { gradients.clear() }
}
