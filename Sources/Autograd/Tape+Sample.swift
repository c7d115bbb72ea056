internal import Kernels
package import Platform
package import Tensors

extension Tape {
    /// Standard normal numbers of the computation's stream, f32.
    package func normals(_ shape: [Int]) throws(PEFTError) -> Tensor {
        let values = try Tensor(engine, shape)
        let (count, seed, start) = (values.count, random.seed, random.skipNormals(values.count))
        engine.parallel(engine.shares(4 * count)) { part, parts in
            unsafe pk_normals(engine.level, values.floatPointer, count, seed, start, part, parts)
        }
        return values
    }

    /// `z = μ + e^(½·ln σ²)·ε`; `x` `[rows, 2n]` has μ and ln σ², `normals` f32 `[rows, n]` ε. Keeps the noise, `z − μ`:
    ///
    ///     dμ = dz    d ln σ² = ½·dz ⊙ (z − μ)
    package func sampled(_ x: Variable, _ normals: Tensor) throws(PEFTError) -> Variable {
        let (rows, n, act) = (x.value.rows, x.value.columns / 2, x.value.dtype.rawValue)
        try require(x.value.columns == 2 * n && normals.count == rows * n, "sampled: x \(x.shape), normals \(normals.shape)")
        let noise = try Tensor(engine, [rows, n], x.value.dtype), z = try Tensor(engine, [rows, n], x.value.dtype)
        engine.parallel(engine.shares(4 * z.count)) { part, parts in
            unsafe pk_sample(engine.level, act, x.value.pointer, normals.floatPointer, noise.pointer, z.pointer, Int64(rows), Int64(n), part, parts)
        }
        let output = result(z, of: x)
        record(output) { [engine, slot = x.slot] dZ throws(PEFTError) in
            let scaled = Tape(engine, .f32)
            let spread = try scaled.scaled(try scaled.multiply(Variable(dZ), Variable(noise)), by: 0.5)
            try slot?.add(try scaled.concatenateColumns([Variable(dZ), spread]).value, engine)
        }
        return output
    }
}
