import Autograd
import Platform
import Tensors
import Testing

@testable import Models
@testable import Training

struct TrainerTests {
    @Test func gradientsAreThoseOfTheLoss() throws {
        let small = try SmallTraining()
        let batch = SmallTraining.batch()
        let (loss, store) = try small.model.gradients(batch, .all(small.model.unadapted))
        #expect(abs(loss - (try #require(try small.model.forward(batch, .all(small.model.unadapted)).loss))) < 1e-5)
        let gradient = try #require(store.gradient(of: small.network.b)).floats(small.model.engine)
        for index in [0, 7, 20] {
            func at(_ shift: Float) throws -> Double {
                small.network.b.value.withMutableFloats { $0[index] += shift }
                defer { small.network.b.value.withMutableFloats { $0[index] -= shift } }
                return try small.model.forward(batch, .all(small.model.unadapted)).loss ?? .nan
            }
            let difference = try (at(1e-2) - at(-1e-2)) / 2e-2
            #expect(abs(Double(gradient[index]) - difference) < 2e-3 * max(1, abs(difference)), "\(gradient[index]) \(difference)")
        }
    }

    @Test func trainingLowersTheLoss() throws {
        let small = try SmallTraining { $0.maximumGradientNorm = nil }
        let batch = SmallTraining.batch()
        let first = try small.trainer.step(batch)
        #expect(first.updated && first.step == 1 && first.tokens == 40 && first.gradientNorm > 0 && first.learningRate == 0.01)
        var last = first
        for _ in 0..<40 { last = try small.trainer.step(batch) }
        #expect(last.loss < first.loss - 0.3, "\(first.loss) → \(last.loss)")
    }

