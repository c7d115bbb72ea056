package import Platform
internal import Glibc
internal import Kernels

extension Tensor {
    /// All bytes zero.
    package static func zeros(_ engine: Engine, _ shape: [Int], _ dtype: DType = .f32, _ category: MemoryCategory = .activations) throws(PEFTError) -> Tensor {
        let tensor = try Tensor(engine, shape, dtype, category)
        tensor.clear()
        return tensor
    }

    /// f32 copy of an array.
    package init(_ engine: Engine, _ values: [Float], shape: [Int], _ category: MemoryCategory = .activations) throws(PEFTError) {
        try self.init(engine, shape, .f32, category)
        guard values.count == count else { throw PEFTError(.argument, "\(values.count) values for a tensor \(shape)") }
        unsafe withMutableFloats { buffer in
            for (index, value) in values.enumerated() where index < buffer.count { unsafe buffer[index] = value }
        }
    }

    /// i32 copy of an array.
    package init(_ engine: Engine, _ values: [Int32], shape: [Int], _ category: MemoryCategory = .activations) throws(PEFTError) {
        try self.init(engine, shape, .i32, category)
        guard values.count == count else { throw PEFTError(.argument, "\(values.count) values for a tensor \(shape)") }
        guard storage.isReal else { return }
        unsafe values.withUnsafeBytes { unsafe pointer.copyMemory(from: $0.baseAddress ?? UnsafeRawPointer(pointer), byteCount: $0.count) }
    }

    /// u8 copy of an array.
    package init(_ engine: Engine, bytes: [UInt8], shape: [Int], _ category: MemoryCategory = .activations) throws(PEFTError) {
        try self.init(engine, shape, .u8, category)
        guard bytes.count == count else { throw PEFTError(.argument, "\(bytes.count) values for a tensor \(shape)") }
        guard storage.isReal else { return }
        unsafe bytes.withUnsafeBytes { unsafe pointer.copyMemory(from: $0.baseAddress ?? UnsafeRawPointer(pointer), byteCount: $0.count) }
    }

    /// Sets all bytes to zero (nothing when planning).
    package func clear() {
        if storage.isReal && storage.isWritable { unsafe memset(pointer, 0, byteCount) }
    }

    /// A copy in new memory, decoded or converted to `dtype` (a float; any weight format as source).
    package func converted(to dtype: DType, _ engine: Engine, _ category: MemoryCategory = .activations) throws(PEFTError) -> Tensor {
        let source = self
        guard source.dtype.isWeightFormat, dtype.isFloat else {
            throw PEFTError(.unsupported, "converting \(source.dtype.name) to \(dtype.name)")
        }
        let result = try Tensor(engine, shape, dtype, category)
        if source.dtype.isFloat {
            engine.parallel(engine.shares(count)) { part, parts in
                unsafe pk_convert(engine.level, source.pointer, source.dtype.rawValue, result.pointer, dtype.rawValue, source.count, part, parts)
            }
        } else if dtype == .f32 {
            engine.parallel(engine.shares(count)) { part, parts in
                unsafe pk_decode(
                    engine.level, source.dtype.rawValue, source.pointer, Int64(source.rowBytes), Int64(source.rows), Int64(source.columns),
                    result.pointer.assumingMemoryBound(to: Float.self), part, parts)
            }
        } else {
            return try converted(to: .f32, engine, .scratch).converted(to: dtype, engine, category)
        }
        return result
    }

    /// A matrix in f32 or bf16 the other way round, in new memory.
    package func transposed(_ engine: Engine) throws(PEFTError) -> Tensor {
        guard dtype == .f32 || dtype == .bf16 else { throw PEFTError(.internal, "transposing \(dtype.name)") }
        let result = try Tensor(engine, [columns, rows], dtype, .scratch)
        engine.parallel(engine.shares(count)) { part, parts in
            unsafe pk_turn_rows(dtype.rawValue, pointer, result.pointer, 1, Int64(rows), Int64(columns), part, parts)
        }
        return result
    }

    /// The values as floats (decoded), for tests, reports and hosts.
    package func floats(_ engine: Engine) throws(PEFTError) -> [Float] {
        let plain = dtype == .f32 ? self : try converted(to: .f32, engine, .scratch)
        return unsafe plain.withFloats { unsafe Array($0) }
    }
}
