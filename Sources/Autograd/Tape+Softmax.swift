internal import Glibc
package import Platform
internal import Tensors

extension Tape {
    /// The softmax of each row of `x` `[rows, n]`, f32; entries where `mask` is 0 do not take part and become 0. With `s` the result,
    /// `dx = s·(ds − Σ s·ds)`. In plain loops: rows are short.
    /// - Parameter mask: as many values; nil: all take part.
    package func softmax(_ x: Variable, mask: [Float]? = nil) throws(PEFTError) -> Variable {
        let n = max(x.value.columns, 1)
        try require(x.value.dtype == .f32 && mask.map { $0.count == x.value.count } ?? true, "softmax of \(x.value.dtype.name) \(x.shape)")
        let y = try Tensor.zeros(engine, x.shape)
        unsafe x.value.withFloats { from in
            unsafe y.withMutableFloats { to in
                guard to.count == from.count else { return }
                for start in stride(from: 0, to: from.count, by: n) {
                    let row = (start..<start + n).filter { mask?[$0] != 0 }
                    let top = row.map { unsafe from[$0] }.max() ?? 0
                    var sum: Float = 0
                    for i in row {
                        unsafe to[i] = expf(from[i] - top)
                        unsafe sum += to[i]
                    }
                    for i in row { unsafe to[i] /= sum }
                }
            }
        }
        let output = result(y, of: x)
        record(output) { [engine, slot = x.slot] dY throws(PEFTError) in
            let dX = try Tensor.zeros(engine, y.shape)
            unsafe y.withFloats { s in
                unsafe dY.withFloats { dY in
                    unsafe dX.withMutableFloats { dX in
                        guard dX.count == s.count, dY.count == s.count else { return }
                        for start in stride(from: 0, to: s.count, by: n) {
                            var mean: Float = 0
                            for i in start..<start + n { unsafe mean += s[i] * dY[i] }
                            for i in start..<start + n { unsafe dX[i] = s[i] * (dY[i] - mean) }
                        }
                    }
                }
            }
            try slot?.add(dX, engine)
        }
        return output
    }
}
