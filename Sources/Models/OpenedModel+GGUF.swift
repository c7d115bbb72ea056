internal import Checkpoints
package import Platform
internal import Quantization
internal import Tensors

extension OpenedModel {
    /// Writes the model as it is now as a GGUF file, a tensor at a time. What is no tensor (settings, vocabulary, chat template) is
    /// `GGUFTemplate`'s.
    /// - Parameter type: a weight format that GGUF has, for all matrices, or a mix of llama.cpp's (`GGUFMix`); nil: as stored.
    /// - Throws: `.unsupported` for a model that came from elsewhere, `.argument` for a type that GGUF does not have.
    package func exportGGUF(to file: String, type: String? = nil) throws(PEFTError) {
        guard !path.isEmpty else { throw PEFTError(.unsupported, "a GGUF file is written of models from a GGUF file or a folder, whose vocabulary it takes over; this one came from memory") }
        let engine = model.engine
        let template = Files.isFile(path) ? try GGUFTemplate(try GGUF(path: path, budget: engine.budget)) : try GGUFTemplate(model, folder: path, tokenizer)
        let isTied = !model.parameters.contains { GGUFModel.fileNames($0.name, template.family) == ["output.weight"] }
        let mix = try type.map { (name) throws(PEFTError) in try GGUFMix(name, layers: template.layerCount, isTied: isTied) }
        var descriptions: [TensorDescription] = []
        var parts: [GGUFPart] = []
        for (name, tensor) in model.parameters {
            let targets = GGUFModel.fileNames(name, template.family)
            guard !targets.isEmpty else { throw PEFTError(.unsupported, "'\(name)' has no name in a GGUF file of the family \"\(template.name)\"") }
            for (index, target) in targets.enumerated() {
                let part = GGUFPart(
                    tensor: tensor, heads: template.heads(of: target), half: targets.count == 2 ? index : nil, addsOne: template.family.addsOne && target.hasSuffix("norm.weight"))
                // Vectors and routers are f32 in files.
                let dtype = tensor.shape.count == 1 || target.hasSuffix("_inp.weight") ? .f32 : try mix?.dtype(of: target, tensor.columns) ?? tensor.dtype
                guard dtype.rawValue < 1000 else { throw PEFTError(.argument, "'\(name)' is \(dtype.name), which GGUF does not have; name a dtype that it has, such as \"Q4_K_M\" or \"q8_0\"") }
                descriptions.append(TensorDescription(target, dtype, part.shape))
                parts.append(part)
            }
        }
        // What the model keeps in another form (frequencies of Llama 3).
        for item in template.settings {
            descriptions.append(TensorDescription(item.name, item.tensor.dtype, item.tensor.shape))
            parts.append(GGUFPart(tensor: item.tensor))
        }
        var metadata = template.metadata
        if let number = mix?.fileType ?? GGUFMix.fileType(of: descriptions.map(\.dtype)) { metadata.append(("general.file_type", .u32(number))) }
        metadata.append(("general.quantization_version", .u32(2)))
        try GGUF.write(metadata, descriptions, to: file) { (index) throws(PEFTError) -> Tensor in
            let tensor = try parts[index].made(engine, descriptions[index].name)
            return tensor.dtype == descriptions[index].dtype ? tensor : try tensor.encoded(as: descriptions[index].dtype, engine, .scratch)
        }
    }
}

/// A tensor of the file, and how it comes of one of the model's.
private struct GGUFPart {
    let tensor: Tensor
    /// Rows of so many heads get llama.cpp's order.
    var heads: Int?
    /// The gates of a stack of experts (0), or the ups below them (1).
    var half: Int?
    var addsOne = false

    var shape: [Int] { half == nil ? tensor.shape : [tensor.shape[0], tensor.shape[1] / 2, tensor.shape[2]] }

