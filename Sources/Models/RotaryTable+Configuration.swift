internal import Glibc
package import Platform
package import Tensors

extension RotaryTable {
    /// The table that a configuration describes: `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling`.
    ///
    ///     θᵢ = base^(−2i/dimension), scaled: "linear" divides by `factor`; "llama3" (meta-llama/llama-models) divides long
    ///     wavelengths by `factor`, leaves short ones, and goes smoothly from one to the other between, and so does "yarn"
    ///     (arXiv:2309.00071) by another rule; "longrope" (arXiv:2402.13753) divides each by a factor of its own, others in long texts.
    package convenience init(_ engine: Engine, headSize: Int, _ configuration: ModelConfiguration) throws(PEFTError) {
        let scaling = try configuration.object(configuration.has("rope_parameters") ? "rope_parameters" : "rope_scaling")
        let part = try (scaling.flatMap { $0.has("partial_rotary_factor") ? $0 : nil } ?? configuration).number("partial_rotary_factor", or: 1)
        guard part > 0, part <= 1 else { throw PEFTError(.format, "\(configuration.origin): partial_rotary_factor is \(part); above 0 and at most 1 is right") }
        let dimension = Int(Double(headSize) * part)
        let base = try (scaling.flatMap { $0.has("rope_theta") ? $0 : nil } ?? configuration).number("rope_theta", or: 10000)
        guard base > 0, dimension > 0, dimension % 2 == 0 else {
            throw PEFTError(.format, "\(configuration.origin): rotary embedding of \(dimension) values with base \(base); an even number and a positive base are needed")
        }
        // In f32 as torch does it: the powers are rounded before they are inverted.
        var frequencies = (0..<dimension / 2).map { 1 / Float(pow(base, Double(Float(2 * $0) / Float(dimension)))) }
        if let scaling {
            let key = scaling.has("rope_type") ? "rope_type" : "type"
            switch try scaling.text(key, or: "default") {
            case "default": break
            case "linear":
                let factor = Float(try scaling.number("factor"))
                frequencies = frequencies.map { $0 / factor }
            case "llama3":
                let rule = try Llama3Scaling(scaling)
                frequencies = frequencies.map { rule.scaled($0) }
            case "yarn":
                let rule = try YaRN(scaling, configuration, base: base, dimension: dimension)
                self.init(engine, frequencies: frequencies.enumerated().map { rule.scaled($1, at: $0) }, factor: rule.attentionFactor)
                return
            case "longrope", "su":
                let rule = try LongRope(scaling, configuration, count: frequencies.count)
                self.init(
                    engine, frequencies: rule.divided(frequencies, by: rule.short), longFrequencies: rule.divided(frequencies, by: rule.long), border: rule.border,
                    factor: rule.factor)
                return
            default: throw scaling.unsupported(key, "default, linear, llama3, yarn, longrope")
            }
        }
        self.init(engine, frequencies: frequencies)
    }
}

/// Phi-3's rule for longer contexts.
struct LongRope {
    let short: [Float], long: [Float]
    /// Longest text of the first training.
    let border: Int
    /// Of sines and cosines.
    let factor: Float

    init(_ scaling: ModelConfiguration, _ configuration: ModelConfiguration, count: Int) throws(PEFTError) {
        func factors(_ key: String) throws(PEFTError) -> [Float] {
            let values = (scaling.json[key]?.arrayValue ?? []).compactMap(\.doubleValue).filter { $0.isFinite && $0 > 0 }
            guard values.count == count, scaling.json[key]?.arrayValue?.count == count else {
                throw PEFTError(.format, "\(scaling.origin): \(key) needs \(count) factors above 0, has \(values.count)")
            }
            return values.map { Float($0) }
        }
        short = try factors("short_factor")
        long = try factors("long_factor")
        let longest = try configuration.size("max_position_embeddings")
        border = try (configuration.has("original_max_position_embeddings") ? configuration : scaling).size("original_max_position_embeddings", or: longest)
        let growth = try scaling.number("factor", or: Double(longest) / Double(border))
        let usual = growth <= 1 ? 1 : (1 + log(growth) / max(log(Double(border)), 1e-9)).squareRoot()
        factor = Float(try scaling.number("attention_factor", or: usual))
    }

    func divided(_ frequencies: [Float], by factors: [Float]) -> [Float] { zip(frequencies, factors).map { $0 / $1 } }
}

/// YaRN (arXiv:2309.00071), as transformers' `_compute_yarn_parameters` has it: pairs that turn more than `beta_fast` times within the
/// first training's texts stay as they are, those that turn less than `beta_slow` times are `factor` times slower, between them a ramp.
struct YaRN {
    let factor: Float
    /// Length of the first training's texts.
    let originalLength: Int
    /// Of sines and cosines.
    let attentionFactor: Float
    /// Nothing beside `factor` and the length was stated.
    let isUsual: Bool
    private let low: Float, high: Float

