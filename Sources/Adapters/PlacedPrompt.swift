package import Autograd
package import Models
package import Platform
package import Tensors

/// Virtual tokens that stand in the text itself instead of in front of it: each wherever its token does, between whatever words the text
/// has there (P-tuning's templates, arXiv:2103.10385, whose anchors are such words). The tokens are those of the vocabulary that texts
/// have no other use for, `prompt_token_ids`. It is a hook of the embedding, so nothing else knows of them.
package final class PlacedPrompt: LayerHook {
    private let encoder: PromptEncoder
    private let rows: [Int32: Int32]
    let embedding: Embedding

    /// - Returns: nil where the configuration does not say it.
    init?(_ configuration: AdapterConfiguration, _ encoder: PromptEncoder, _ embedding: Embedding) throws(PEFTError) {
        guard let list = try configuration.values.list("prompt_token_ids") else { return nil }
        let ids = list.compactMap(\.intValue)
        guard ids.count == list.count, ids.count == encoder.count, Set(ids).count == ids.count, ids.allSatisfy({ $0 >= 0 && $0 < embedding.count }) else {
            throw PEFTError(.argument, "prompt_token_ids is \(JSONValue.array(list).text()); one id from 0 to \(embedding.count - 1) for each of the \(encoder.count) virtual tokens is needed, each another")
        }
        (self.encoder, self.embedding) = (encoder, embedding)
        rows = Dictionary(uniqueKeysWithValues: ids.enumerated().map { (Int32(clamping: $1), Int32(clamping: $0)) })
    }

    package func output(_ y: consuming Variable, ids: Tensor, of layer: Embedding, _ tape: Tape) throws(PEFTError) -> Variable {
        let count = Int32(clamping: ids.count)
        // A plan does not know the text: as if all stood in it.
        let order: [Int32] = tape.engine.isPlanning ? Array(0..<count) : unsafe ids.withInt32s { ids in unsafe ids.enumerated().map { place, id in rows[id].map { count + $0 } ?? Int32(clamping: place) } }
        guard tape.engine.isPlanning || order.contains(where: { $0 >= count }) else { return y }
        let virtual = try tape.cast(try encoder.rows(task: 0, ofDecoder: false, tape), to: y.value.dtype)
        return try tape.gatherRows(try tape.concatenateRows([y, virtual]), order)
    }
}
