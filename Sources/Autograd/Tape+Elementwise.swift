internal import Kernels
package import Platform
package import Tensors

extension Tape {
    /// `a + b`, same shape and type. Both are consumed: the sum is written over one of them when nobody else uses it.
    package func add(_ a: consuming Variable, _ b: consuming Variable) throws(PEFTError) -> Variable {
        var (a, b) = (a, b)
        let count = a.value.count
        try require(b.value.count == count && b.value.dtype == a.value.dtype, "add: \(a.value.dtype.name) \(a.shape) and \(b.value.dtype.name) \(b.shape)")
        let y = b.value.hasStorageAlone() ? try b.value.reshaped(a.shape) : try reused(&a)
        engine.parallel(engine.shares(count)) { part, parts in
            unsafe pk_add(engine.level, y.dtype.rawValue, a.value.pointer, b.value.pointer, y.pointer, count, part, parts)
        }
        let output = result(y, of: a, b)
        record(output) { [engine, aSlot = a.slot, bSlot = b.slot] dY throws(PEFTError) in
            try aSlot?.add(dY, engine)
            try bSlot?.add(dY, engine)
        }
        return output
    }

    /// `a · b` elementwise, same shape and type. Keeps what the other's gradient needs.
    package func multiply(_ a: Variable, _ b: Variable) throws(PEFTError) -> Variable {
        let (count, act) = (a.value.count, a.value.dtype.rawValue)
        try require(b.value.count == count && b.value.dtype == a.value.dtype, "multiply: \(a.value.dtype.name) \(a.shape) and \(b.value.dtype.name) \(b.shape)")
        let y = try Tensor(engine, a.shape, a.value.dtype)
        engine.parallel(engine.shares(count)) { part, parts in
            unsafe pk_mul(engine.level, act, a.value.pointer, b.value.pointer, y.pointer, count, part, parts)
        }
        let output = result(y, of: a, b)
        let (left, right) = (b.needsGradient ? a.value : nil, a.needsGradient ? b.value : nil)
        record(output) { [engine, aSlot = a.slot, bSlot = b.slot] dY throws(PEFTError) in
            for (slot, other) in [(aSlot, right), (bSlot, left)] {
                guard let slot, let other else { continue }
                let product = try Tensor(engine, slot.shape, slot.dtype)
                engine.parallel(engine.shares(count)) { part, parts in
                    unsafe pk_mul(engine.level, act, dY.pointer, other.pointer, product.pointer, count, part, parts)
                }
                try slot.add(product, engine)
            }
        }
        return output
    }

    /// `factor · x`.
    package func scaled(_ x: Variable, by factor: Float) throws(PEFTError) -> Variable {
        let y = try Tensor(engine, x.shape, x.value.dtype)
        engine.axpby(factor, x.value, 0, into: y)
        let output = result(y, of: x)
        record(output) { [engine, slot = x.slot] dY throws(PEFTError) in try slot?.add(factor, times: dY, engine) }
        return output
    }

    /// `y[r,c] = x[r,c]·scale[c] + shift[c]`; `scale`, `shift` f32 `[n]` or nil (1, 0). Keeps `x` (compact, or
    /// how to get it back) only for a trainable `scale`; users of the result then compute it again instead of keeping it.
    package func scaleColumns(_ x: Variable, scale: Variable?, shift: Variable? = nil) throws(PEFTError) -> Variable {
        for vector in [scale, shift] {
            guard let vector else { continue }
            try require(vector.value.count == x.value.columns && vector.value.dtype == .f32, "scaleColumns: \(vector.value.dtype.name) \(vector.shape) for \(x.shape)")
        }
        let y = try Tensor(engine, x.shape, x.value.dtype)
        engine.scaleColumns(x.value, scale?.value, shift?.value, into: y)
        let constant = Variable(x.value)
        var output = result(y, of: x, scale ?? constant, shift ?? constant)
        let kept = isRecording && scale?.slot != nil ? recipe(of: try compact(x)) : nil
        output.recipe = kept.map { [engine, scale = scale?.value, shift = shift?.value] kept in
            Recipe { () throws(PEFTError) in
                let x = try kept.result(), y = try Tensor(engine, x.shape, x.dtype)
                engine.scaleColumns(x, scale, shift, into: y)
                return y
            }
        }
        record(output) { [engine, xSlot = x.slot, scaleSlot = scale?.slot, shiftSlot = shift?.slot, scale = scale?.value] dY throws(PEFTError) in
            if let scaleSlot, let kept { engine.addColumnSums(of: dY, times: try kept.result(), to: try scaleSlot.sum(engine)) }
            if let shiftSlot { engine.addColumnSums(of: dY, to: try shiftSlot.sum(engine)) }
            guard let xSlot else { return }
            let (dX, accumulate) = try xSlot.buffer(engine)
            engine.scaleColumns(dY, scale, nil, into: dX, accumulate: accumulate)
        }
        return output
    }

