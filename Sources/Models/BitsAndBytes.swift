package import Checkpoints
package import Platform
internal import Quantization
package import Tensors

/// Weights as bitsandbytes writes them into safetensors files.
///
/// Four bits (and, by the same names, blockwise8):
///
///     p.weight                              u8 [bytes, 1]        codes
///     p.weight.absmax                       f32 or u8 [blocks]   scales, doubled: their codes
///     p.weight.quant_map                    f32 [16]             what codes stand for
///     p.weight.nested_absmax, .nested_quant_map                  doubled: scales of scales, what their codes stand for
///     p.weight.quant_state.bitsandbytes__nf4                     u8, JSON: shape, block size, offset …
///
/// Eight bits (LLM.int8): p.weight i8 [out, in], p.SCB f32 [out] the largest magnitude of each row, p.weight_format u8 (0: rows).
package enum BitsAndBytes {
    private static let state = ".quant_state.bitsandbytes__"
    private static let coded: [DType] = [.nf4, .fp4, .blockwise8]

    /// The format is one that bitsandbytes has.
    package static func has(_ dtype: DType) -> Bool { dtype.isCoded || dtype == .int8 }

    // MARK: Reading

    /// All tensors, those of bitsandbytes as weights in rows.
    /// - Throws: `.format` naming a tensor whose parts are missing or do not fit, `.unsupported` for tables of other values.
    package static func restored(_ source: TensorSource, _ engine: Engine) throws(PEFTError) -> TensorSource {
        var (made, used): ([String: Tensor], Set<String>) = ([:], [])
        for name in source.names {
            do throws(PEFTError) {
                if let dtype = coded.first(where: { name.hasSuffix(state + $0.name) }) {
                    let weight = String(name.dropLast((state + dtype.name).count))
                    made[weight] = try matrix(weight, dtype, source, &used, engine)
                } else if let tensor = source.peek(name), tensor.dtype == .i8, let scales = source.peek(scaleName(name)) {
                    made[name] = try rows(name, tensor, scales, source, &used, engine)
                }
            } catch {
                throw error.within("\(source.origin): '\(name)'")
            }
        }
        return try TensorSource(
            origin: source.origin, metadata: source.metadata,
            source.all.filter { !used.contains($0.name) }.map { NamedTensor($0.name, made[$0.name] ?? $0.tensor) })
    }

    private static func matrix(
        _ name: String, _ dtype: DType, _ source: TensorSource, _ used: inout Set<String>, _ engine: Engine
    ) throws(PEFTError) -> Tensor {
        func part(_ suffix: String) throws(PEFTError) -> Tensor {
            guard let tensor = source.peek(name + suffix) else { throw PEFTError(.format, "'\(name + suffix)' is missing") }
            if !suffix.isEmpty { used.insert(name + suffix) }
            return tensor
        }
        let text = try part(state + dtype.name)
        guard text.dtype == .u8 else { throw PEFTError(.format, "is \(text.dtype.name), not text") }
        guard let settings = unsafe try JSONValue(parsing: UnsafeRawBufferPointer(start: text.pointer, count: text.byteCount)).objectValue else {
            throw PEFTError(.format, "is no JSON object")
        }
        guard let size = settings["blocksize"]?.intValue, let sizes = settings["shape"]?.arrayValue?.compactMap({ $0.intValue }), sizes.count <= 8,
            sizes.count == settings["shape"]?.arrayValue?.count, sizes.allSatisfy({ $0 >= 0 })
        else { throw PEFTError(.format, "has no \"blocksize\" or no \"shape\"") }
        let isDouble = source.contains(name + ".nested_absmax")
        if isDouble, let size = settings["nested_blocksize"]?.intValue, size != CodedMatrix.nestedBlock {
            throw PEFTError(.unsupported, "\"nested_blocksize\" is \(size); \(CodedMatrix.nestedBlock) is read")
        }
        try checkTable(try part(".quant_map"), dtype, engine)
        if isDouble { try checkTable(try part(".nested_quant_map"), .blockwise8, engine) }
        let scaling: BlockScaling
        do throws(PEFTError) { scaling = try BlockScaling(blockSize: size, isDouble: isDouble) } catch { throw PEFTError(.unsupported, error.message) }
        // Four bits may be stored two, four or eight in a value of a wider type.
        let codes = try part("")
        return try CodedMatrix(
            dtype: dtype, shape: sizes, scaling: scaling, codes: try Tensor(codes.storage, offset: codes.offset, dtype: .u8, shape: [codes.byteCount]),
            scales: try part(".absmax"), nested: isDouble ? try part(".nested_absmax") : nil, offset: Float(settings["nested_offset"]?.doubleValue ?? 0), engine
        ).tensor(engine)
    }

    /// The table must be the format's own: codes are decoded by it.
    private static func checkTable(_ table: Tensor, _ dtype: DType, _ engine: Engine) throws(PEFTError) {
        let (values, own) = (table.dtype == .f32 ? try table.floats(engine) : [], try CodedMatrix.values(of: dtype, engine).floats(engine))
        guard values.count == own.count, zip(values, own).allSatisfy({ abs($0 - $1) <= 1e-6 }) else {
            throw PEFTError(.unsupported, "the table of values is not that of \(dtype.name)")
        }
    }

    private static func rows(
        _ name: String, _ tensor: Tensor, _ scales: Tensor, _ source: TensorSource, _ used: inout Set<String>, _ engine: Engine
    ) throws(PEFTError) -> Tensor {
        let format = String(name.dropLast("weight".count)) + "weight_format"
        if let layout = source.peek(format) {
            used.insert(format)
            guard layout.dtype == .u8, layout.count == 1, unsafe layout.pointer.load(as: UInt8.self) == 0 else {
                throw PEFTError(.unsupported, "has a layout of its own ('\(format)'); rows (0) are read")
            }
        }
        used.insert(scaleName(name))
        guard tensor.shape.count == 2, scales.dtype == .f32, scales.count == tensor.rows else {
            throw PEFTError(.format, "is i8 \(tensor.shape), and has \(scales.count) scales (\(scales.dtype.name)); one (f32) for each row is needed")
        }
        guard try scales.floats(engine).allSatisfy(\.isFinite) else { throw PEFTError(.numeric, "a scale is not finite") }
        let result = try Tensor(engine, tensor.shape, .int8, .weights)
        for row in 0..<tensor.rows {
            let to = unsafe result.pointer + row * result.rowBytes
            unsafe to.copyMemory(from: scales.pointer + 4 * row, byteCount: 4)
            unsafe (to + 4).copyMemory(from: tensor.pointer + row * tensor.columns, byteCount: tensor.columns)
        }
        return result
    }

    /// "p.weight": "p.SCB"
    private static func scaleName(_ name: String) -> String { name.hasSuffix("weight") ? name.dropLast("weight".count) + "SCB" : name + ".SCB" }

    // MARK: Writing

    /// What is written of a weight in one of the formats.
    package static func parts(of tensor: Tensor, _ name: String, _ engine: Engine) throws(PEFTError) -> [NamedTensor] {
        guard tensor.dtype.isCoded else { return try parts(ofRows: tensor, name, engine) }
        let matrix = try CodedMatrix(tensor, engine)
        var state = "{\"quant_type\": \"\(tensor.dtype.name)\", \"blocksize\": \(tensor.scaling.blockSize), \"dtype\": \"float32\", "
        state += "\"shape\": [\(tensor.shape.map(String.init).joined(separator: ", "))]"
        var parts = [
            NamedTensor(name, try matrix.codes.reshaped([matrix.codes.count, 1])), NamedTensor(name + ".absmax", matrix.scales),
            NamedTensor(name + ".quant_map", try CodedMatrix.values(of: tensor.dtype, engine)),
        ]
        if let nested = matrix.nested {
            parts.append(NamedTensor(name + ".nested_absmax", nested))
            parts.append(NamedTensor(name + ".nested_quant_map", try CodedMatrix.values(of: .blockwise8, engine)))
            state += ", \"nested_blocksize\": \(CodedMatrix.nestedBlock), \"nested_dtype\": \"float32\", \"nested_offset\": \(Double(matrix.offset))"
        }
        let bytes = Array((state + "}").utf8), text = try Tensor(engine, [bytes.count], .u8, .scratch)
        unsafe bytes.withUnsafeBytes { bytes in
            if let start = bytes.baseAddress { unsafe text.pointer.copyMemory(from: start, byteCount: bytes.count) }
        }
        parts.append(NamedTensor(name + BitsAndBytes.state + tensor.dtype.name, text))
        return parts
    }

    private static func parts(ofRows tensor: Tensor, _ name: String, _ engine: Engine) throws(PEFTError) -> [NamedTensor] {
        let codes = try Tensor(engine, tensor.shape, .i8, .scratch), scales = try Tensor(engine, [tensor.rows], .f32, .scratch)
        for row in 0..<tensor.rows {
            let from = unsafe tensor.pointer + row * tensor.rowBytes
            unsafe (scales.pointer + 4 * row).copyMemory(from: from, byteCount: 4)
            unsafe (codes.pointer + row * tensor.columns).copyMemory(from: from + 4, byteCount: tensor.columns)
        }
        guard name.hasSuffix(".weight") else { return [NamedTensor(name, codes), NamedTensor(scaleName(name), scales)] }
        let layout = try Tensor.zeros(engine, [], .u8, .scratch)
        return [NamedTensor(name, codes), NamedTensor(scaleName(name), scales), NamedTensor(name.dropLast("weight".count) + "weight_format", layout)]
    }
}
