package import Platform
package import Tensors

extension DType {
    /// The weight format of a scheme's name, as GGUF files and hosts write it: "q4_1", "Q4_K", "q8_0", "f16", "bf16", "f32",
    /// or PyTorch's "float16", "bfloat16", "float32".
    /// - Throws: `.argument`, naming the formats there are.
    package static func weightFormat(named name: String) throws(PEFTError) -> DType {
        let plain: [String: DType] = ["float32": .f32, "float16": .f16, "bfloat16": .bf16]
        let lowercased = name.lowercased()
        if let dtype = plain[lowercased] { return dtype }
        let formats = allCases.filter(\.isWeightFormat)
        guard let dtype = formats.first(where: { $0.name.lowercased() == lowercased }) else {
            throw PEFTError(.argument, "\"\(name)\" is no weight format; there are \(formats.map(\.name).joined(separator: ", "))")
        }
        return dtype
    }
}
