import Platform
import Tensors
import Testing

@testable import Models
@testable import Training

struct TrainingRunTests {
    @Test func aRunGoesThroughItsEpochsAndReports() throws {
        let small = try SmallTraining { ($0.epochs, $0.accumulationSteps, $0.schedule) = (2, 3, .cosine) }
        let data = try SmallTraining.dataSet()
        var reports: [TrainingProgress] = []
        let before = try small.trainer.evaluate(data).loss
        try small.trainer.run(try BatchLoader(data), evaluation: data) { progress in
            reports.append(progress)
            return true
        }
        // 20 batches an epoch, 2 epochs, 3 a step.
        #expect(reports.map(\.step) == Array(1...14) && reports.allSatisfy { $0.totalSteps == 14 })
        let last = try #require(reports.last)
        #expect(last.epoch >= 1 && last.tokensPerSecond > 0 && last.secondsLeft == 0 && last.memoryPeak >= last.memory && last.memory > 0)
        #expect(reports[0].evaluationLoss.isNaN && last.evaluationLoss < before)
        #expect(abs(last.evaluationLoss - (try small.trainer.evaluate(data).loss)) < 1e-12)
        #expect(last.learningRate < reports[0].learningRate)
        #expect(try small.trainer.advance(try BatchLoader(data), seconds: 1).isOver)
    }

    @Test func cancellingLeavesACompleteStepAndCanGoOn() throws {
        let data = try SmallTraining.dataSet()
        let whole = try SmallTraining(dropout: 0.1) { $0.maxSteps = 12 }
        try whole.trainer.run(try BatchLoader(data))
        let halves = try SmallTraining(dropout: 0.1) { $0.maxSteps = 12 }
        let loader = try BatchLoader(data)
        #expect(failure { try halves.trainer.run(loader) { $0.step < 5 } }?.kind == .cancelled)
        #expect(halves.trainer.step == 5)
        halves.trainer.cancel()
        #expect(failure { try halves.trainer.run(loader) }?.kind == .cancelled)
        #expect(halves.trainer.step == 5)
        try halves.trainer.run(loader)
        #expect(try halves.values == whole.values)
    }

    @Test func advancingInSlicesIsTheSameRun() throws {
        let data = try SmallTraining.dataSet { $0.packing = true }
        let whole = try SmallTraining { $0.maxSteps = 9 }
        try whole.trainer.run(try BatchLoader(data))
        let sliced = try SmallTraining { $0.maxSteps = 9 }
        let loader = try BatchLoader(data)
        var calls = 0
        while !(try sliced.trainer.advance(loader, seconds: 0).isOver) { calls += 1 }
        #expect(calls == 8 || calls == 9)
        #expect(try sliced.values == whole.values)
    }

    @Test func aFailedStepKeepsItsBatch() throws {
        let data = try SmallTraining.dataSet()
        let small = try SmallTraining { $0.maxSteps = 3 }
        let loader = try BatchLoader(data)
        _ = try small.trainer.advance(loader, seconds: 0)
        let position = loader.position
        small.network.weight.withMutableFloats { $0[0] = .infinity }
        #expect(failure { try small.trainer.run(loader) }?.kind == .numeric)
        #expect(loader.position == position && small.trainer.step == 1)
    }

    @Test func earlyStopKeepsTheBestAdapter() throws {
        // A rate that is far too high: the loss gets worse after a few steps.
        let data = try SmallTraining.dataSet()
        let small = try SmallTraining {
            ($0.maxSteps, $0.evaluationSteps, $0.patience) = (200, 1, 3)
            ($0.optimizer.learningRate, $0.maximumGradientNorm) = (0.5, nil)
        }
        var losses: [Double] = []
        try small.trainer.run(try BatchLoader(data), evaluation: data) { progress in
            losses.append(progress.evaluationLoss)
            return true
        }
        #expect(small.trainer.step < 200)
        let best = try #require(losses.min())
        #expect(try small.trainer.evaluate(data).loss == best)
        #expect(losses.suffix(3).dropLast().allSatisfy { $0 >= best })
    }

    // MARK: Checkpoints

