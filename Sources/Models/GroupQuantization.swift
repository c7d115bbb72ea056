internal import Checkpoints
internal import Platform
internal import Tensors

/// Weights as GPTQ (arXiv:2210.17323) and AWQ (arXiv:2306.00978) tools write them: four bits, groups of inputs with a scale and a zero each.
///
///     w[o, i] = scale[g, o]·(q[i, o] − zero[g, o])        g: the group of input i
///
///     p.qweight i32   GPTQ [in / 8, out], eight inputs in a word; AWQ [in, out / 8], eight outputs, in the order of its kernels
///     p.qzeros  i32 [groups, out / 8], eight outputs in a word (GPTQ's first version: one less than the zero)
///     p.scales  f16 [groups, out]        p.g_idx i32 [in], GPTQ: the group of each input (with desc_act in no order)
///
/// The same values without a loss: blocks of q4_0 where all zeros are 8, of q5_0 where not (q − zero has 31 values). Where neighbouring inputs
/// are of different groups there is no such format, and weights are f16.
struct GroupQuantization {
    enum Method {
        /// `zeroOffset`: what is added to stored zeros.
        case gptq(zeroOffset: Int)
        case awq
    }

    private let method: Method
    private let source: TensorSource
    private let engine: Engine

    /// All tensors, quantised ones as "p.weight".
    static func restored(_ source: TensorSource, _ settings: JSONObject, _ method: Method, _ engine: Engine) throws(PEFTError) -> TensorSource {
        if let bits = (settings["bits"] ?? settings["w_bit"])?.intValue, bits != 4 { throw PEFTError(.unsupported, "\(source.origin): weights of \(bits) bits; 4 are read") }
        if case .awq = method, let version = settings["version"]?.stringValue, version.lowercased() != "gemm" {
            throw PEFTError(.unsupported, "\(source.origin): AWQ of the version \"\(version)\"; \"gemm\" is read")
        }
        let all = GroupQuantization(method: method, source: source, engine: engine)
        var tensors: [NamedTensor] = []
        for item in source.all {
            let parts = [".qweight", ".qzeros", ".scales", ".g_idx"]
            guard let part = parts.first(where: { item.name.hasSuffix($0) }) else {
                tensors.append(item)
                continue
            }
            let name = String(item.name.dropLast(part.count))
            guard part == ".qweight" else {
                // Without codes it is no part of anything, and is named as unused.
                if !source.contains(name + ".qweight") { tensors.append(item) }
                continue
            }
            do throws(PEFTError) { tensors.append(NamedTensor(name + ".weight", try all.matrix(name, item.tensor))) } catch { throw error.within("\(source.origin): '\(name)'") }
        }
        return try TensorSource(origin: source.origin, metadata: source.metadata, tensors)
    }

    private func part(_ name: String, _ dtype: DType) throws(PEFTError) -> Tensor {
        guard let tensor = source.peek(name) else { throw PEFTError(.format, "'\(name)' is missing") }
        guard tensor.dtype == dtype, tensor.shape.count == 2 else { throw PEFTError(.format, "'\(name)' is \(tensor.dtype.name) \(tensor.shape); a matrix of \(dtype.name) is needed") }
        return tensor
    }

