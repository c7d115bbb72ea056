internal import Kernels
package import Platform
package import Tensors

extension Tape {
    /// Rotary positions: rotates the heads of `x` `[tokens, heads·headDim]` by the angles of `positions` (i32 `[tokens]`).
    ///
    /// - Parameters:
    ///   - rotary: leading values of each head that turn (≤ headDim); the rest pass.
    ///   - cos, sin: f32 `[positions, rotary/2]`.
    ///   - interleaved: pairs (2i, 2i+1) instead of (i, i + rotary/2).
    /// `x` is consumed: turned in place when nobody else uses it. Keeps nothing: the derivative turns back.
    /// - Throws: `.argument` for a position beyond the tables.
    package func rope(
        _ x: consuming Variable, heads: Int, headDim: Int, rotary: Int, cos: Tensor, sin: Tensor, positions: Tensor, interleaved: Bool = false
    ) throws(PEFTError) -> Variable {
        var x = x
        try require(
            x.value.columns == heads * headDim && rotary <= headDim && rotary % 2 == 0 && positions.count == x.value.rows && cos.columns == rotary / 2
                && cos.shape == sin.shape && cos.dtype == .f32 && sin.dtype == .f32,
            "rope: x \(x.shape), \(heads) heads of \(headDim), \(rotary) rotary, tables \(cos.shape), positions \(positions.shape)")
        try checkIndices(positions, in: 0..<cos.rows, "position")
        let y = try reused(&x)
        let rotation = Rotation(heads: heads, headDim: headDim, rotary: rotary, cos: cos, sin: sin, positions: positions, interleaved: interleaved)
        rotation.turn(x.value, into: y, inverse: false, engine)
        var output = result(y, of: x)
        output.recipe = x.recipe.map { [engine] recipe in
            Recipe { () throws(PEFTError) in
                let x = try recipe.result(), y = try Tensor(engine, x.shape, x.dtype)
                rotation.turn(x, into: y, inverse: false, engine)
                return y
            }
        }
        record(output) { [engine, slot = x.slot] dY throws(PEFTError) in
            let dX = try Tensor(engine, dY.shape, dY.dtype)
            rotation.turn(dY, into: dX, inverse: true, engine)
            try slot?.add(dX, engine)
        }
        return output
    }
}

private struct Rotation {
    let heads: Int, headDim: Int, rotary: Int
    let cos: Tensor, sin: Tensor, positions: Tensor
    let interleaved: Bool

    func turn(_ x: Tensor, into y: Tensor, inverse: Bool, _ engine: Engine) {
        engine.parallel(engine.shares(x.count)) { part, parts in
            unsafe pk_rope(
                engine.level, x.dtype.rawValue, x.pointer, y.pointer, cos.floatPointer, sin.floatPointer, positions.int32Pointer, Int64(x.rows),
                Int64(heads), Int64(headDim), Int64(rotary), Int64(x.columns), Int64(x.columns), interleaved ? 1 : 0, inverse ? 1 : 0, part, parts)
        }
    }
}
