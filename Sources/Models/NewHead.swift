internal import Platform
internal import Tensors

/// A head that a model's files do not have: another class of its family, as transformers' `from_pretrained` of that class makes it.
/// Layers outside of the blocks that the files lack, or have with other sizes, are new: normal weights, biases 0.
struct NewHead {
    let configuration: ModelConfiguration
    private let seed: UInt64
    private let deviation: Float

    private static let kinds = ["ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForImageClassification"]

    init(_ options: JSONObject, _ configuration: ModelConfiguration) throws(PEFTError) {
        try options.check(["type", "num_labels", "problem_type", "seed"], "new_head")
        guard let kind = try options.text("type"), NewHead.kinds.contains(kind) else {
            throw PEFTError(.argument, "new_head: type is \(options["type"]?.text() ?? "missing"); \(NewHead.kinds.joined(separator: ", ")) are accepted")
        }
        let count = try options.integer("num_labels") ?? 2
        guard (1...1 << 20).contains(count) else { throw PEFTError(.argument, "new_head: num_labels is \(count); 1 to \(1 << 20) are accepted") }
        seed = UInt64(bitPattern: Int64(try options.integer("seed") ?? 0))
        deviation = Float(try configuration.number("initializer_range", or: 0.02))
        let name = configuration.headClass ?? ""
        let end = name.indices.first { place in ["For", "LMHeadModel", "EncoderModel", "Model"].contains { name[place...].hasPrefix($0) } } ?? name.endIndex
        var json = configuration.json
        json["architectures"] = .array([.string(name[..<end] + kind)])
        json["num_labels"] = nil
        var (names, places) = (JSONObject(), JSONObject())
        for label in 0..<count {
            names["\(label)"] = .string("LABEL_\(label)")
            places["LABEL_\(label)"] = .integer(Int64(label))
        }
        (json["id2label"], json["label2id"]) = (.object(names), .object(places))
        if let problem = try options.text("problem_type") { json["problem_type"] = .string(problem) }
        self.configuration = ModelConfiguration(json, origin: configuration.origin)
    }

    func weight(_ name: String, _ shape: [Int], _ engine: Engine) throws(PEFTError) -> Tensor {
        var random = RandomStream(seed: seed, purpose: name)
        let values = random.normals(try checkedProduct(shape[0], shape[1], of: name)).map { $0 * deviation }
        return try Tensor(engine, values, shape: shape, .weights)
    }
}