    private func matrix(_ name: String, _ words: Tensor) throws(PEFTError) -> Tensor {
        guard words.dtype == .i32, words.shape.count == 2 else { throw PEFTError(.format, "qweight is \(words.dtype.name) \(words.shape); a matrix of i32 is needed") }
        let (zeros, scales) = (try part(name + ".qzeros", .i32), try part(name + ".scales", .f16))
        let isGPTQ = if case .gptq = method { true } else { false }
        let (inputs, outputs) = isGPTQ ? (try checkedProduct(words.rows, 8, of: "qweight"), words.columns) : (words.rows, try checkedProduct(words.columns, 8, of: "qweight"))
        let groups = scales.rows
        guard inputs > 0, outputs > 0, outputs % 8 == 0, groups > 0, scales.columns == outputs, zeros.shape == [groups, outputs / 8] else {
            throw PEFTError(.format, "qweight \(words.shape), qzeros \(zeros.shape) and scales \(scales.shape) do not fit each other")
        }
        let group = try self.groups(name, inputs, groups)
        let factors = try scales.floats(engine)
        guard factors.allSatisfy(\.isFinite) else { throw PEFTError(.numeric, "a scale is not finite") }
        let points = (0..<groups * outputs).map { zero(zeros, $0 / outputs, $0 % outputs) }
        // Blocks of 32 inputs of one group.
        let fits = inputs % 32 == 0 && stride(from: 0, to: inputs, by: 32).allSatisfy { start in (start..<start + 32).allSatisfy { group[$0] == group[start] } }
        let dtype: DType = !fits ? .f32 : points.allSatisfy { $0 == 8 } ? .q4_0 : .q5_0
        let result = try Tensor(engine, [outputs, inputs], dtype, fits ? .weights : .scratch)
        for output in 0..<outputs {
            let row = unsafe result.pointer + output * result.rowBytes
            guard fits else {
                for input in 0..<inputs {
                    let at = group[input] * outputs + output
                    unsafe row.storeBytes(of: factors[at] * Float(code(words, input, output) - points[at]), toByteOffset: 4 * input, as: Float.self)
                }
                continue
            }
            for start in stride(from: 0, to: inputs, by: 32) {
                let at = group[start] * outputs + output
                let scale = unsafe scales.pointer.loadUnaligned(fromByteOffset: 2 * at, as: UInt16.self)
                let quanta = (0..<32).map { code(words, start + $0, output) - points[at] + (dtype == .q4_0 ? 8 : 16) }
                unsafe GroupQuantization.store(quanta, scale, row + start / 32 * dtype.blockBytes, hasFifthBits: dtype == .q5_0)
            }
        }
        return fits ? result : try result.converted(to: .f16, engine, .weights)
    }

    /// The group of each input: as the file says, or in order.
    private func groups(_ name: String, _ inputs: Int, _ groups: Int) throws(PEFTError) -> [Int] {
        guard let index = source.peek(name + ".g_idx") else {
            guard inputs % groups == 0 else { throw PEFTError(.format, "\(inputs) inputs do not divide into \(groups) groups") }
            return (0..<inputs).map { $0 / (inputs / groups) }
        }
        guard index.dtype == .i32, index.count == inputs else { throw PEFTError(.format, "g_idx is \(index.dtype.name) \(index.shape); i32 [\(inputs)] is needed") }
        let list = unsafe index.withInt32s { unsafe $0.map { Int($0) } }
        guard list.allSatisfy({ $0 >= 0 && $0 < groups }) else { throw PEFTError(.format, "g_idx names groups that are not among the \(groups)") }
        return list
    }

    /// Where AWQ's kernels have output j of eight.
    private static let order = [0, 4, 1, 5, 2, 6, 3, 7]

    private func word(_ tensor: Tensor, _ row: Int, _ column: Int) -> UInt32 {
        unsafe tensor.pointer.loadUnaligned(fromByteOffset: 4 * (row * tensor.columns + column), as: UInt32.self)  // Safe: callers stay inside the shapes checked.
    }

    private func code(_ words: Tensor, _ input: Int, _ output: Int) -> Int {
        switch method {
        case .gptq: Int(word(words, input / 8, output) >> UInt32(4 * (input % 8)) & 15)
        case .awq: Int(word(words, input, output / 8) >> UInt32(4 * GroupQuantization.order[output % 8]) & 15)
        }
    }

    private func zero(_ zeros: Tensor, _ group: Int, _ output: Int) -> Int {
        switch method {
        // (15 and one more is 0: the tools count in four bits)
        case .gptq(let offset): (Int(word(zeros, group, output / 8) >> UInt32(4 * (output % 8)) & 15) + offset) & 15
        case .awq: Int(word(zeros, group, output / 8) >> UInt32(4 * GroupQuantization.order[output % 8]) & 15)
        }
    }

    /// A block of q4_0 or q5_0.
    private static func store(_ quanta: [Int], _ scale: UInt16, _ to: UnsafeMutableRawPointer, hasFifthBits: Bool) {
        unsafe to.storeBytes(of: scale, as: UInt16.self)
        var fifth: UInt32 = 0
        for (index, q) in quanta.enumerated() { fifth |= UInt32(q >> 4 & 1) << UInt32(index) }
        if hasFifthBits { unsafe to.storeBytes(of: fifth, toByteOffset: 2, as: UInt32.self) }
        for index in 0..<16 { unsafe to.storeBytes(of: UInt8(quanta[index] & 15 | (quanta[index + 16] & 15) << 4), toByteOffset: (hasFifthBits ? 6 : 2) + index, as: UInt8.self) }
    }
}
