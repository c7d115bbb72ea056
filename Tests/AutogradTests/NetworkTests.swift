import Autograd
import Platform
import Tensors
import Testing

@Suite struct NetworkTests {
    private func gradients(
        threads: Int, _ precision: Precision, batch: Int = 2, length: Int = 48, recompute: Bool = false, rowsPerChunk: Int = 16, passes: Int = 1
    ) throws -> (loss: Double, gradients: [[Float]]) {
        let engine = Engine(threads: threads)
        let network = try SmallNetwork(engine, length: length)
        let store = GradientStore(engine)
        var loss = 0.0
        for _ in 0..<passes {
            loss += try network.step(on: engine, precision, store: store, batch: batch, length: length, recompute: recompute, rowsPerChunk: rowsPerChunk)
        }
        return (loss, try network.gradients(store))
    }

    @Test("one, two and three threads: the same bits", arguments: [Precision.f32, .bf16])
    func threads(_ precision: Precision) throws {
        let one = try gradients(threads: 1, precision, length: 160)
        for threads in 2...3 {
            let more = try gradients(threads: threads, precision, length: 160)
            #expect(one.loss == more.loss && one.gradients == more.gradients)
        }
        #expect(one.gradients.allSatisfy { $0.contains { $0 != 0 } && $0.allSatisfy(\.isFinite) })
    }

    @Test("blocks computed again: the same bits, with dropout", arguments: [Precision.f32, .bf16])
    func recomputation(_ precision: Precision) throws {
        let (kept, again) = (try gradients(threads: 1, precision), try gradients(threads: 1, precision, recompute: true))
        #expect(kept.loss == again.loss && kept.gradients == again.gradients)
    }

    @Test("the loss in chunks is the loss at once")
    func chunks() throws {
        let (chunked, whole) = (try gradients(threads: 1, .f32, rowsPerChunk: 7), try gradients(threads: 1, .f32, rowsPerChunk: 1000))
        #expect(abs(chunked.loss - whole.loss) < 1e-4 * abs(whole.loss))
        for (a, b) in zip(chunked.gradients, whole.gradients) {
            let largest = b.map(abs).max() ?? 0
            #expect(zip(a, b).allSatisfy { abs($0 - $1) <= 1e-5 * largest + 1e-7 })
        }
    }

    @Test("gradients add up over passes until they are cleared")
    func accumulation() throws {
        let (one, two) = (try gradients(threads: 1, .f32), try gradients(threads: 1, .f32, passes: 2))
        for (a, b) in zip(one.gradients, two.gradients) {
            let largest = a.map(abs).max() ?? 0
            #expect(zip(a, b).allSatisfy { abs(2 * $0 - $1) <= 1e-5 * largest })
        }
        let engine = Engine(threads: 1)
        let network = try SmallNetwork(engine, length: 8)
        let store = GradientStore(engine)
        for _ in 0..<2 {
            store.clear()
            _ = try network.step(on: engine, .f32, store: store, batch: 1, length: 8)
        }
        let again = try network.gradients(store)
        #expect(try again == gradients(threads: 1, .f32, batch: 1, length: 8).gradients)
    }

    @Test("bf16 gradients point where f32's do")
    func bf16() throws {
        let (exact, rough) = (try gradients(threads: 1, .f32), try gradients(threads: 1, .bf16))
        #expect(abs(exact.loss - rough.loss) < 0.01 * abs(exact.loss))
        for (a, b) in zip(exact.gradients, rough.gradients) {
            func dot(_ x: [Float], _ y: [Float]) -> Double { zip(x, y).reduce(0) { $0 + Double($1.0) * Double($1.1) } }
            #expect(dot(a, b) > 0.98 * (dot(a, a) * dot(b, b)).squareRoot())
        }
    }

    @Test("a planned step has the real one's bytes", arguments: [false, true])
    func planning(recompute: Bool) throws {
        for (threads, precision) in [(1, Precision.f32), (2, .bf16)] {
            // The weights come from a budget of their own, so that the step starts from nothing in both.
            let weights = Engine(threads: threads)
            let network = try SmallNetwork(weights, length: 64)
            func statistics(_ engine: Engine) throws -> MemoryBudget.Statistics {
                let store = GradientStore(engine)
                for _ in 0..<2 {
                    _ = try network.step(on: engine, precision, store: store, batch: 2, length: 64, recompute: recompute)
                    store.clear()
                }
                return engine.budget.statistics
            }
            let planned = try statistics(Engine(threads: threads).planner())
            let real = try statistics(Engine(threads: threads))
            #expect(planned.peak == real.peak && planned.peakLive == real.peakLive && planned.peakByCategory == real.peakByCategory)
            #expect(planned.peakLive > 100_000)

            // The planned number is enough, to the byte; one byte less is not, and leaves nothing behind.
            _ = try statistics(Engine(threads: threads, budget: MemoryBudget(limit: planned.peakLive)))
            let small = Engine(threads: threads, budget: MemoryBudget(limit: planned.peakLive - 1))
            let error = #expect(throws: PEFTError.self) { try statistics(small) }
            #expect(error?.kind == .memory && (error?.detail ?? 0) > 0)
            #expect(small.budget.statistics.live == 0)
        }
    }

    @Test("whatever allocation fails: a memory error, nothing left behind, and the engine works on")
    func failures() throws {
        let network = try SmallNetwork(Engine(threads: 1), length: 32)
        func step(_ engine: Engine, length: Int) throws {
            _ = try network.step(on: engine, .bf16, store: GradientStore(engine), batch: 1, length: length, recompute: true)
        }
        func peak(length: Int) throws -> Int {
            let planner = Engine(threads: 1).planner()
            try step(planner, length: length)
            return planner.budget.statistics.peakLive
        }
        let (needed, neededByFew) = (try peak(length: 32), try peak(length: 4))
        for limit in stride(from: 0, to: needed, by: max(needed / 97, 1)) {
            let engine = Engine(threads: 1, budget: MemoryBudget(limit: limit))
            let error = #expect(throws: PEFTError.self) { try step(engine, length: 32) }
            #expect(error?.kind == .memory && engine.budget.statistics.live == 0, "limit \(limit) of \(needed)")
            if limit >= neededByFew { try step(engine, length: 4) }
        }
    }

    @Test("recomputing blocks takes less memory")
    func recomputationSaves() throws {
        func peak(recompute: Bool) throws -> Int {
            let engine = Engine(threads: 1)
            let network = try SmallNetwork(engine, length: 128)
            engine.budget.resetPeak()
            _ = try network.step(on: engine, .f32, store: GradientStore(engine), batch: 2, length: 128, recompute: recompute)
            return engine.budget.statistics.peakByCategory[MemoryCategory.activations.rawValue]
        }
        #expect(try 5 * peak(recompute: true) < 4 * peak(recompute: false))
    }

    @Test("after a step all activations are given back")
    func nothingLeft() throws {
        let engine = Engine(threads: 1)
        let network = try SmallNetwork(engine, length: 16)
        let before = engine.budget.statistics.live
        do {
            _ = try network.step(on: engine, .bf16, store: GradientStore(engine), batch: 2, length: 16)
        }
        #expect(engine.budget.statistics.live == before)
    }
}
