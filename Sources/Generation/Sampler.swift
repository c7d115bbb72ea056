internal import Kernels
package import Platform
internal import Tensors

/// How the next token is chosen. The order of the steps is transformers': repetition penalty, temperature, top-k, top-p,
/// min-p, then a draw from what is left.
package struct SamplingOptions: Sendable, Equatable {
    /// 0: the most likely token (greedy), and nothing below matters but the penalty.
    package var temperature: Float = 0
    /// Keep the k most likely; 0: all.
    package var topK = 0
    /// Keep the most likely tokens that together reach this probability; 1: all.
    package var topP: Float = 1
    /// Keep tokens at least this likely relative to the most likely one; 0: all.
    package var minP: Float = 0
    /// Divides positive and multiplies negative logits of tokens already in the context (Keskar et al. 2019); 1: none.
    package var repetitionPenalty: Float = 1
    package var seed: UInt64 = 0
    /// Tokens that are never chosen.
    package var suppressed: [Int] = []

    package init() {}

    /// - Throws: `.argument` naming the option, its value and its range.
    package func validate() throws(PEFTError) {
        guard temperature.isFinite, temperature >= 0 else { throw PEFTError(.argument, "temperature is \(temperature); 0 (greedy) or more is accepted") }
        guard topK >= 0 else { throw PEFTError(.argument, "top_k is \(topK); 0 (all) or more is accepted") }
        guard topP > 0, topP <= 1 else { throw PEFTError(.argument, "top_p is \(topP); it must be in (0, 1]") }
        guard minP >= 0, minP <= 1 else { throw PEFTError(.argument, "min_p is \(minP); it must be in [0, 1]") }
        guard repetitionPenalty.isFinite, repetitionPenalty > 0 else {
            throw PEFTError(.argument, "repetition_penalty is \(repetitionPenalty); it must be positive, 1 means none")
        }
    }
}

