import Adapters
import Autograd
import Models
import Platform
import Tensors
import Testing

@testable import Generation

/// Virtual tokens in sessions: what the cache holds in front of the first token.
@Suite struct VirtualTokensTests {
    private static let base = String(#filePath.dropLast("GenerationTests/VirtualTokensTests.swift".count)) + "Golden/data/bases/llama"

    /// Logits of the last token, without a cache.
    private func uncached(_ model: Model, _ ids: [Int32], _ adaptation: Adaptation) throws -> [Float] {
        let (tape, prompt, engine) = (Tape(model.engine, model.precision), adaptation.prompt, model.engine)
        let count = ids.count + (prompt?.count ?? 0)
        let input = try ModelInput(ids: try Tensor(engine, ids, shape: [ids.count]), behind: prompt, tape)
        let context = ForwardContext(
            tape: tape, routing: .all(adaptation), batch: 1, length: count, positions: try Tensor(engine, (0..<Int32(count)).map { $0 }, shape: [count]))
        return try model.logits(try model.hidden(input, context), of: input, rows: .last, context).value.floats(engine)
    }

    private func difference(_ a: [Float], _ b: [Float]) -> Float { a.count == b.count ? zip(a, b).map { abs($0 - $1) }.max() ?? 0 : .infinity }

    @Test("the cache gives what the whole text gives") func cached() throws {
        let model = try OpenedModel.open(path: VirtualTokensTests.base, Engine(threads: 2), compute: .f32).model
        let set = AdapterSet(model)
        for (name, count) in [("a", 3), ("b", 5)] {
            try set.add(name, ["peft_type": .string("PROMPT_TUNING"), "task_type": .string("CAUSAL_LM"), "num_virtual_tokens": .integer(Int64(count))])
        }
        let session = try Session(model, tokenizer: nil, options: SessionOptions()) { () throws(PEFTError) in try set.activeAdaptation() }
        let ids: [Int32] = [1, 5, 9, 2, 20, 7]
        func check(_ ids: [Int32], _ name: String?) throws {
            let adaptation = try set.adaptation(of: name.map { [($0, Float(1))] } ?? [])
            #expect(session.tokens == ids)
            #expect(difference(try session.nextLogits(), try uncached(model, ids, adaptation)) < 1e-4, "\(ids.count) tokens, \(name ?? "none")")
        }
        try session.append(Array(ids[0..<4]))
        try check(Array(ids[0..<4]), "a")
        try session.append(Array(ids[4...]))
        try check(ids, "a")
        try session.rewind(to: 2)
        try check(Array(ids[0..<2]), "a")
        let fork = try session.fork()
        try fork.append([7])
        #expect(difference(try fork.nextLogits(), try uncached(model, [1, 5, 7], set.activeAdaptation())) < 1e-4)
        // Another adapter begins with the next conversation.
        try set.setActive([("b", 1)])
        try session.rewind(to: 0)
        try session.append(ids)
        try check(ids, "b")
        try set.setEnabled(false)
        try session.rewind(to: 0)
        try session.append(ids)
        try check(ids, nil)
    }
}
