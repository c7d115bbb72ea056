internal import Autograd
internal import Platform
internal import Synchronization
package import Tensors

/// What is copied for products of few rows, for as long as nothing is written into the model: every token reads all of it.
package struct DecodingCopies {
    package let engine: Engine
    package let compute: Compute
    /// Layers' whole weights too, where adapters change all of them.
    let includesWeights: Bool

    init(_ engine: Engine, _ compute: Compute, includesWeights: Bool = false) {
        (self.engine, self.compute, self.includesWeights) = (engine, compute, includesWeights)
    }

    /// Of factors of products of low rank: bf16 is half as much to read.
    package var factors: DType { compute == .f32 ? .f32 : .bf16 }
}

/// An adaptation's changes, put together anew after something was written into the model or its adapters.
final class DecodingChanges: Sendable {
    private let known: Kept<Compute, FewRowChanges>
    /// With weights, for as long as somebody has them (`FoldedChanges`).
    fileprivate let folded = Mutex<(generation: UInt64, compute: Compute, changes: Weak)?>(nil)
    fileprivate struct Weak { weak var changes: FewRowChanges? }

    init(_ model: Model) { known = Kept(model) }

    /// The caller holds the model's lock.
    func changes(of adaptation: Adaptation, _ tape: Tape) throws(PEFTError) -> FewRowChanges {
        let (engine, compute) = (tape.engine, tape.precision.compute)
        guard !engine.isPlanning else { return try FewRowChanges(try adaptation.fewRowChanges(nil)) }
        return try known(compute, engine) { () throws(PEFTError) in
            do throws(PEFTError) {
                if let room = engine.budget.room {  // Half of it is the computation's own.
                    _ = try adaptation.fewRowChanges(DecodingCopies(engine.planner(limit: room / 2), compute))
                }
                return try FewRowChanges(try adaptation.fewRowChanges(DecodingCopies(engine, compute)))
            } catch {
                guard error.kind == .memory else { throw error }
                return try FewRowChanges(try adaptation.fewRowChanges(nil))
            }
        }
    }
}

/// The same with the weights of layers of which adapters change everything. They are as large as the model: they live as long as a session that asked for them, and
/// sessions with the same adapters share them.
package final class FoldedChanges: Sendable {
    private struct Key: Equatable {
        let decoding: DecodingChanges, compute: Compute
        static func == (a: Key, b: Key) -> Bool { a.decoding === b.decoding && a.compute == b.compute }
    }
    private let model: Model
    private let own: Kept<Key, FewRowChanges>

    package init(_ model: Model) {
        self.model = model
        own = Kept(model)
    }

    /// The caller holds the model's lock.
    /// - Throws: `.memory`
    func changes(of adaptation: Adaptation, _ decoding: DecodingChanges, _ tape: Tape) throws(PEFTError) -> FewRowChanges {
        let (engine, compute, generation) = (tape.engine, tape.precision.compute, model.lock.generation)
        return try own(Key(decoding: decoding, compute: compute), engine) { () throws(PEFTError) in
            let shared = decoding.folded.withLock { $0 }
            if let shared, shared.generation == generation, shared.compute == compute, let changes = shared.changes.changes { return changes }
            let made = try FewRowChanges(try adaptation.fewRowChanges(DecodingCopies(engine, compute, includesWeights: true)))
            decoding.folded.withLock { $0 = (generation, compute, DecodingChanges.Weak(changes: made)) }
            return made
        }
    }
}
