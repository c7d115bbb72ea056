internal import Platform

/// What an encoder reads beside the decoder's tokens of a `Batch` with as many rows.
package struct SourceBatch: Sendable, Equatable {
    /// Tokens of a row.
    package var length: Int
    /// `[rows·length]`; empty where features are read.
    package var ids: [Int32]
    /// 0 = padding; nil: none.
    package var keyMask: [UInt8]?
    /// `[rows, featureShape…]`: recordings.
    package var features: [Float] = []
    package var featureShape: [Int] = []
}

/// What goes into one pass: token ids of `rows` sequences of equal length, `[rows·length]`, row after row; or vectors of
/// a network without tokens.
package struct Batch: Sendable, Equatable {
    package var rows: Int
    /// Tokens of a row; 1 for vectors.
    package var length: Int
    package var ids: [Int32]
    /// `[rows, featureShape…]` instead of ids: vectors, pictures.
    package var features: [Float] = []
    /// Of one row; empty for tokens.
    package var featureShape: [Int] = []
    /// Empty: no loss is asked for. For language models per token: the id where it is to be learned, −100 where not
    /// (token t is predicted from the ones before it: the shift is the loss's business, as in transformers). For
    /// classification per row: its class.
    package var labels: [Int32]
    /// Labels that are numbers: per row, one for each of the model's outputs (regression, several labels at once).
    package var targets: [Float] = []
    /// For answers in a text: `labels` is where each begins, this where it ends (index of the token in its row).
    package var ends: [Int32] = []
    /// Per token, for the rotary embedding; nil: 0, 1, 2, … in each row.
    package var positions: [Int32]?
    /// Per token, which text of a pair it belongs to; nil: the first.
    package var tokenTypes: [Int32]?
    /// 0 = padding; nil: none.
    package var keyMask: [UInt8]?
    /// Packed rows, per token: index in the row where its sample begins; nil: 0.
    package var firstKey: [Int32]?
    /// Per label, what it counts in the loss; nil: 1.
    package var labelWeights: [Float]?
    /// Per token, what it is of an example: see `ContextLabels`; nil: an answer.
    package var inputTypes: [Int32]?
    /// Per row, the adapter that acts on it (nil: none); nil: the same ones act on all.
    package var adapters: [String?]?
    /// Per row, which task it is of, for adapters with several.
    package var tasks: [Int32]?
    /// Of an encoder-decoder: what its encoder reads. All else is the decoder's.
    package var source: SourceBatch?
    /// The ids are what the decoder is to write, not yet what it reads.
    package var isUnshifted = false

    package init(rows: Int, length: Int, ids: [Int32], labels: [Int32], positions: [Int32]? = nil, keyMask: [UInt8]? = nil, firstKey: [Int32]? = nil) {
        (self.rows, self.length, self.ids, self.labels) = (rows, length, ids, labels)
        (self.positions, self.keyMask, self.firstKey) = (positions, keyMask, firstKey)
    }

    /// Vectors or pictures, one a row.
    package init(rows: Int, features: [Float], featureShape: [Int], labels: [Int32]) {
        self.init(rows: rows, length: 1, ids: [], labels: labels)
        self.features = features
        self.featureShape = featureShape
    }

    package var hasLabels: Bool { !labels.isEmpty || !targets.isEmpty }

    /// Tokens without the padding; rows of vectors.
    package var tokenCount: Int { keyMask.map { $0.count { $0 != 0 } } ?? rows * length }

    /// For each token the label of the next one: what a language model's loss compares with.
    package var shiftedLabels: [Int32] {
        var shifted = Array(labels.dropFirst()) + [Sample.ignored]
        for end in stride(from: length - 1, to: shifted.count, by: max(length, 1)) { shifted[end] = Sample.ignored }
        return shifted
    }
}

