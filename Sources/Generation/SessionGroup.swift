internal import Autograd
internal import Models
package import Platform
internal import Tensors

/// Several sessions of one model that are stepped together: one pass over the weights serves all of them, whatever adapters
/// each has. What memory bandwidth costs is paid once.
package enum SessionGroup {
    /// One token for each session, sampled and read; sessions whose answer is complete are left alone (their piece says so).
    ///
    /// - Parameter generators: one for each session; the sessions are different ones, of the same model.
    /// - Throws: `.cancelled`, `.contextFull` and what computing throws: then no session has read a token.
    package static func next(_ generators: inout [TextGenerator]) throws(PEFTError) -> [GeneratedPiece] {
        var pieces: [GeneratedPiece?] = []
        var chosen: [(index: Int, token: Int32)] = []
        for index in generators.indices {
            switch try generators[index].choose() {
            case .end(let piece): pieces.append(piece)
            case .token(let token):
                pieces.append(nil)
                chosen.append((index, token))
            }
        }
        try accept(chosen.map { (generators[$0.index].session, $0.token) })
        for (index, token) in chosen { pieces[index] = try generators[index].finish(token) }
        return pieces.compactMap { $0 }
    }

    /// Each session reads its token.
    private static func accept(_ pairs: [(session: Session, token: Int32)]) throws(PEFTError) {
        guard let model = pairs.first?.session.model else { return }
        guard pairs.allSatisfy({ $0.session.model === model }) else { throw PEFTError(.argument, "sessions that are stepped together must be of one model") }
        if pairs.count == 1 { return try pairs[0].session.accept(pairs[0].token) }
        let begin = Clock.seconds
        for (session, _) in pairs {
            try session.makeRoom(for: 1)
            session.dropAhead()
        }
        let engine = model.engine
        let logits = try model.lock.read { () throws(PEFTError) in
            let context = ForwardContext(
                tape: Tape(engine, model.generationPrecision), routing: try routing(pairs), batch: pairs.count, length: 1,
                positions: try Tensor(engine, pairs.map { Int32(clamping: $0.session.cache.length) }, shape: [pairs.count]), caches: pairs.map(\.session.cache))
            let input = ModelInput.ids(try Tensor(engine, pairs.map(\.token), shape: [pairs.count]))
            return try model.logits(try model.hidden(input, context), of: input, rows: .last, context).value
        }
        let share = (Clock.seconds - begin) / Double(pairs.count)
        for (row, pair) in pairs.enumerated() { pair.session.didAccept(pair.token, logits: try logits.rows(row..<row + 1).floats(engine), seconds: share) }
    }

    /// Neighbours with the same adapters share one entry.
    private static func routing(_ pairs: [(session: Session, token: Int32)]) throws(PEFTError) -> Routing {
        var groups: [(range: Range<Int>, adaptation: Adaptation)] = []
        for (index, pair) in pairs.enumerated() {
            let adaptation = try pair.session.adaptation().acting(on: pair.token, after: pair.session.tokens)
            guard !adaptation.readsWholeText || pair.session.options.gatesEachCall else {
                throw PEFTError(.unsupported, "use_gating in sessions that step together: the gate is a mean over the whole text, which a session by itself reads anew for each token; set gates to \"call\"")
            }
            if let last = groups.last, last.adaptation.isSame(as: adaptation) {
                groups[groups.count - 1].range = last.range.lowerBound..<index + 1
            } else {
                groups.append((index..<index + 1, adaptation))
            }
        }
        return groups.count == 1 ? .all(groups[0].adaptation) : .samples(groups)
    }
}
