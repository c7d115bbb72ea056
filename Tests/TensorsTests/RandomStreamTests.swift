import Tensors
import Testing

@Suite struct RandomStreamTests {
    @Test("known answer: Random123's test vector for philox4x32-10, counter 0 and key 0")
    func knownAnswer() {
        var stream = RandomStream(seed: 0)
        #expect((0..<4).map { _ in stream.nextWord() } == [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8])
    }

    @Test("seed and position are the whole state")
    func resume() {
        var stream = RandomStream(seed: 42)
        _ = (0..<17).map { _ in stream.normal() }
        var resumed = RandomStream(seed: 42, position: stream.position)
        #expect((0..<50).map { _ in stream.nextWord() } == (0..<50).map { _ in resumed.nextWord() })
        #expect(stream == resumed)
    }

    @Test("purposes have streams of their own")
    func purposes() {
        var (a, b, c) = (RandomStream(seed: 1, purpose: "a"), RandomStream(seed: 1, purpose: "b"), RandomStream(seed: 1, purpose: "a"))
        let first = a.nextWord()
        #expect(first != b.nextWord() && first == c.nextWord())
    }

    @Test("moments of uniform and normal, evenness of below")
    func distributions() {
        var stream = RandomStream(seed: 7)
        let count = 40_000
        let uniforms = (0..<count).map { _ in Double(stream.uniform()) }
        #expect(uniforms.allSatisfy { $0 >= 0 && $0 < 1 } && abs(uniforms.reduce(0, +) / Double(count) - 0.5) < 0.01)
        let normals = (0..<count).map { _ in Double(stream.normal()) }
        #expect(abs(normals.reduce(0, +) / Double(count)) < 0.02)
        #expect(abs(normals.reduce(0) { $0 + $1 * $1 } / Double(count) - 1) < 0.03)
        #expect(abs(normals.reduce(0) { $0 + $1 * $1 * $1 * $1 } / Double(count) - 3) < 0.2)
        var hits = [Int](repeating: 0, count: 7)
        for _ in 0..<70_000 { hits[Int(stream.below(7))] += 1 }
        #expect(hits.allSatisfy { abs($0 - 10_000) < 500 })
        #expect(stream.below(0) == 0 && stream.below(1) == 0)
    }

    @Test("a permutation holds every index once")
    func permutation() {
        var stream = RandomStream(seed: 3)
        let order = stream.permutation(1000)
        #expect(order.sorted() == Array(0..<1000) && order != Array(0..<1000))
        #expect(stream.permutation(0).isEmpty && stream.permutation(1) == [0])
    }
}