extension Batch {
    /// The same behind `counts` virtual tokens in each row, as its losses see it: those are no padding, of the first text, and nothing
    /// is to be learned there. In front of all rows stand `width` places; those a row has no virtual tokens for are padding.
    /// Positions that were given do not hold any more, as in PEFT.
    /// - Parameter isPredicted: labels are predicted from the place before; behind padding there is none.
    /// - Throws: `.unsupported` for what has no place for them.
    func behind(_ counts: [Int], width: Int, isPredicted: Bool = true) throws(PEFTError) -> Batch {
        guard featureShape.isEmpty else { throw PEFTError(.unsupported, "virtual tokens in front of vectors or pictures") }
        guard firstKey == nil else { throw PEFTError(.unsupported, "virtual tokens in front of packed rows: they would stand before the first sample only; do not pack") }
        var batch = self
        batch.length += width
        batch.positions = nil
        batch.keyMask = keyMask.behind(counts, width: width, rows: rows, length: length)
        batch.tokenTypes = tokenTypes?.eachRow(of: length, behind: width, of: 0)
        if !ends.isEmpty {
            // Where an answer begins and ends moves with the text; places before it are no answers.
            batch.labels = labels.map { $0 < 0 ? $0 : $0 &+ Int32(clamping: width) }
            batch.ends = ends.map { $0 < 0 ? $0 : $0 &+ Int32(clamping: width) }
        } else if labels.count == rows * length, labels.count == ids.count {
            batch.labels = labels.eachRow(of: length, behind: width, of: Sample.ignored)
            for (row, own) in counts.enumerated() where own == 0 && isPredicted { batch.labels[row * batch.length + width] = Sample.ignored }
        }
        return batch
    }

    /// The positions of all tokens: those given, else 0, 1, 2 … in each row, which count neither padding in front nor leave out the
    /// places a memory takes.
    func places(behind padding: [Int]?, _ memory: [Int]?) -> [Int32] {
        if positions != nil, padding == nil, memory == nil { return positions ?? [] }
        return (0..<rows).flatMap { row in
            let (skipped, taken) = (Int32(clamping: padding?[row] ?? 0), Int32(clamping: memory?[row] ?? 0))
            return (0..<length).map { token in
                let place = positions?[row * length + token] ?? Int32(clamping: token)
                return max(place &- skipped, 0) &+ taken
            }
        }
    }

    /// nil unless all say theirs.
    private static func tasks(_ tasks: [Int32?]) -> [Int32]? {
        let known = tasks.compactMap { $0 }
        return known.count == tasks.count && !known.isEmpty ? known : nil
    }

    /// A sample a row, filled up on the right to the longest.
    package init(_ samples: [Sample], paddingID: Int32) {
        let length = samples.map(\.ids.count).max() ?? 0
        self.init(rows: samples.count, length: length, ids: [], labels: [])
        tasks = Batch.tasks(samples.map(\.task))
        var mask: [UInt8] = []
        for sample in samples {
            let missing = length - sample.ids.count
            ids += sample.ids + Array(repeating: paddingID, count: missing)
            labels += sample.labels + Array(repeating: Sample.ignored, count: missing)
            mask += Array(repeating: 1, count: sample.ids.count) + Array(repeating: 0, count: missing)
        }
        guard samples.contains(where: { $0.source != nil }) else {
            if mask.contains(0) { keyMask = mask }
            return
        }
        // What stands behind the end of a row is seen by none before it.
        let sources = Batch(samples.map { Sample($0.source ?? []) }, paddingID: paddingID)
        source = SourceBatch(length: sources.length, ids: sources.ids, keyMask: sources.keyMask)
        isUnshifted = true
    }

    /// Several samples a row, one behind the other. A sample sees only itself (`firstKey`), counts its positions from 0,
    /// and its first token is not predicted from the sample before.
    package init(packing rowsOfSamples: [[Sample]], paddingID: Int32) {
        let length = rowsOfSamples.map { $0.reduce(0) { $0 + $1.ids.count } }.max() ?? 0
        self.init(rows: rowsOfSamples.count, length: length, ids: [], labels: [])
        tasks = Batch.tasks(rowsOfSamples.map { $0.first?.task })
        var (places, first, mask): ([Int32], [Int32], [UInt8]) = ([], [], [])
        for samples in rowsOfSamples {
            var used = 0
            for sample in samples {
                ids += sample.ids
                labels += [Sample.ignored] + sample.labels.dropFirst()
                places += 0..<Int32(sample.ids.count)
                first += Array(repeating: Int32(used), count: sample.ids.count)
                mask += Array(repeating: 1, count: sample.ids.count)
                used += sample.ids.count
            }
            ids += Array(repeating: paddingID, count: length - used)
            labels += Array(repeating: Sample.ignored, count: length - used)
            places += 0..<Int32(length - used)
            first += Array(repeating: Int32(used), count: length - used)
            mask += Array(repeating: 0, count: length - used)
        }
        positions = places
        firstKey = first
        if mask.contains(0) { keyMask = mask }
    }
}

