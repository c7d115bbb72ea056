internal import Autograd
internal import Models
package import Platform
internal import Tensors
internal import Tokenizers

extension AdapterSet {
    /// Gives a prefix the keys and values that the base model itself has for the first tokens of `text` (PEFT's
    /// `initialize_kv_prefix_from_text`).
    package func fill(_ name: String, with text: String) throws(PEFTError) {
        let adapter = try adapter(name)
        guard let method = adapter.method as? any PromptMethod, let memory = method.memory, let saved = adapter.saved.first(where: { $0.key == PromptEncoder.savedKey }),
            !saved.assigned.isEmpty
        else {
            throw PEFTError(.unsupported, "'\(name)' is \(adapter.configuration.method.peftType); PREFIX_TUNING without projection and CARTRIDGE can hold a text")
        }
        guard !model.network.readsSource else { throw PEFTError(.unsupported, "a text in front of an encoder-decoder's own") }
        guard let tokenizer else { throw PEFTError(.argument, "the model came without a tokenizer") }
        let ids = try tokenizer.encode(text, addSpecialTokens: true)
        guard ids.count >= memory.count else {
            throw PEFTError(.argument, "the text has \(ids.count) tokens; '\(name)' has \(memory.count) virtual tokens, and needs as many")
        }
        try fill(saved, with: Array(ids.prefix(memory.count)))
    }

    func fill(_ saved: SavedTensor, with ids: [Int32]) throws(PEFTError) {
        let rows = try model.lock.read { () throws(PEFTError) in
            let (tape, cache, count) = (Tape(engine, model.generationPrecision), try model.makeCache(capacity: ids.count), ids.count)
            let context = ForwardContext(
                tape: tape, routing: .all(model.unadapted), batch: 1, length: count, positions: try Tensor(engine, (0..<Int32(clamping: count)).map { $0 }, shape: [count]),
                caches: [cache])
            _ = try model.hidden(.ids(try Tensor(engine, ids, shape: [count])), context)
            cache.advance(by: count)
            var slots: [Variable] = []
            for layer in 0..<cache.layerCount {
                let (keys, values) = try cache.rows(layer: layer)
                slots += [Variable(keys), Variable(values)]
            }
            return try tape.concatenateColumns(slots).value.converted(to: .f32, engine)
        }
        guard rows.shape == saved.shape else { throw PEFTError(.mismatch, "keys and values of \(rows.shape) for a prefix of \(saved.shape)") }
        try model.lock.write { () throws(PEFTError) in try saved.assign(rows, engine) }
    }
}
