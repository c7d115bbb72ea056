internal import Kernels
package import Platform
package import Tensors

extension Tape {
    /// Rows `ids` (i32, any shape) of a frozen table `[num, dim]` of any weight format, times `scale`: `[count, dim]`.
    /// - Throws: `.argument` for an id the table does not have.
    package func embedding(_ ids: Tensor, frozen table: Tensor, scale: Float = 1) throws(PEFTError) -> Variable {
        try embedding(ids, Variable(table), scale: scale)
    }

    /// The same with a table that may be trainable (f32).
    package func embedding(_ ids: Tensor, _ table: Variable, scale: Float = 1) throws(PEFTError) -> Variable {
        try checkIndices(ids, in: 0..<table.value.rows, "token id")
        let y = try Tensor(engine, [ids.count, table.value.columns], precision.activation)
        engine.gatherRows(table.value, ids, scale: scale, into: y)
        let output = result(y, of: table)
        record(output) { [engine, slot = table.slot] dY throws(PEFTError) in
            guard let slot else { return }
            engine.scatterAddRows(dY, ids, scale: scale, into: try slot.sum(engine))
        }
        return output
    }

    /// LoRA of an embedding: `y += scale · (Aᵀ)[ids]·Bᵀ`; `a` `[r, num]`, `b` `[dim, r]`, both f32. `y` is consumed.
    package func addLowRankEmbedding(to y: consuming Variable, ids: Tensor, a: Variable, b: Variable, scale: Float) throws(PEFTError) -> Variable {
        var y = y
        let rank = a.value.rows
        try require(b.value.columns == rank && y.value.rows == ids.count && a.value.dtype == .f32, "low-rank embedding: A \(a.shape), B \(b.shape), y \(y.shape)")
        try checkIndices(ids, in: 0..<a.value.columns, "token id")
        let h = try Tensor(engine, [ids.count, rank])
        engine.gatherColumns(a.value, ids, into: h)
        let sum = try owned(&y)
        let compute = compute(for: sum)
        try engine.multiply(.forward, h, b.value, into: sum, compute: compute, alpha: scale, accumulate: true)
        let output = result(sum, of: y, a, b)
        record(output) { [engine, ySlot = y.slot, aSlot = a.slot, bSlot = b.slot, b = b.value] dY throws(PEFTError) in
            if let bSlot {
                let (dB, accumulate) = try bSlot.buffer(engine)
                try engine.multiply(.weightGradient, dY, h, into: dB, compute: compute, alpha: scale, accumulate: accumulate)
            }
            if let aSlot {
                let dH = try Tensor(engine, [dY.rows, rank])
                try engine.multiply(.inputGradient, dY, b, into: dH, compute: compute, alpha: scale)
                engine.scatterAddColumns(dH, ids, into: try aSlot.sum(engine))
            }
            try ySlot?.add(dY, engine)
        }
        return output
    }
}

extension Engine {
    /// `y[i,:] = table[ids[i],:]·scale`, decoded. The ids are valid.
    func gatherRows(_ table: Tensor, _ ids: Tensor, scale: Float = 1, into y: Tensor) {
        parallel(shares(y.count)) { part, parts in
            unsafe pk_gather_rows(
                level, table.dtype.rawValue, table.pointer, Int64(table.rowBytes), Int64(table.columns), ids.int32Pointer, Int64(ids.count), scale,
                y.dtype.rawValue, y.pointer, part, parts)
        }
    }

    /// `table[ids[i],:] += scale·d[i,:]`; `table` f32.
    func scatterAddRows(_ d: Tensor, _ ids: Tensor, scale: Float = 1, into table: Tensor) {
        parallel(shares(d.count)) { part, parts in
            unsafe pk_scatter_add_rows(
                level, d.dtype.rawValue, d.pointer, ids.int32Pointer, Int64(ids.count), Int64(d.columns), scale, table.floatPointer, part, parts)
        }
    }

    /// `h[i,ρ] = a[ρ, ids[i]]`, all f32.
    fileprivate func gatherColumns(_ a: Tensor, _ ids: Tensor, into h: Tensor) {
        let (rank, num) = (a.rows, a.columns)
        parallel(1) { _, _ in
            let (from, to, ids, count) = unsafe (a.floatPointer, h.floatPointer, ids.int32Pointer, ids.count)
            for i in 0..<count {
                for r in 0..<rank { unsafe to[i * rank + r] = unsafe from[r * num + Int(ids[i])] }
            }
        }
    }

    /// `a[ρ, ids[i]] += d[i,ρ]`, all f32.
    fileprivate func scatterAddColumns(_ d: Tensor, _ ids: Tensor, into a: Tensor) {
        let (rank, num) = (a.rows, a.columns)
        parallel(1) { _, _ in
            let (from, to, ids, count) = unsafe (d.floatPointer, a.floatPointer, ids.int32Pointer, ids.count)
            for i in 0..<count {
                for r in 0..<rank { unsafe to[r * num + Int(ids[i])] += unsafe from[i * rank + r] }
            }
        }
    }
}