extension Batch {
    /// Packed rows with each sample in a row of its own again, filled up on the right: what stands in front of a text stands in front of
    /// each. The first token of a sample is not learned here either. What else is by row is that of the row a sample was in.
    /// - Returns: and how many rows each row became.
    func unpacked() -> (batch: Batch, counts: [Int]) {
        guard let firstKey, featureShape.isEmpty else { return (self, Array(repeating: 1, count: rows)) }
        var (texts, counts): ([(row: Int, range: Range<Int>)], [Int]) = ([], [])
        for row in 0..<rows {
            let own = row * length..<(row + 1) * length
            let seen = own.filter { keyMask?[$0] != 0 }
            let starts = seen.filter { $0 == own.lowerBound || firstKey[$0] != firstKey[$0 - 1] }
            let ends = starts.dropFirst() + [(seen.last ?? own.lowerBound) + 1]
            texts += zip(starts, ends).map { (row, $0..<$1) }
            counts.append(starts.count)
        }
        let longest = texts.map(\.range.count).max() ?? 0
        func each<Value>(_ values: [Value], _ padding: Value) -> [Value] {
            texts.flatMap { text in Array(values[text.range]) + Array(repeating: padding, count: longest - text.range.count) }
        }
        var batch = Batch(rows: texts.count, length: longest, ids: each(ids, 0), labels: labels.isEmpty ? [] : each(labels, Sample.ignored))
        batch.keyMask = each([UInt8](repeating: 1, count: ids.count), 0)
        (batch.tokenTypes, batch.inputTypes) = (tokenTypes.map { each($0, 0) }, inputTypes.map { each($0, 0) })
        batch.labelWeights = labelWeights.map { each($0, 1) }
        (batch.adapters, batch.tasks) = (adapters.map { list in texts.map { list[$0.row] } }, tasks.map { list in texts.map { list[$0.row] } })
        return (batch, counts)
    }

    /// All rows so many times, one copy behind the other.
    func repeated(_ count: Int) -> Batch {
        guard count > 1 else { return self }
        var batch = self
        batch.rows = rows * count
        (batch.ids, batch.features, batch.labels, batch.targets) = (ids.repeated(count), features.repeated(count), labels.repeated(count), targets.repeated(count))
        (batch.ends, batch.positions, batch.tokenTypes) = (ends.repeated(count), positions?.repeated(count), tokenTypes?.repeated(count))
        (batch.keyMask, batch.firstKey, batch.labelWeights) = (keyMask?.repeated(count), firstKey?.repeated(count), labelWeights?.repeated(count))
        (batch.inputTypes, batch.tasks) = (inputTypes?.repeated(count), tasks?.repeated(count))
        if let source {
            batch.source?.ids = source.ids.repeated(count)
            batch.source?.keyMask = source.keyMask?.repeated(count)
            batch.source?.features = source.features.repeated(count)
        }
        return batch
    }
}

extension [UInt8]? {
    /// A mask of rows behind `counts` places that are seen, and so many in front of those that are not that all have `width`.
    func behind(_ counts: [Int], width: Int, rows: Int, length: Int) -> [UInt8]? {
        guard self != nil || counts.contains(where: { $0 < width }) else { return nil }
        var mask: [UInt8] = []
        mask.reserveCapacity(rows * (width + length))
        for (row, own) in counts.enumerated() {
            mask += Array(repeating: 0, count: width - own) + Array(repeating: 1, count: own)
            mask += map { Array($0[row * length..<(row + 1) * length]) } ?? Array(repeating: 1, count: length)
        }
        return mask
    }
}

extension Array {
    fileprivate func repeated(_ count: Int) -> [Element] { (0..<count).flatMap { _ in self } }

    /// Rows of `length` values, each behind `count` times `value`.
    func eachRow(of length: Int, behind count: Int, of value: Element) -> [Element] {
        var result: [Element] = []
        result.reserveCapacity(self.count + self.count / Swift.max(length, 1) * count)
        for start in stride(from: 0, to: self.count, by: Swift.max(length, 1)) {
            result += Array(repeating: value, count: count) + self[start..<Swift.min(start + length, self.count)]
        }
        return result
    }
}
