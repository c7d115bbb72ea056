internal import Platform

extension TokenizerJSON {
    /// The model and the token it uses for the unknown.
    func readModel(isByteLevel: Bool) throws(PEFTError) -> (any TokenModel, Int32?) {
        guard let json = definition["model"], case .object = json else {
            throw PEFTError(.format, "tokenizer.json: the model is missing")
        }
        // Old files name no type.
        let guess =
            json["merges"] != nil ? "BPE" : json["unk_id"] != nil ? "Unigram" : json["max_input_chars_per_word"] != nil ? "WordPiece" : "without a type"
        let type = json["type"]?.stringValue ?? guess
        do throws(PEFTError) {
            switch type {
            case "BPE": return try readBPE(json, isByteLevel: isByteLevel)
            case "WordPiece": return try readWordPiece(json)
            case "Unigram": return try readUnigram(json)
            default: throw PEFTError(.unsupported, "model \"\(type)\" is not supported; BPE, WordPiece and Unigram are")
            }
        } catch {
            throw error.within("tokenizer.json: model")
        }
    }

    func readVocabulary(_ json: JSONValue) throws(PEFTError) -> Vocabulary {
        guard let object = json["vocab"]?.objectValue else {
            throw PEFTError(.format, "\"vocab\" must be an object, is \(json["vocab"]?.kindName ?? "missing")")
        }
        var entries: [(token: ArraySlice<UInt8>, id: Int)] = []
        entries.reserveCapacity(object.count)
        for (token, value) in object.pairs {
            guard let id = value.intValue else {
                throw PEFTError(.format, "vocab: the id of \"\(token)\" must be an integer, is \(value.kindName)")
            }
            entries.append((Array(token.utf8)[...], id))
        }
        return try Vocabulary(entries)
    }

    private func readWordPiece(_ json: JSONValue) throws(PEFTError) -> (any TokenModel, Int32?) {
        let vocabulary = try readVocabulary(json)
        let name = json["unk_token"]?.stringValue ?? "[UNK]"
        guard let unknown = vocabulary.id(of: name) else {
            throw PEFTError(.format, "unk_token \"\(name)\" is not in the vocabulary")
        }
        let maximum = json["max_input_chars_per_word"]?.intValue ?? 100
        guard (1...100_000).contains(maximum) else {
            throw PEFTError(.format, "max_input_chars_per_word must be from 1 to 100000, is \(maximum)")
        }
        let model = WordPieceModel(
            vocabulary: vocabulary, unknownToken: unknown,
            continuationPrefix: Array((json["continuing_subword_prefix"]?.stringValue ?? "##").utf8),
            maximumCharacters: maximum)
        return (model, unknown)
    }

    /// `vocab`: pairs of a piece and its score, in the order of the ids.
    private func readUnigram(_ json: JSONValue) throws(PEFTError) -> (any TokenModel, Int32?) {
        var entries: [(token: ArraySlice<UInt8>, id: Int)] = []
        var scores: [Double] = []
        for (id, pair) in try json.list("vocab").enumerated() {
            guard let both = pair.arrayValue, both.count == 2, let piece = both[0].stringValue, let score = both[1].doubleValue, score.isFinite else {
                throw PEFTError(.format, "vocab: entry \(id) is no piece with a score")
            }
            entries.append((Array(piece.utf8)[...], id))
            scores.append(score)
        }
        let unknown = json["unk_id"]?.intValue
        if let unknown, !scores.indices.contains(unknown) { throw PEFTError(.format, "unk_id is \(unknown), but there are \(scores.count) pieces") }
        let model = UnigramModel(
            vocabulary: try Vocabulary(entries), scores: scores, unknownToken: unknown.map { Int32(clamping: $0) }, byteFallback: try json.flag("byte_fallback", default: false))
        return (model, unknown.map { Int32(clamping: $0) })
    }

    private func readBPE(_ json: JSONValue, isByteLevel: Bool) throws(PEFTError) -> (any TokenModel, Int32?) {
        if let dropout = json["dropout"]?.doubleValue, dropout != 0 {
            throw PEFTError(
                .unsupported, "a dropout of \(dropout) is not supported; only 0 gives the same tokens each time")
        }
        let vocabulary = try readVocabulary(json)
        var options = BPEModel.Options(symbols: isByteLevel ? .bytes : .characters)
        if let name = json["unk_token"]?.stringValue {
            guard let id = vocabulary.id(of: name) else {
                throw PEFTError(.format, "unk_token \"\(name)\" is not in the vocabulary")
            }
            options.unknownToken = id
        }
        options.fusesUnknown = try json.flag("fuse_unk", default: false)
        options.byteFallback = try json.flag("byte_fallback", default: false)
        if isByteLevel, options.byteFallback { options.byteFallback = false }  // every byte is a symbol already
        options.ignoresMerges = try json.flag("ignore_merges", default: false)
        options.continuationPrefix = Array((json["continuing_subword_prefix"]?.stringValue ?? "").utf8)
        options.endOfWordSuffix = Array((json["end_of_word_suffix"]?.stringValue ?? "").utf8)

        var pairs: [(left: ArraySlice<UInt8>, right: ArraySlice<UInt8>)] = []
        for (index, merge) in try json.list("merges").enumerated() {
            if let both = merge.arrayValue, both.count == 2, let left = both[0].stringValue,
                let right = both[1].stringValue
            {
                pairs.append((Array(left.utf8)[...], Array(right.utf8)[...]))
            } else if let line = merge.stringValue {
                pairs.append(try MergeTable.pair(Array(line.utf8)[...], index))
            } else {
                throw PEFTError(.format, "merge \(index) is neither \"a b\" nor [\"a\", \"b\"]")
            }
        }
        let merges = try MergeTable(pairs.count, vocabulary, droppedPrefix: options.continuationPrefix.count) { (rank) throws(PEFTError) in pairs[rank] }
        return (BPEModel(vocabulary: vocabulary, merges: merges, options: options), options.unknownToken)
    }
}