    @Test func accumulatedMicroBatchesAreOneUpdate() throws {
        // Two micro-batches of the same number of labels: the mean of their gradients is the gradient of both together.
        let (one, two) = (SmallTraining.batch(rows: 1, seed: 5), SmallTraining.batch(rows: 1, seed: 6))
        let both = Batch(rows: 2, length: 20, ids: one.ids + two.ids, labels: one.labels + two.labels)
        let whole = try SmallTraining()
        let parts = try SmallTraining { $0.accumulationSteps = 2 }
        let together = try whole.trainer.step(both)
        let first = try parts.trainer.step(one)
        #expect(!first.updated && first.step == 0 && first.gradientNorm == 0)
        #expect(try parts.values == SmallTraining().values)
        let second = try parts.trainer.step(two)
        #expect(second.updated && abs((first.loss + second.loss) / 2 - together.loss) < 1e-6)
        #expect(abs(second.gradientNorm - together.gradientNorm) < 1e-5 * together.gradientNorm)
        // Adam divides by the gradient's own size: compare where it is not near zero, by the update.
        for (a, b) in zip(try whole.values, try parts.values) { #expect(worst(a, b) < 1e-3) }
    }

    @Test(arguments: [false, true]) func threadsDoNotChangeABit(_ recompute: Bool) throws {
        var results: [[[Float]]] = []
        for threads in [1, 2, 3] {
            let small = try SmallTraining(threads: threads, dropout: 0.2) { $0.recomputation = recompute ? .on : .off }
            for seed in UInt64(0)..<3 { _ = try small.trainer.step(SmallTraining.batch(rows: 4, length: 60, seed: seed)) }
            results.append(try small.values)
        }
        #expect(results[0] == results[1] && results[0] == results[2])
    }

    @Test func recomputationChangesNothing() throws {
        let (kept, recomputed) = (try SmallTraining(dropout: 0.3) { $0.recomputation = .off }, try SmallTraining(dropout: 0.3) { $0.recomputation = .on })
        for seed in UInt64(0)..<3 {
            let batch = SmallTraining.batch(seed: seed)
            #expect(try kept.trainer.step(batch).loss == recomputed.trainer.step(batch).loss)
        }
        #expect(try kept.values == recomputed.values)
    }

    @Test func dropoutDrawsFromItsOwnStreamAndIsOffInEvaluation() throws {
        let (a, b) = (try SmallTraining(dropout: 0.5), try SmallTraining(dropout: 0.5) { $0.seed = 1 })
        let batch = SmallTraining.batch()
        let plain = try a.trainer.evaluate(batch)
        #expect(try b.trainer.evaluate(batch) == plain)
        let (first, other) = (try a.trainer.step(batch).loss, try b.trainer.step(batch).loss)
        #expect(first != other && first != plain.sum / Double(plain.count))
    }

    @Test func packedRowsHaveTheLossesOfTheirSamples() throws {
        let small = try SmallTraining()
        let plain = try SmallTraining.dataSet { ($0.batchSize, $0.shuffle) = (1, false) }
        let padded = try SmallTraining.dataSet { ($0.batchSize, $0.shuffle) = (7, false) }
        let packed = try SmallTraining.dataSet { ($0.batchSize, $0.shuffle, $0.packing, $0.maxLength) = (2, false, true, 60) }
        #expect(try packed.countBatches() < plain.countBatches() / 3)
        let (a, b, c) = (try small.trainer.evaluate(plain), try small.trainer.evaluate(padded), try small.trainer.evaluate(packed))
        #expect(a.tokens == b.tokens && a.tokens == c.tokens && a.tokens > 400)
        #expect(abs(a.loss - b.loss) < 1e-6 && abs(a.loss - c.loss) < 1e-6, "\(a.loss) \(b.loss) \(c.loss)")
    }

    @Test func packedGradientsAreThoseOfTheSamples() throws {
        let small = try SmallTraining()
        let samples = [Sample([1, 40, 41, 42]), Sample([1, 50, 51, 52])]
        let (packed, apart) = (Batch(packing: [samples], paddingID: 0), Batch(samples, paddingID: 0))
        let one = try #require(try small.model.gradients(packed, .all(small.model.unadapted)).gradients.gradient(of: small.network.a))
        let two = try #require(try small.model.gradients(apart, .all(small.model.unadapted)).gradients.gradient(of: small.network.a))
        #expect(worst(try one.floats(small.model.engine), try two.floats(small.model.engine)) < 1e-5)
    }

    // MARK: What goes wrong

    @Test func aLossThatIsNotFiniteChangesNothing() throws {
        let small = try SmallTraining(dropout: 0.2) { $0.accumulationSteps = 2 }
        _ = try small.trainer.step(SmallTraining.batch(seed: 1))
        _ = try small.trainer.step(SmallTraining.batch(seed: 2))
        let (before, random) = (try small.values, small.trainer.random)
        _ = try small.trainer.step(SmallTraining.batch(seed: 3))
        small.network.weight.withMutableFloats { $0[0] = .nan }
        let error = failure { _ = try small.trainer.step(SmallTraining.batch(seed: 4)) }
        #expect(error?.kind == .numeric, "\(String(describing: error))")
        #expect(try small.values == before && small.trainer.step == 1 && small.trainer.microStep == 0)
        #expect(small.trainer.random != random)  // that of the micro-batch before
        small.network.weight.withMutableFloats { $0[0] = 0.1 }
        #expect(try small.trainer.step(SmallTraining.batch(seed: 4)).loss.isFinite)
    }

    @Test func infiniteGradientsChangeNothing() throws {
        let small = try SmallTraining()
        small.network.a.value.withMutableFloats { $0[0] = 1e30 }
        small.network.b.value.withMutableFloats { $0[0] = 1e30 }
        let before = try small.values
        #expect(failure { _ = try small.trainer.step(SmallTraining.batch()) }?.kind == .numeric)
        #expect(try small.values == before)
    }

    @Test func badBatchesAreNamed() throws {
        let small = try SmallTraining()
        var wrongLabel = SmallTraining.batch()
        wrongLabel.labels[3] = 300
        var wrongID = SmallTraining.batch()
        wrongID.ids[3] = -1
        var nothing = SmallTraining.batch()
        nothing.labels = Array(repeating: -100, count: 40)
        var short = SmallTraining.batch()
        short.ids.removeLast()
        var unlabelled = SmallTraining.batch()
        unlabelled.labels = []
        let before = try small.values
        for batch in [wrongLabel, wrongID, nothing, short, unlabelled, Batch(rows: 0, length: 0, ids: [], labels: []), Batch(rows: 1, length: .max, ids: [1], labels: [1])] {
            let error = failure { _ = try small.trainer.step(batch) }
            #expect(error?.kind == .argument || error?.kind == .format, "\(String(describing: error))")
        }
        #expect(try small.values == before)
        #expect(try small.trainer.step(SmallTraining.batch()).updated)
    }

    @Test func aScheduleNeedsAnEnd() throws {
        let small = try SmallTraining { $0.schedule = .linear }
        #expect(failure { _ = try small.trainer.step(SmallTraining.batch()) }?.message.firstRange(ofText: "max_steps") != nil)
        let limited = try SmallTraining { ($0.schedule, $0.maxSteps) = (.linear, 4) }
        let rates = try (0..<5).map { _ in try limited.trainer.step(SmallTraining.batch()).learningRate }
        #expect(zip(rates, [0.01, 0.0075, 0.005, 0.0025, 0]).allSatisfy { abs($0 - $1) < 1e-12 })
    }

    @Test func nothingToTrainIsAnError() throws {
        let small = try SmallTraining()
        small.network.a.isTrainable = false
        small.network.b.isTrainable = false
        #expect(failure { _ = try Trainer(small.model, small.trainee, TrainerOptions()) }?.kind == .argument)
    }

    // MARK: Memory

    /// The plan is exact: a step runs with a budget of just the planned bytes, and not with the next smaller block less.
    @Test(arguments: [TrainerOptions.Recomputation.off, .on]) func thePlanIsWhatAStepTakes(_ recomputation: TrainerOptions.Recomputation) throws {
        func training(_ limit: Int) throws -> SmallTraining { try SmallTraining(threads: 2, limit: limit, dropout: 0.1) { $0.recomputation = recomputation } }
        let free = try training(.max)
        let plan = try free.trainer.plan(rows: 3, length: 50)
        let before = free.model.engine.budget.statistics.live
        free.model.engine.budget.resetPeak()
        _ = try free.trainer.step(SmallTraining.batch(rows: 3, length: 50))
        let peaks = free.model.engine.budget.statistics.peakByCategory
        for (category, bytes) in plan.byCategory { #expect(bytes == peaks[category.rawValue], "\(category.name)") }
        #expect(plan.total > before)

        let exact = try training(plan.total)
        let batch = SmallTraining.batch(rows: 3, length: 50)
        #expect(try exact.trainer.step(batch).updated)
        #expect(try exact.trainer.step(batch).updated)
        let tight = try training(plan.total - 1)
        let error = try #require(failure { _ = try tight.trainer.step(batch) })
        #expect(error.kind == .memory && error.detail == 1, "\(error)")
        #expect(try tight.values == training(.max).values)
        // The plan does not lie on the safe side either: without it the second step itself runs out.
        let store = GradientStore(tight.model.engine)
        let ran = failure {
            for _ in 0..<2 {
                let tape = Tape(tight.model.engine, .f32, gradients: store, isTraining: true)
                _ = try Trainer.accumulate(tight.model, tight.trainee, batch, tape, accumulationSteps: 1, recomputation == .on ? 1 : 0)
            }
        }
        #expect(ran?.kind == .memory)
    }

    @Test func recomputationIsSwitchedOnByTheBudget() throws {
        let free = try SmallTraining { $0.recomputation = .off }
        let kept = try free.trainer.plan(rows: 4, length: 60).total
        let recomputed = try SmallTraining { $0.recomputation = .on }.trainer.plan(rows: 4, length: 60).total
        #expect(recomputed < kept)
        let batch = SmallTraining.batch(rows: 4, length: 60)
        let auto = try SmallTraining(limit: recomputed)
        #expect(try auto.trainer.plan(rows: 4, length: 60).recomputedBlocks == 1)
        #expect(try auto.trainer.step(batch).loss == free.trainer.step(batch).loss)
        #expect(try auto.values == free.values)
        let small = try SmallTraining(limit: recomputed - 1)
        let live = small.model.engine.budget.statistics.live
        let error = try #require(failure { _ = try small.trainer.step(batch) })
        #expect(error.kind == .memory && error.message.firstRange(ofText: "\(recomputed)") != nil, "\(error)")
        #expect(small.model.engine.budget.statistics.live == live)
    }
}
