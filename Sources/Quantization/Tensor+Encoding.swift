internal import Kernels
package import Platform
package import Tensors

extension Tensor {
    /// A copy in any weight format, from any weight format: the inverse of `converted(to:)`, which decodes. Quantised rows
    /// are encoded as ggml's reference does, each on its own, coded formats as bitsandbytes does; what is quantised already is
    /// decoded first; int8 rows stay as they are, and are shared.
    /// - Throws: `.format` when a row is not a whole number of blocks, `.unsupported` for a type that is no weight format,
    ///   `.numeric` for values that a coded format cannot hold.
    package func encoded(
        as dtype: DType, scaling: BlockScaling = .standard, _ engine: Engine, _ category: MemoryCategory = .weights
    ) throws(PEFTError) -> Tensor {
        guard !dtype.isFloat else { return try converted(to: dtype, engine, category) }
        if dtype.isCoded { return try CodedMatrix(encoding: self, as: dtype, scaling, engine).tensor(engine, category) }
        if dtype == .int8, self.dtype == .int8 { return multiplied(scaling) }
        let result = try Tensor(engine, shape, dtype, category, scaling: dtype == .int8 ? scaling : .standard)
        try forEachBand(engine) { (band, start) throws(PEFTError) in
            try band.encodeRows(into: try result.rows(start..<start + band.rows), engine)
        }
        return result
    }

    /// NaN and infinity where there are such.
    package func largestMagnitude(_ engine: Engine) throws(PEFTError) -> Float {
        var largest: Float = 0
        try forEachBand(engine) { (band, _) throws(PEFTError) in
            unsafe band.withFloats { values in
                for unsafe value in unsafe values where !(value.magnitude <= largest) { largest = value.isNaN ? .infinity : value.magnitude }
            }
        }
        return largest
    }

    /// Decodes at most about a million values at a time (a multiple of `step` rows) and hands them over as f32.
    func forEachBand(_ engine: Engine, step: Int = 1, _ body: (_ band: Tensor, _ firstRow: Int) throws(PEFTError) -> Void) throws(PEFTError) {
        let height = max(1, (1 << 20) / max(columns, 1) / step) * step
        for start in stride(from: 0, to: rows, by: height) {
            let band = try rows(start..<min(start + height, rows))
            try body(dtype == .f32 ? band : try band.converted(to: .f32, engine, .scratch), start)
        }
    }

    /// Encodes f32 rows; rows are divided over the threads, since a row's blocks depend on nothing else.
    private func encodeRows(into result: Tensor, _ engine: Engine) throws(PEFTError) {
        guard dtype == .f32, unsafe pk_format_of(result.dtype.rawValue)?.pointee.encode != nil else {
            throw PEFTError(.unsupported, "encoding \(dtype.name) as \(result.dtype.name)")
        }
        engine.parallel(engine.shares(count)) { part, parts in
            unsafe pk_encode(
                engine.level, result.dtype.rawValue, pointer.assumingMemoryBound(to: Float.self), Int64(rows), Int64(columns), result.pointer, Int64(result.rowBytes), part, parts)
        }
    }
}