    /// Columns turned in pairs: `y[:,c] = cosine[c]·x[:,c] + sine[c]·x[:,partners[c]]`; `cosine`, `sine` f32 `[n]`. Keeps `x`, compact;
    /// users of the result compute it again.
    package func turnColumns(_ x: Variable, cosine: Variable, sine: Variable, partners: ColumnMap) throws(PEFTError) -> Variable {
        let n = x.value.columns
        try require(cosine.value.count == n && sine.value.count == n && partners.count == n && partners.width == n, "turnColumns: \(n) columns, \(partners.count) partners")
        let turned = { [engine, cosine = cosine.value, sine = sine.value] (x: Tensor) throws(PEFTError) -> Tensor in
            let y = try Tensor(engine, x.shape, x.dtype)
            engine.scaleColumns(try engine.gatherColumns(x, partners), sine, nil, into: y)
            engine.scaleColumns(x, cosine, nil, into: y, accumulate: true)
            return y
        }
        var output = result(try turned(x.value), of: x, cosine, sine)
        let kept = isRecording && (cosine.needsGradient || sine.needsGradient) ? recipe(of: try compact(x)) : nil
        output.recipe = kept.map { kept in Recipe { () throws(PEFTError) in try turned(try kept.result()) } }
        record(output) { [engine, xSlot = x.slot, cSlot = cosine.slot, sSlot = sine.slot, cosine = cosine.value, sine = sine.value] dY throws(PEFTError) in
            if let kept {
                let x = try kept.result()
                if let cSlot { engine.addColumnSums(of: dY, times: x, to: try cSlot.sum(engine)) }
                if let sSlot { engine.addColumnSums(of: dY, times: try engine.gatherColumns(x, partners), to: try sSlot.sum(engine)) }
            }
            guard let xSlot else { return }
            let turned = try Tensor(engine, dY.shape, dY.dtype)
            engine.scaleColumns(dY, sine, nil, into: turned)
            let dX = try engine.scatterColumns(turned, partners)
            engine.scaleColumns(dY, cosine, nil, into: dX, accumulate: true)
            try xSlot.add(dX, engine)
        }
        return output
    }

    /// `y[r,:] = x[r,:]·factors[r]`; `factors` f32 `[rows]`. A gradient to `factors` is the row sum of dY ⊙ x.
    package func scaleRows(_ x: Variable, _ factors: Variable) throws(PEFTError) -> Variable {
        let (rows, n) = (x.value.rows, x.value.columns)
        try require(factors.value.count == rows && factors.value.dtype == .f32, "scaleRows: \(factors.value.dtype.name) \(factors.shape) for \(x.shape)")
        let y = try Tensor(engine, x.shape, x.value.dtype)
        engine.scaleRows(x.value, factors.value, into: y)
        let output = result(y, of: x, factors)
        let kept = factors.needsGradient ? x.value : nil
        record(output) { [engine, xSlot = x.slot, factorSlot = factors.slot, factors = factors.value] dY throws(PEFTError) in
            if let factorSlot, let kept {
                // Row sums as a product with ones: (dY ⊙ x)[rows, n] · 1[1, n]ᵀ, in f32.
                let product = try Tensor(engine, [rows, n], kept.dtype)
                engine.parallel(engine.shares(kept.count)) { part, parts in
                    unsafe pk_mul(engine.level, kept.dtype.rawValue, dY.pointer, kept.pointer, product.pointer, kept.count, part, parts)
                }
                let ones = try Tensor(engine, [Float](repeating: 1, count: n), shape: [1, n])
                let (sum, accumulate) = try factorSlot.buffer(engine)
                try engine.multiply(.forward, product, ones, into: try sum.reshaped([rows, 1]), compute: .f32, accumulate: accumulate)
            }
            guard let xSlot else { return }
            let dX = try Tensor(engine, xSlot.shape, xSlot.dtype)
            engine.scaleRows(dY, factors, into: dX)
            try xSlot.add(dX, engine)
        }
        return output
    }

    /// The same values in another type (f32 or bf16).
    package func cast(_ x: Variable, to dtype: DType) throws(PEFTError) -> Variable {
        guard x.value.dtype != dtype else { return x }
        let output = result(try x.value.converted(to: dtype, engine), of: x)
        record(output) { [engine, slot = x.slot] dY throws(PEFTError) in
            guard let slot else { return }
            try slot.add(try dY.converted(to: slot.dtype, engine), engine)
        }
        return output
    }

    /// The same values under another shape of the same count; no copy.
    package func reshaped(_ x: Variable, _ shape: [Int]) throws(PEFTError) -> Variable {
        var output = result(try x.value.reshaped(shape), of: x)
        output.recipe = x.recipe.map { recipe in Recipe { () throws(PEFTError) in try recipe.result().reshaped(shape) } }
        record(output) { [engine, slot = x.slot] dY throws(PEFTError) in try slot?.add(dY, engine) }
        return output
    }
}

extension Engine {
    /// `sums[c] += Σ_r x[r,c] (· factors[r,c])`; `sums` f32.
    func addColumnSums(of x: Tensor, times factors: Tensor? = nil, to sums: Tensor) {
        parallel(shares(x.count)) { part, parts in
            unsafe pk_column_sums(level, x.dtype.rawValue, x.pointer, factors.map { unsafe $0.pointer }, sums.floatPointer, Int64(x.rows), Int64(x.columns), part, parts)
        }
    }

    func scaleColumns(_ x: Tensor, _ scale: Tensor?, _ shift: Tensor?, into y: Tensor, accumulate: Bool = false) {
        parallel(shares(x.count)) { part, parts in
            unsafe pk_scale_columns(
                level, x.dtype.rawValue, x.pointer, scale.floatPointer, shift.floatPointer, y.pointer, accumulate ? 1 : 0, Int64(x.rows), Int64(x.columns), part,
                parts)
        }
    }

    func scaleRows(_ x: Tensor, _ factors: Tensor, into y: Tensor) {
        parallel(shares(x.count)) { part, parts in
            unsafe pk_scale_rows(level, x.dtype.rawValue, x.pointer, factors.floatPointer, y.pointer, Int64(x.rows), Int64(x.columns), part, parts)
        }
    }
}
