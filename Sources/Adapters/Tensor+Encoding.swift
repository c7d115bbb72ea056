internal import Kernels
internal import Platform
internal import Tensors

extension Tensor {
    /// An f32 tensor in any weight format. Quantised rows are encoded as ggml's reference does, each on its own.
    func encoded(as dtype: DType, _ engine: Engine, _ category: MemoryCategory) throws(PEFTError) -> Tensor {
        guard dtype.isQuantized else { return try converted(to: dtype, engine, category) }
        guard self.dtype == .f32, let format = unsafe pk_format_of(dtype.rawValue), let encode = unsafe format.pointee.encode else {
            throw PEFTError(.unsupported, "encoding \(self.dtype.name) as \(dtype.name)")
        }
        let result = try Tensor(engine, shape, dtype, category)
        let (source, rows) = (self, rows)
        engine.parallel(engine.shares(count)) { part, parts in
            for row in rows * Int(part) / Int(parts)..<rows * (Int(part) + 1) / Int(parts) {
                let values = unsafe source.pointer.assumingMemoryBound(to: Float.self) + row * source.columns
                unsafe encode(values, result.pointer + row * result.rowBytes, source.columns)
            }
        }
        return result
    }
}
