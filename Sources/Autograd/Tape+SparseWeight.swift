internal import Kernels
package import Platform
package import Tensors

extension Tape {
    /// `y = x·(W + scale·S)ᵀ + b` of a frozen W (`[out, in]`, or `[in, out]` when `transposed`; any weight format) and a sparse S with `values`
    /// (f32 `[count]`) at `places`: one product, with a copy of W that has the change in it, in activations' type (to bf16 changed entries are rounded
    /// by chance, always the same, so that changes of less than half a step of W are there in the sum). Made again in the backward pass.
    ///
    ///     dX = dY·(W + scale·S)    dvalue = scale · Σ_rows dY[·, row]·X[·, column]
    package func linear(
        _ x: Variable, frozen w: Tensor, plus values: Variable, at places: SparsePlaces, scale: Float, bias: Variable?, transposed: Bool, as dtype: DType?
    ) throws(PEFTError) -> Variable {
        let out = transposed ? w.columns : w.rows
        try require(values.value.count == places.count && (transposed ? w.rows : w.columns) == x.value.columns, "sparse weight: x \(x.shape), W \(w.shape)")
        let changed = { [engine, type = precision.activation, values = values.value] () throws(PEFTError) in
            let copy = try w.converted(to: type, engine, .scratch)
            engine.parallel(engine.shares(places.count)) { part, parts in
                unsafe pk_add_entries(
                    type.rawValue, copy.pointer, transposed ? 1 : Int64(copy.columns), transposed ? Int64(copy.columns) : 1, places.entries,
                    values.floatPointer, scale, part, parts)
            }
            return copy
        }
        let compute = compute(for: x.value)
        let y = try Tensor(engine, [x.value.rows, out], dtype ?? x.value.dtype)
        try engine.multiply(transposed ? .inputGradient : .forward, x.value, try changed(), into: y, compute: compute, bias: bias?.value)
        let output = bias.map { result(y, of: x, values, $0) } ?? result(y, of: x, values)
        let input = values.needsGradient ? x.kept : nil
        record(output) { [engine, xSlot = x.slot, slot = values.slot, biasSlot = bias?.slot] dY throws(PEFTError) in
            if let biasSlot { engine.addColumnSums(of: dY, to: try biasSlot.sum(engine)) }
            if let slot, let input {
                let x = try input.tensor(), sums = try slot.sum(engine)
                let dY = dY.dtype == x.dtype ? dY : try dY.converted(to: x.dtype, engine, .scratch)
                try engine.addEntryGradients(x, dY, places, scale: scale, to: sums)
            }
            if let xSlot {
                let (dX, accumulate) = try xSlot.buffer(engine)
                try engine.multiply(transposed ? .forward : .inputGradient, dY, try changed(), into: dX, compute: compute, accumulate: accumulate)
            }
        }
        return output
    }
}

extension Engine {
    fileprivate func addEntryGradients(_ x: Tensor, _ dY: Tensor, _ places: SparsePlaces, scale: Float, to sums: Tensor) throws(PEFTError) {
        let parts = shares(places.count * x.rows), each = (Int(pk_entries_scratch(Int64(x.columns), Int64(dY.columns))) + 63) / 64 * 16
        let scratch = try Tensor(self, [parts, each], .f32, .scratch)
        parallel(parts) { part, parts in
            unsafe pk_entry_gradients(
                level, x.dtype.rawValue, x.pointer, Int64(x.columns), dY.pointer, Int64(dY.columns), Int64(x.rows), places.entries, scale, sums.floatPointer,
                part, parts, scratch.floatPointer + Int(part) * each)
        }
    }
}
