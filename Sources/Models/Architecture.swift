package import Platform

/// A family of networks: one file, which reads a configuration, asks a `LayerBuilder` for its layers, and computes.
package protocol Architecture: Network {
    /// `model_type` in config.json.
    static var modelTypes: [String] { get }
    /// The name that a tensor of a file has in the module tree.
    static func moduleName(_ name: String) -> String
    init(_ configuration: ModelConfiguration, _ build: LayerBuilder) throws(PEFTError)
}

extension Architecture {
    package static func moduleName(_ name: String) -> String { name }
}

/// The architectures there are: a new one is a new file and a line here.
package enum Architectures {
    package static let all: [any Architecture.Type] = [GatedDecoder.self, GPT2.self, BERT.self, DistilBERT.self, ViT.self, DINOv2.self, T5.self, Whisper.self, MultilayerPerceptron.self, ConvolutionalNetwork.self, AttentionNetwork.self, HostGraph.self]

    package static var modelTypes: [String] { all.flatMap { $0.modelTypes } }

    static func named(_ modelType: String, origin: String) throws(PEFTError) -> any Architecture.Type {
        guard let found = all.first(where: { $0.modelTypes.contains(modelType) }) else {
            throw PEFTError(.unsupported, "\(origin): model_type is \"\(modelType)\"; this version has \(modelTypes.joined(separator: ", "))")
        }
        return found
    }
}