/// Chooses tokens from logits. Beside a model that writes a token in 5 ms, sorting a vocabulary would cost more than the model: it is
/// looked through by vectors, and only what may be kept is sorted.
package struct Sampler: Sendable {
    package var options: SamplingOptions {
        didSet { if options.seed != oldValue.seed { random = RandomStream(seed: options.seed, purpose: "sampling") } }
    }
    private var random: RandomStream
    private let level: Int32

    /// - Parameter level: `Engine.level`.
    package init(_ options: SamplingOptions, level: Int32) {
        self.options = options
        self.level = level
        random = RandomStream(seed: options.seed, purpose: "sampling")
    }

    /// The next token.
    /// - Parameters:
    ///   - logits: one per token of the vocabulary; not empty.
    ///   - history: the tokens in the context, for the repetition penalty.
    /// - Throws: `.numeric` when the logits hold NaN, or nothing but infinities.
    package mutating func sample(_ logits: [Float], history: some Sequence<Int32>) throws(PEFTError) -> Int32 {
        let logits = changed(logits, history)
        let best = try indexOfLargest(logits)
        guard options.temperature > 0 else { return Int32(best) }
        let (weights, total) = weighed(logits, best)
        guard options.topK > 0 || options.topP < 1 || options.minP > 0 else { return Int32(draw(from: weights, total)) }
        let kept = candidates(weights, total)
        return Int32(kept.isEmpty ? best : kept[draw(from: kept.map(\.weight), Float(Sampler.sum(kept)))].token)
    }

    /// The logits without what is never chosen, and with the penalty for what was said.
    private func changed(_ logits: [Float], _ history: some Sequence<Int32>) -> [Float] {
        guard !options.suppressed.isEmpty || options.repetitionPenalty != 1 else { return logits }
        var logits = logits
        for token in options.suppressed where logits.indices.contains(token) { logits[token] = -.infinity }
        guard options.repetitionPenalty != 1 else { return logits }
        var isSeen = [Bool](repeating: false, count: logits.count)
        for token in history where token >= 0 && Int(token) < logits.count && !isSeen[Int(token)] {
            isSeen[Int(token)] = true
            let logit = logits[Int(token)]
            logits[Int(token)] = logit > 0 ? logit / options.repetitionPenalty : logit * options.repetitionPenalty
        }
        return logits
    }

    /// The first of the largest.
    private func indexOfLargest(_ logits: [Float]) throws(PEFTError) -> Int {
        let found = unsafe logits.withUnsafeBufferPointer { unsafe Int(pk_largest(level, $0.baseAddress, Int64($0.count))) }
        guard found >= -1 else { throw PEFTError(.numeric, "the logit of token \(-2 - found) is NaN") }
        guard found >= 0, logits[found].isFinite else {
            throw PEFTError(.numeric, "the largest of \(logits.count) logits is \(found < 0 ? -.infinity : logits[found])")
        }
        return found
    }

    package struct Candidate: Equatable {
        package let token: Int
        package let weight: Float
    }

    /// How likely tokens are relative to the most likely one, which is `best`, and the sum. Below e^-30 of it a token is never drawn: 0.
    package func weighed(_ logits: [Float], _ best: Int) -> (weights: [Float], total: Float) {
        var total: Float = 0
        let weights = unsafe [Float](unsafeUninitializedCapacity: logits.count) { weights, count in
            total = unsafe logits.withUnsafeBufferPointer {
                unsafe pk_weigh_tokens(level, $0.baseAddress, Int64($0.count), logits[best], 1 / options.temperature, weights.baseAddress)
            }
            count = logits.count
        }
        return (weights, total)
    }

    /// What top-k, top-p and min-p leave, most likely first.
    package func candidates(_ weights: [Float], _ total: Float) -> [Candidate] {
        // The few that decide are found by going down from the most likely one in steps.
        var least: Float = options.topK == 0 && options.topP == 1 ? max(options.minP, .leastNonzeroMagnitude) : 1.0 / 8
        var kept = atLeast(least, weights)
        while least > .leastNonzeroMagnitude, !isEnough(kept, total) {
            least = least > 1e-13 ? least / 8 : .leastNonzeroMagnitude
            kept = atLeast(least, weights)
        }
        kept.sort { $0.weight == $1.weight ? $0.token < $1.token : $0.weight > $1.weight }
        if options.topK > 0, kept.count > options.topK { kept.removeSubrange(options.topK...) }
        if options.topP < 1 {
            // Of what top-k left.
            let wanted = Double(options.topP) * (options.topK > 0 ? Sampler.sum(kept) : Double(total))
            var sum = 0.0
            var count = 0
            while count < kept.count, sum < wanted {
                sum += Double(kept[count].weight)
                count += 1
            }
            kept.removeSubrange(max(count, 1)...)
        }
        if options.minP > 0, let first = kept.first {
            let least = first.weight * options.minP
            kept.removeAll { $0.weight < least }
        }
        return kept
    }

    /// The most likely tokens suffice for what is asked of them.
    private func isEnough(_ kept: [Candidate], _ total: Float) -> Bool {
        if options.topK > 0 { return kept.count >= options.topK }
        return options.topP == 1 || Sampler.sum(kept) >= Double(options.topP) * Double(total)
    }

    private static func sum(_ kept: [Candidate]) -> Double { kept.reduce(0) { $0 + Double($1.weight) } }

    /// In the order of tokens.
    private func atLeast(_ least: Float, _ weights: [Float]) -> [Candidate] {
        let tokens = unsafe [Int32](unsafeUninitializedCapacity: weights.count) { tokens, count in
            count = unsafe weights.withUnsafeBufferPointer { unsafe Int(pk_at_least($0.baseAddress, Int64($0.count), least, tokens.baseAddress)) }
        }
        return tokens.map { Candidate(token: Int($0), weight: weights[Int($0)]) }
    }

    /// - Returns: an index into `weights`, some of which are positive.
    private mutating func draw(from weights: [Float], _ total: Float) -> Int {
        var point = random.uniform() * total
        var last = 0
        for (index, weight) in weights.enumerated() where weight > 0 {
            point -= weight
            if point < 0 { return index }
            last = index
        }
        return last
    }
}
