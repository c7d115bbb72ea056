internal import Kernels
package import Platform
package import Tensors

/// A matrix in a coded format (nf4, fp4, blockwise8) as bitsandbytes keeps it: codes of the flattened values, and a scale for each
/// block of them. The bytes are those of bitsandbytes 0.50; the tensor that computations read has the same in rows (coded.h).
package struct CodedMatrix: Sendable {
    package let dtype: DType
    package let shape: [Int]
    package let scaling: BlockScaling
    /// u8: a byte a value, or two values a byte, the first in the high bits.
    package let codes: Tensor
    /// f32 `[blocks]`; doubled: u8 codes of blockwise8.
    package let scales: Tensor
    /// Of a doubled one f32, a scale for each 256 of the scales: scale = value(code)·nested + offset.
    package let nested: Tensor?
    package let offset: Float

    /// Encodes a tensor of any weight format, a band of decoded rows at a time.
    /// - Throws: `.numeric` for values that are not finite: one would make its whole block NaN.
    package init(encoding tensor: Tensor, as dtype: DType, _ scaling: BlockScaling, _ engine: Engine) throws(PEFTError) {
        let count = tensor.count
        let codes = try Tensor(engine, [CodedMatrix.codeBytes(dtype, count)], .u8, .scratch)
        let scales = try Tensor(engine, [scaling.blocks(of: count)], .f32, .scratch)
        // Bands that begin with a block.
        let step = scaling.blockSize >> min(tensor.columns.trailingZeroBitCount, scaling.shift)
        try tensor.forEachBand(engine, step: step) { (band, row) throws(PEFTError) in
            let start = row * tensor.columns
            engine.parallel(engine.shares(band.count)) { part, parts in
                unsafe pk_coded_encode(
                    dtype.rawValue, band.floats, Int64(band.count), Int64(scaling.blockSize), scales.floats + start / scaling.blockSize,
                    codes.bytes + CodedMatrix.codeBytes(dtype, start), part, parts)
            }
        }
        (self.dtype, shape, self.scaling, self.codes) = (dtype, tensor.shape, scaling, codes)
        let all = try scales.floats(engine)
        guard all.allSatisfy(\.isFinite) else { throw PEFTError(.numeric, "values that are not finite cannot be \(dtype.name)") }
        let sharesFirst = dtype != .blockwise8 && scaling.sharesFirst(columns: tensor.columns)
        guard scaling.isDouble, !all.isEmpty else {
            if sharesFirst { scales.fill { _ in all[0] } }
            (self.scales, nested, offset) = (scales, nil, 0)
            return
        }
        // Their mean is taken off first: scales are positive, codes have a sign.
        offset = Float(all.reduce(0.0) { $0 + Double($1) } / Double(all.count))
        let mean = offset
        scales.fill { value in value - mean }
        let size = CodedMatrix.nestedBlock
        let (outer, inner) = (try Tensor(engine, [(all.count + size - 1) / size], .f32, .scratch), try Tensor(engine, [all.count], .u8, .scratch))
        unsafe pk_coded_encode(DType.blockwise8.rawValue, scales.floats, Int64(all.count), Int64(size), outer.floats, inner.bytes, 0, 1)
        (self.scales, nested) = (inner, outer)
        if sharesFirst {
            inner.fillBytes(unsafe inner.bytes[0])
            let first = unsafe outer.floats[0]
            outer.fill { _ in first }
        }
    }

    /// From what a file holds.
    /// - Throws: `.format` when sizes do not fit each other; `.numeric` for scales that are not finite.
    package init(
        dtype: DType, shape: [Int], scaling: BlockScaling, codes: Tensor, scales: Tensor, nested: Tensor?, offset: Float, _ engine: Engine
    ) throws(PEFTError) {
        var count = 1
        for size in shape { count = try checkedProduct(count, size, of: "\(dtype.name) \(shape)") }
        let blocks = scaling.blocks(of: count)
        guard codes.dtype == .u8, codes.count == CodedMatrix.codeBytes(dtype, count) else {
            throw PEFTError(.format, "\(codes.count) bytes of codes (\(codes.dtype.name)); \(dtype.name) \(shape) takes \(CodedMatrix.codeBytes(dtype, count)) (u8)")
        }
        guard scales.dtype == (scaling.isDouble ? .u8 : .f32), scales.count == blocks, (nested != nil) == scaling.isDouble else {
            throw PEFTError(.format, "\(scales.count) scales (\(scales.dtype.name)); \(shape) in blocks of \(scaling.blockSize) takes \(blocks) (\(scaling.isDouble ? "u8" : "f32"))")
        }
        let outer = (blocks + CodedMatrix.nestedBlock - 1) / CodedMatrix.nestedBlock
        guard nested.map({ $0.dtype == .f32 && $0.count == outer }) ?? true else {
            throw PEFTError(.format, "\(nested?.count ?? 0) scales of scales (\(nested?.dtype.name ?? "")); \(blocks) scales take \(outer) (f32)")
        }
        guard try (nested ?? scales).floats(engine).allSatisfy(\.isFinite), offset.isFinite else { throw PEFTError(.numeric, "a scale is not finite") }
        (self.dtype, self.shape, self.scaling, self.codes, self.scales, self.nested, self.offset) = (dtype, shape, scaling, codes, scales, nested, offset)
    }

    /// Takes a tensor of a coded format apart.
    package init(_ tensor: Tensor, _ engine: Engine) throws(PEFTError) {
        (dtype, shape, scaling) = (tensor.dtype, tensor.shape, tensor.scaling)
        let blocks = scaling.blocks(of: tensor.count)
        codes = try Tensor(engine, [CodedMatrix.codeBytes(dtype, tensor.count)], .u8, .scratch)
        scales = try Tensor(engine, [blocks], scaling.isDouble ? .u8 : .f32, .scratch)
        nested = scaling.isDouble ? try Tensor(engine, [(blocks + CodedMatrix.nestedBlock - 1) / CodedMatrix.nestedBlock], .f32, .scratch) : nil
        offset = scaling.isDouble && tensor.rows > 0 ? unsafe pk_coded_offset(tensor.pointer) : 0
        // What an odd number of values leaves of the last byte stands for 0.
        let zero = (0..<16).first { code in unsafe pk_coded_values(dtype.rawValue)[code] == 0 } ?? 0
        codes.fillBytes(UInt8(zero * 17))
        unsafe withParts { parts in
            for row in 0..<tensor.rows {
                unsafe pk_coded_read(tensor.pointer + row * tensor.rowBytes, Int64(row), Int64(tensor.columns), parts)
            }
        }
    }

    /// As computations read it.
    package func tensor(_ engine: Engine, _ category: MemoryCategory = .weights) throws(PEFTError) -> Tensor {
        let result = try Tensor(engine, shape, dtype, category, scaling: scaling)
        engine.parallel(engine.shares(result.count)) { part, parts in
            unsafe withParts { own in
                for row in result.rows * Int(part) / Int(parts)..<result.rows * (Int(part) + 1) / Int(parts) {
                    unsafe pk_coded_write(own, Int64(row), Int64(result.columns), Int64(result.rowBytes), result.pointer + row * result.rowBytes)
                }
            }
        }
        return result
    }

    /// The table of the codes, f32.
    package func values(_ engine: Engine) throws(PEFTError) -> Tensor { try CodedMatrix.values(of: dtype, engine) }

    package static func values(of dtype: DType, _ engine: Engine) throws(PEFTError) -> Tensor {
        let table = unsafe UnsafeBufferPointer(start: pk_coded_values(dtype.rawValue), count: dtype == .blockwise8 ? 256 : 16)
        return try Tensor(engine, unsafe Array(table), shape: [table.count], .scratch)
    }

    /// Scales that share a scale.
    package static let nestedBlock = 256

    package static func codeBytes(_ dtype: DType, _ count: Int) -> Int { dtype == .blockwise8 ? count : (count + 1) / 2 }

    private func withParts(_ body: (UnsafePointer<pk_coded>) -> Void) {
        var parts = unsafe pk_coded()
        unsafe (parts.type, parts.shift, parts.blocks) = (dtype.rawValue, Int32(scaling.shift), Int64(scales.count))
        unsafe parts.codes = UnsafePointer(codes.bytes)
        if let nested {
            unsafe (parts.scale_codes, parts.nested, parts.offset) = (UnsafePointer(scales.bytes), UnsafePointer(nested.floats), offset)
        } else {
            unsafe parts.scales = UnsafePointer(scales.floats)
        }
        unsafe body(&parts)
    }
}

extension Tensor {
    fileprivate var floats: UnsafeMutablePointer<Float> { unsafe pointer.assumingMemoryBound(to: Float.self) }
    fileprivate var bytes: UnsafeMutablePointer<UInt8> { unsafe pointer.assumingMemoryBound(to: UInt8.self) }

    fileprivate func fill(_ change: (Float) -> Float) {
        unsafe withMutableFloats { values in
            for index in values.indices { unsafe values[index] = change(values[index]) }
        }
    }

    fileprivate func fillBytes(_ byte: UInt8) {
        for index in 0..<byteCount where storage.isReal { unsafe bytes[index] = byte }
    }
}
