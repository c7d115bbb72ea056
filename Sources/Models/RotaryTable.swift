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
    private let engine: Engine
    private let state = Mutex<(cosines: Tensor, sines: Tensor)?>(nil)

    package init(_ engine: Engine, frequencies: [Float]) {
        self.engine = engine
        self.frequencies = frequencies
        dimension = frequencies.count * 2
    }

    /// f32 `[n, dimension/2]` each, n ≥ `positions`.
    package func table(positions: Int) throws(PEFTError) -> (cosines: Tensor, sines: Tensor) {
        guard positions >= 0, positions <= 1 << 20 else { throw PEFTError(.argument, "a position of \(positions - 1); it must be from 0 to 1048575") }
        let result: Result<(cosines: Tensor, sines: Tensor), PEFTError> = state.withLock { state in
            if let state, state.cosines.rows >= positions { return .success(state) }
            do throws(PEFTError) {
                let fresh = try make(max(positions, 512, (state?.cosines.rows ?? 0) * 2))
                state = fresh
                return .success(fresh)
            } catch {
                return .failure(error)
            }
        }
        return try result.get()
    }

    /// Angles are rounded to f32 before the cosine, as in transformers.
    private func make(_ positions: Int) throws(PEFTError) -> (cosines: Tensor, sines: Tensor) {
        let cosines = try Tensor(engine, [positions, frequencies.count], .f32, .weights)
        let sines = try Tensor(engine, [positions, frequencies.count], .f32, .weights)
        unsafe cosines.withMutableFloats { cosines in
            unsafe sines.withMutableFloats { sines in
                for index in 0..<min(cosines.count, sines.count) {
                    let angle = Float(index / frequencies.count) * frequencies[index % frequencies.count]
                    unsafe cosines[index] = cosf(angle)
                    unsafe sines[index] = sinf(angle)
                }
            }
        }
        return (cosines, sines)
    }
}
