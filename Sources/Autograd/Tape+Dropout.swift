internal import Kernels
package import Platform
internal import Tensors

/// One draw of inverted dropout: which elements fall is a function of (seed, position), so nothing is kept but this.
struct DropoutMask {
    let p: Float
    let start: RandomStream

    /// `y = keep ? x/(1−p) : 0` (added to `y` when `accumulate`).
    func apply(_ x: Tensor, into y: Tensor, accumulate: Bool, _ engine: Engine) {
        engine.parallel(engine.shares(x.count)) { part, parts in
            unsafe pk_dropout(
                engine.level, x.dtype.rawValue, x.pointer, y.pointer, x.count, p, start.seed, start.position, accumulate ? 1 : 0, part, parts)
        }
    }
}

extension Tape {
    /// Takes `count` positions of the random stream; nil when nothing is dropped.
    func drawMask(_ p: Float, count: Int) -> DropoutMask? {
        guard isTraining, p > 0 else { return nil }
        let mask = DropoutMask(p: min(p, 1), start: random)
        random.position &+= UInt64(count)  // Safe: a stream position wraps by definition.
        return mask
    }

    /// Inverted dropout, `x` itself unless the tape is training. `p` 1 gives zeros.
    package func dropout(_ x: Variable, _ p: Float) throws(PEFTError) -> Variable {
        guard let mask = drawMask(p, count: x.value.count) else { return x }
        let y = try Tensor(engine, x.shape, x.value.dtype)
        mask.apply(x.value, into: y, accumulate: false, engine)
        let output = result(y, of: x)
        record(output) { [engine, slot = x.slot] dY throws(PEFTError) in
            guard let slot else { return }
            let (dX, accumulate) = try slot.buffer(engine)
            mask.apply(dY, into: dX, accumulate: accumulate, engine)
        }
        return output
    }
}
