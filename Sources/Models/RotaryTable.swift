internal import Glibc
package import Platform
internal import Synchronization
package import Tensors

/// Cosines and sines of rotary position embeddings (Su et al., arXiv:2104.09864), made for as many positions as were ever
/// asked for. Safe from several threads.
package final class RotaryTable: Sendable {
    /// Rotated values of a head.
    package let dimension: Int
    /// Angle per position of each pair, `dimension / 2` of them.
    package let frequencies: [Float]
    /// Texts longer than `border` have other frequencies; nil: all have the same.
    let border: Int?
    private let longFrequencies: [Float]
    /// On cosines and sines.
    private let factor: Float
    private let engine: Engine
    private let state = Mutex<(short: (cosines: Tensor, sines: Tensor)?, long: (cosines: Tensor, sines: Tensor)?)>((nil, nil))

    package init(_ engine: Engine, frequencies: [Float], longFrequencies: [Float] = [], border: Int? = nil, factor: Float = 1) {
        self.engine = engine
        self.frequencies = frequencies
        self.longFrequencies = longFrequencies
        self.border = border
        self.factor = factor
        dimension = frequencies.count * 2
    }

    /// f32 `[n, dimension/2]` each, n ≥ `positions`.
    package func table(positions: Int) throws(PEFTError) -> (cosines: Tensor, sines: Tensor) {
        guard positions >= 0, positions <= 1 << 20 else { throw PEFTError(.argument, "a position of \(positions - 1); it must be from 0 to 1048575") }
        let result: Result<(cosines: Tensor, sines: Tensor), PEFTError> = state.withLock { state in
            let isLong = border.map { positions > $0 } ?? false
            let present = isLong ? state.long : state.short
            if let present, present.cosines.rows >= positions { return .success(present) }
            do throws(PEFTError) {
                let fresh = try make(max(positions, 512, (present?.cosines.rows ?? 0) * 2), isLong ? longFrequencies : frequencies)
                if isLong { state.long = fresh } else { state.short = fresh }
                return .success(fresh)
            } catch {
                return .failure(error)
            }
        }
        return try result.get()
    }

    /// The table for a pass.
    /// - Throws: `.unsupported` when a session grows over the border: the keys it holds were turned by other angles.
    func table(for context: ForwardContext) throws(PEFTError) -> (cosines: Tensor, sines: Tensor) {
        if let border, context.positionCount > border, let short = context.caches.first(where: { $0.length > 0 && $0.length <= border }) {
            throw PEFTError(
                .unsupported, "the session holds \(short.length) tokens and would hold \(context.positionCount): this model's positions change beyond \(border) tokens (longrope); read the whole text in a new session")
        }
        return try table(positions: context.positionCount)
    }

    /// Angles are rounded to f32 before the cosine, as in transformers.
    private func make(_ positions: Int, _ frequencies: [Float]) throws(PEFTError) -> (cosines: Tensor, sines: Tensor) {
        let cosines = try Tensor(engine, [positions, frequencies.count], .f32, .weights)
        let sines = try Tensor(engine, [positions, frequencies.count], .f32, .weights)
        unsafe cosines.withMutableFloats { cosines in
            unsafe sines.withMutableFloats { sines in
                for index in 0..<min(cosines.count, sines.count) {
                    let angle = Float(index / frequencies.count) * frequencies[index % frequencies.count]
                    unsafe cosines[index] = cosf(angle) * factor
                    unsafe sines[index] = sinf(angle) * factor
                }
            }
        }
        return (cosines, sines)
    }
}
