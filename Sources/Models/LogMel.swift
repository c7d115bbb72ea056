internal import Glibc
internal import Kernels
internal import Platform
internal import Tensors

/// What Whisper hears of a recording, after transformers' `feature_extraction_whisper.py`: power at 80 pitches (on Slaney's mel scale),
/// as logarithms within 8 decades, of 30 seconds.
struct LogMel {
    private let bins: Int, size: Int, hop: Int, rate: Int
    /// Samples of a recording with the silence behind it.
    private let length: Int

    init(_ settings: ModelConfiguration) throws(PEFTError) {
        bins = try settings.size("feature_size", or: 80, most: 1024)
        size = try settings.size("n_fft", or: 400, most: Int(PK_LONGEST_FRAME))
        hop = try settings.size("hop_length", or: 160, most: 1 << 16)
        rate = try settings.size("sampling_rate", or: 16000, most: 1 << 20)
        length = rate * (try settings.size("chunk_length", or: 30, most: 3600))
        guard size % 2 == 0, length >= size else { throw settings.unsupported("n_fft", "an even number up to chunk_length · sampling_rate") }
        guard try settings.number("dither", or: 0) == 0 else { throw settings.unsupported("dither", "0") }
    }

    var frames: Int { length / hop }

    /// - Parameter recordings: f32 `[samples]` each.
    /// - Returns: f32 `[recordings, bins, frames]`
    func features(_ recordings: [(name: String, tensor: Tensor)], _ engine: Engine) throws(PEFTError) -> Tensor {
        let result = try Tensor(engine, [recordings.count, bins, frames], .f32, .scratch)
        let (waves, filters) = (waves(), filters())
        for (index, (name, samples)) in recordings.enumerated() {
            guard samples.dtype == .f32, samples.shape.count == 1, samples.count > 0, samples.count <= length else {
                throw PEFTError(.argument, "'\(name)' is \(samples.dtype.name) \(samples.shape); f32 [samples] is needed, 1 to \(length) of them (\(length / rate) s at \(rate) Hz)")
            }
            guard unsafe samples.withFloats({ unsafe $0.allSatisfy(\.isFinite) }) else { throw PEFTError(.argument, "'\(name)' has samples that are not finite") }
            let part = try result.rows(index * bins..<(index + 1) * bins)
            unsafe samples.withFloats { samples in
                unsafe part.withMutableFloats { out in
                    unsafe compute(samples, waves, filters, out, engine)
                    let loudest = unsafe out.max() ?? 0
                    for place in out.indices { unsafe out[place] = (max(out[place], loudest - 8) + 4) / 4 }
                }
            }
        }
        return result
    }

    private func compute(
        _ samples: UnsafeBufferPointer<Float>, _ waves: (cosines: [Double], sines: [Double]), _ filters: [Double], _ out: UnsafeMutableBufferPointer<Float>, _ engine: Engine
    ) {
        guard let target = out.baseAddress else { return }
        unsafe waves.cosines.withUnsafeBufferPointer { cosines in
            unsafe waves.sines.withUnsafeBufferPointer { sines in
                unsafe filters.withUnsafeBufferPointer { filters in
                    var mel = unsafe pk_log_mel()
                    unsafe mel.samples = samples.baseAddress
                    unsafe (mel.count, mel.length, mel.size) = (Int64(samples.count), Int64(length), Int64(size))
                    unsafe (mel.hop, mel.bins) = (Int64(hop), Int64(bins))
                    unsafe (mel.cosines, mel.sines, mel.filters) = (cosines.baseAddress, sines.baseAddress, filters.baseAddress)
                    engine.parallel(engine.shares(samples.count)) { part, parts in
                        unsafe withUnsafePointer(to: mel) { unsafe pk_log_mel_frames($0, target, part, parts) }
                    }
                }
            }
        }
    }

    /// Hann's window times the waves, in rows of a sample.
    private func waves() -> (cosines: [Double], sines: [Double]) {
        var (cosines, sines): ([Double], [Double]) = ([], [])
        for n in 0...size / 2 {
            let window = 0.5 - 0.5 * cos(2 * Double.pi * Double(n) / Double(size))
            for k in 0...size / 2 {
                // Reduced first: large angles lose digits.
                let angle = 2 * Double.pi * Double(n * k % size) / Double(size)
                cosines.append(window * cos(angle))
                sines.append(window * sin(angle))
            }
        }
        return (cosines, sines)
    }

    /// Triangles of equal area, `[bins, size/2 + 1]`.
    private func filters() -> [Double] {
        func mel(_ frequency: Double) -> Double { frequency < 1000 ? 3 * frequency / 200 : 15 + log(frequency / 1000) * 27 / log(6.4) }
        func frequency(_ mel: Double) -> Double { mel < 15 ? 200 * mel / 3 : 1000 * exp(log(6.4) / 27 * (mel - 15)) }
        let (top, waves) = (Double(rate / 2), size / 2)
        let corners = (0...bins + 1).map { frequency(mel(top) * Double($0) / Double(bins + 1)) }
        return (0..<bins).flatMap { bin in
            let (low, middle, high) = (corners[bin], corners[bin + 1], corners[bin + 2])
            return (0...waves).map { wave in
                let f = top * Double(wave) / Double(waves)
                return max(0, min((f - low) / (middle - low), (high - f) / (high - middle))) * 2 / (high - low)
            }
        }
    }
}
