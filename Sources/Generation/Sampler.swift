internal import Glibc
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

/// Chooses tokens from logits.
package struct Sampler: Sendable {
    package var options: SamplingOptions {
        didSet { if options.seed != oldValue.seed { random = RandomStream(seed: options.seed, purpose: "sampling") } }
    }
    private var random: RandomStream

    package init(_ options: SamplingOptions) {
        self.options = options
        random = RandomStream(seed: options.seed, purpose: "sampling")
    }

    /// The next token.
    /// - Parameters:
    ///   - logits: one per token of the vocabulary; not empty.
    ///   - history: the tokens in the context, for the repetition penalty.
    /// - Throws: `.numeric` when the logits hold NaN, or nothing but infinities.
    package mutating func sample(_ logits: [Float], history: some Sequence<Int32>) throws(PEFTError) -> Int32 {
        var logits = logits
        for token in options.suppressed where logits.indices.contains(token) { logits[token] = -.infinity }
        if options.repetitionPenalty != 1 { penalise(&logits, history) }
        let best = try Sampler.indexOfMaximum(logits)
        guard options.temperature > 0 else { return Int32(best) }
        return Int32(draw(from: candidates(logits, best)))
    }

    private func penalise(_ logits: inout [Float], _ history: some Sequence<Int32>) {
        for token in Set(history) where token >= 0 && Int(token) < logits.count {
            let logit = logits[Int(token)]
            logits[Int(token)] = logit > 0 ? logit / options.repetitionPenalty : logit * options.repetitionPenalty
        }
    }

    /// The first of the largest.
    private static func indexOfMaximum(_ logits: [Float]) throws(PEFTError) -> Int {
        var best = -1
        var maximum = -Float.infinity
        for (index, logit) in logits.enumerated() {
            guard !logit.isNaN else { throw PEFTError(.numeric, "the logit of token \(index) is NaN") }
            if logit > maximum { (best, maximum) = (index, logit) }
        }
        guard best >= 0, maximum.isFinite else { throw PEFTError(.numeric, "the largest of \(logits.count) logits is \(maximum)") }
        return best
    }

    private struct Candidate {
        let token: Int
        var weight: Float
    }

    /// What top-k, top-p and min-p leave, most likely first where an order was needed; weights are not normalised.
    private func candidates(_ logits: [Float], _ best: Int) -> [Candidate] {
        let maximum = logits[best]
        let scale = 1 / options.temperature
        var kept: [Candidate] = []
        // Below e^-30 of the best a token is never drawn in practice; top-k and top-p see the same order without them.
        for (token, logit) in logits.enumerated() where (logit - maximum) * scale > -30 {
            kept.append(Candidate(token: token, weight: exp((logit - maximum) * scale)))
        }
        if options.topK > 0 || options.topP < 1 || options.minP > 0 {
            kept.sort { $0.weight == $1.weight ? $0.token < $1.token : $0.weight > $1.weight }
        }
        if options.topK > 0, kept.count > options.topK { kept.removeSubrange(options.topK...) }
        if options.topP < 1 {
            let total = kept.reduce(0) { $0 + $1.weight }
            var sum: Float = 0
            var count = 0
            while count < kept.count, sum < options.topP * total {
                sum += kept[count].weight
                count += 1
            }
            kept.removeSubrange(max(count, 1)...)
        }
        if options.minP > 0, let first = kept.first {
            let least = first.weight * options.minP
            kept.removeAll { $0.weight < least }
        }
        return kept.isEmpty ? [Candidate(token: best, weight: 1)] : kept
    }

    private mutating func draw(from candidates: [Candidate]) -> Int {
        let total = candidates.reduce(0) { $0 + $1.weight }
        var point = random.uniform() * total
        for candidate in candidates {
            point -= candidate.weight
            if point < 0 { return candidate.token }
        }
        return candidates.last?.token ?? 0
    }
}