    init(_ scaling: ModelConfiguration, _ configuration: ModelConfiguration, base: Double, dimension: Int) throws(PEFTError) {
        let longest = try configuration.size("max_position_embeddings")
        let length = try (configuration.has("original_max_position_embeddings") ? configuration : scaling).size("original_max_position_embeddings", or: longest)
        let growth = try scaling.number("factor", or: Double(longest) / Double(length))
        let (fast, slow) = (try scaling.number("beta_fast", or: 32), try scaling.number("beta_slow", or: 1))
        guard growth > 0, fast > 0, slow > 0, base > 1 else {
            throw PEFTError(.format, "\(scaling.origin): factor \(growth), beta_fast \(fast), beta_slow \(slow) with a base of \(base) do not describe yarn scaling; numbers above 0 and a base above 1 do")
        }
        func magnitude(_ weight: Double) -> Double { growth <= 1 ? 1 : 0.1 * weight * log(growth) + 1 }
        let (weight, weightOfAll) = (try scaling.number("mscale", or: 0), try scaling.number("mscale_all_dim", or: 0))
        let usual = weight != 0 && weightOfAll != 0 ? magnitude(weight) / magnitude(weightOfAll) : magnitude(1)
        attentionFactor = Float(try scaling.number("attention_factor", or: usual))
        /// The pair that turns so often.
        func pair(_ turns: Double) -> Double { Double(dimension) * log(Double(length) / (turns * 2 * .pi)) / (2 * log(base)) }
        let isWhole = try scaling.flag("truncate", or: true)
        low = Float(max(isWhole ? pair(fast).rounded(.down) : pair(fast), 0))
        high = Float(min(isWhole ? pair(slow).rounded(.up) : pair(slow), Double(dimension - 1)))
        (factor, originalLength) = (Float(growth), length)
        isUsual = fast == 32 && slow == 1 && isWhole && attentionFactor == Float(magnitude(1))
    }

    func scaled(_ frequency: Float, at index: Int) -> Float {
        let ramp = min(max((Float(index) - low) / (low == high ? 0.001 : high - low), 0), 1)
        return frequency / factor * ramp + frequency * (1 - ramp)
    }
}

/// Llama 3.1's rule for longer contexts.
struct Llama3Scaling {
    let factor: Float
    let lowFrequencyFactor: Float
    let highFrequencyFactor: Float
    let originalLength: Float

    init(factor: Float, lowFrequencyFactor: Float = 1, highFrequencyFactor: Float = 4, originalLength: Float = 8192) {
        self.factor = factor
        self.lowFrequencyFactor = lowFrequencyFactor
        self.highFrequencyFactor = highFrequencyFactor
        self.originalLength = originalLength
    }

    init(_ scaling: ModelConfiguration) throws(PEFTError) {
        self.init(
            factor: Float(try scaling.number("factor")), lowFrequencyFactor: Float(try scaling.number("low_freq_factor")),
            highFrequencyFactor: Float(try scaling.number("high_freq_factor")), originalLength: Float(try scaling.number("original_max_position_embeddings")))
        guard factor > 0, highFrequencyFactor > lowFrequencyFactor, lowFrequencyFactor > 0, originalLength > 0 else {
            throw PEFTError(.format, "\(scaling.origin): factor \(factor), low_freq_factor \(lowFrequencyFactor), high_freq_factor \(highFrequencyFactor) do not describe llama3 scaling")
        }
    }

    func scaled(_ frequency: Float) -> Float {
        let wavelength = 2 * Float.pi / frequency
        if wavelength < originalLength / highFrequencyFactor { return frequency }
        if wavelength > originalLength / lowFrequencyFactor { return frequency / factor }
        let smooth = (originalLength / wavelength - lowFrequencyFactor) / (highFrequencyFactor - lowFrequencyFactor)
        return (1 - smooth) * frequency / factor + smooth * frequency
    }

    /// What each frequency is divided by, as GGUF files have it.
    func factors(base: Double, headSize: Int) -> [Float] {
        (0..<headSize / 2).map { index in
            let frequency = 1 / Float(pow(base, Double(Float(2 * index) / Float(headSize))))
            return frequency / scaled(frequency)
        }
    }

    /// The configuration's object, as transformers writes it.
    func json(base: Double) -> JSONObject {
        [
            "rope_type": .string("llama3"), "rope_theta": .number(base), "factor": .number(Double(factor)),
            "low_freq_factor": .number(Double(lowFrequencyFactor)), "high_freq_factor": .number(Double(highFrequencyFactor)),
            "original_max_position_embeddings": .integer(Int64(originalLength)),
        ]
    }
}