    /// Everything that must be equal after a resumed run.
    private func expectSame(_ a: SmallTraining, _ b: SmallTraining) throws {
        #expect(try a.values == b.values)
        #expect(a.trainer.random == b.trainer.random && a.trainer.step == b.trainer.step)
        for (one, two) in zip(a.trainer.optimizer.moments, b.trainer.optimizer.moments) {
            for (x, y) in zip(one.tensors, two.tensors) { #expect(try x.floats(a.model.engine) == y.floats(b.model.engine)) }
        }
        #expect(a.trainer.runState.smoothedLoss == b.trainer.runState.smoothedLoss)
    }

    @Test(arguments: [(OptimizerOptions.Rule.adamw, false), (.sgd, true), (.adamw8bit, false), (.adafactor, false), (.lion, true)]) func twentyStepsAreTenAndTenMore(_ rule: OptimizerOptions.Rule, _ packing: Bool) throws {
        func training() throws -> SmallTraining {
            try SmallTraining(dropout: 0.2) {
                ($0.optimizer.rule, $0.schedule, $0.warmupSteps, $0.maxSteps, $0.seed) = (rule, .cosine, 3, 20, 9)
                if rule == .sgd { $0.optimizer.momentum = 0.9 }
            }
        }
        let folder = TemporaryFolder()
        let path = folder.path + "/checkpoint.h5"
        let whole = try training()
        try whole.trainer.run(try BatchLoader(try SmallTraining.dataSet { ($0.packing, $0.seed) = (packing, 4) }))

        let first = try training()
        let loader = try BatchLoader(try SmallTraining.dataSet { ($0.packing, $0.seed) = (packing, 4) })
        _ = failure { try first.trainer.run(loader) { $0.step < 10 } }
        try first.trainer.save(to: path, loader)

        let second = try training()
        let other = try BatchLoader(try SmallTraining.dataSet { ($0.packing, $0.seed) = (packing, 4) })
        try second.trainer.resume(from: path, other)
        #expect(second.trainer.step == 10 && other.position == loader.position)
        try second.trainer.run(other)
        try expectSame(second, whole)
    }

    @Test func aCheckpointInsideAnAccumulationGoesOn() throws {
        let folder = TemporaryFolder()
        let path = folder.path + "/checkpoint.h5"
        let (whole, first, second) = (try SmallTraining { $0.accumulationSteps = 3 }, try SmallTraining { $0.accumulationSteps = 3 }, try SmallTraining { $0.accumulationSteps = 3 })
        for seed in 0..<6 { _ = try whole.trainer.step(SmallTraining.batch(seed: UInt64(seed))) }
        for seed in 0..<4 { _ = try first.trainer.step(SmallTraining.batch(seed: UInt64(seed))) }
        try first.trainer.save(to: path)
        try second.trainer.resume(from: path)
        for seed in 4..<6 { _ = try second.trainer.step(SmallTraining.batch(seed: UInt64(seed))) }
        try expectSame(second, whole)
    }

    @Test func resumingElsewhereIsNamed() throws {
        let folder = TemporaryFolder()
        let path = folder.path + "/checkpoint.h5"
        let data = try SmallTraining.dataSet()
        let small = try SmallTraining { $0.maxSteps = 5 }
        let loader = try BatchLoader(data)
        _ = try small.trainer.advance(loader, seconds: 0)
        try small.trainer.save(to: path, loader)
        func message(_ other: SmallTraining, _ loader: BatchLoader? = nil) throws -> String {
            let before = try other.values
            let error = try #require(failure { try other.trainer.resume(from: path, loader) })
            #expect(error.kind == .mismatch)
            #expect(try other.values == before)
            return error.message
        }
        #expect(try message(SmallTraining(seed: 12) { $0.maxSteps = 5 }).firstRange(ofText: "base model") != nil)
        #expect(try message(SmallTraining { ($0.maxSteps, $0.optimizer.learningRate) = (5, 0.02) }).firstRange(ofText: "lr is 0.02 here and 0.01") != nil)
        #expect(try message(SmallTraining { ($0.maxSteps, $0.schedule) = (5, .linear) }).firstRange(ofText: "max_steps") != nil)
        #expect(try message(SmallTraining(rank: 4) { $0.maxSteps = 5 }).firstRange(ofText: "adapter's r is 4 here and 2") != nil)
        let longer = try BatchLoader(try SmallTraining.dataSet { $0.maxLength = 32 })
        #expect(try message(SmallTraining { $0.maxSteps = 5 }, longer).firstRange(ofText: "data set") != nil)
        let other = try SmallTraining { $0.maxSteps = 5 }
        #expect(failure { try other.trainer.resume(from: folder.path + "/none.h5") }?.kind == .notFound)
        #expect(failure { try small.trainer.save(to: "/nonexistent/x.h5") } != nil)
    }

    @Test func earlyStopSurvivesAResume() throws {
        func training() throws -> SmallTraining {
            try SmallTraining { ($0.maxSteps, $0.evaluationSteps, $0.patience, $0.optimizer.learningRate, $0.maximumGradientNorm) = (60, 1, 4, 0.4, nil) }
        }
        let folder = TemporaryFolder()
        let path = folder.path + "/checkpoint.h5"
        let data = try SmallTraining.dataSet()
        let whole = try training()
        try whole.trainer.run(try BatchLoader(data), evaluation: data)
        let first = try training()
        let loader = try BatchLoader(data)
        let stop = max(1, whole.trainer.step - 2)
        _ = failure { try first.trainer.run(loader, evaluation: data) { $0.step < stop } }
        try first.trainer.save(to: path, loader)
        let second = try training()
        try second.trainer.resume(from: path, loader)
        try second.trainer.run(loader, evaluation: data)
        try expectSame(second, whole)
    }
}