    func made(_ engine: Engine, _ name: String) throws(PEFTError) -> Tensor {
        if let heads { return try GGUFModel.reordered(tensor, heads, engine, name, toFile: true) }
        if addsOne { return try Tensor(engine, try tensor.floats(engine).map { $0 + 1 }, shape: tensor.shape, .scratch) }
        guard let half else { return tensor }
        let source = tensor.dtype.isCoded ? try tensor.converted(to: .f32, engine, .scratch) : tensor
        let result = try Tensor(engine, shape, source.dtype, .scratch)
        let size = shape[1] * source.rowBytes
        for expert in 0..<shape[0] {
            unsafe (result.pointer + expert * size).copyMemory(from: source.pointer + (2 * expert + half) * size, byteCount: size)
        }
        return result
    }
}

/// Which matrix gets which format: one for all, or more bits where llama.cpp has found that they matter most (its Q4_K_M and Q5_K_M:
/// the head, and in some layers values and the way down). Rows that are not whole blocks get the next best format.
struct GGUFMix {
    private let base: DType
    /// Of the head and of chosen matrices; nil: none.
    private let more: DType?
    /// In every chosen layer, or in some.
    private let layers: Int
    private let isTied: Bool
    let fileType: UInt32?

    init(_ name: String, layers: Int, isTied: Bool) throws(PEFTError) {
        (self.layers, self.isTied) = (layers, isTied)
        switch name.lowercased() {
        case "q4_k_m": (base, more, fileType) = (.q4_K, .q6_K, 15)
        case "q5_k_m": (base, more, fileType) = (.q5_K, .q6_K, 17)
        default:
            base = try DType.weightFormat(named: name)
            more = nil
            guard base.rawValue < 1000 else { throw PEFTError(.argument, "dtype is \"\(name)\", which GGUF does not have; \"Q4_K_M\", \"Q5_K_M\", \"q8_0\", \"f16\" and others are possible") }
            fileType = GGUFMix.numbers[base]
        }
    }

    /// - Parameter name: of the file.
    func dtype(of name: String, _ columns: Int) throws(PEFTError) -> DType { GGUFMix.fitting(wanted(name), columns) }

    private func wanted(_ name: String) -> DType {
        guard let more else { return base }
        if name == "output.weight" || isTied && name == "token_embd.weight" { return more }
        guard name.hasSuffix(".attn_v.weight") || name.hasSuffix(".ffn_down.weight"), let layer = name.split(separator: ".").dropFirst().first.flatMap({ Int($0) }) else { return base }
        return layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2 ? more : base
    }

    /// What llama.cpp takes instead.
    private static let instead: [DType: DType] = [
        .q2_K: .iq4_nl, .q3_K: .iq4_nl, .q4_K: .q5_0, .q5_K: .q5_1, .q6_K: .q8_0, .tq1_0: .q4_0, .tq2_0: .q4_0, .q4_0: .f16, .q4_1: .f16, .q5_0: .f16, .q5_1: .f16,
        .q8_0: .f16, .iq4_nl: .f16,
    ]

    private static func fitting(_ wanted: DType, _ columns: Int) -> DType {
        var dtype = wanted
        while columns % dtype.blockValues != 0 { dtype = instead[dtype] ?? .f16 }
        return dtype
    }

    /// llama.cpp's numbers of kinds of files.
    private static let numbers: [DType: UInt32] = [
        .f32: 0, .f16: 1, .q4_0: 2, .q4_1: 3, .q8_0: 7, .q5_0: 8, .q5_1: 9, .q2_K: 10, .q3_K: 12, .q4_K: 14, .q5_K: 16, .q6_K: 18, .iq4_nl: 25, .bf16: 32, .tq1_0: 36, .tq2_0: 37,
    ]

    /// By the format that most tensors have, but for f32, which vectors are.
    static func fileType(of types: [DType]) -> UInt32? {
        var counts: [DType: Int] = [:]
        for type in types where type != .f32 { counts[type, default: 0] += 1 }
        return numbers[counts.max { ($0.value, $0.key.rawValue) < ($1.value, $1.key.rawValue) }?.key ?? .f32]
    }
}
