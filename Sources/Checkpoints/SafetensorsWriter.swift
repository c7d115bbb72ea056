package import Platform
package import Tensors

extension Safetensors {
    /// HF's readers insist on this metadata.
    package static let pytorchMetadata = ["format": "pt"]

    /// Writes a file atomically: byte for byte what the reference implementation writes for the same tensors.
    package static func write(_ tensors: [NamedTensor], metadata: [String: String] = pytorchMetadata, to path: String) throws(PEFTError) {
        var file = try AtomicFile(path)
        try write(tensors, metadata: metadata, into: &file)
        try file.commit()
    }

    static func write(_ tensors: [NamedTensor], metadata: [String: String], into file: inout AtomicFile) throws(PEFTError) {
        var descriptions: [TensorDescription] = []
        for item in tensors { descriptions.append(TensorDescription(item.name, item.tensor.dtype, item.tensor.shape)) }
        try write(descriptions, metadata: metadata, into: &file) { (index) throws(PEFTError) -> Tensor in tensors[index].tensor }
    }

    /// Writes tensors that are made one at a time: at no moment is more than one of them in memory.
    /// - Parameter tensor: makes the tensor of the description with this index; called in the order of the file.
    package static func write(
        _ descriptions: [TensorDescription], metadata: [String: String] = pytorchMetadata, to path: String, tensor: (Int) throws(PEFTError) -> Tensor
    ) throws(PEFTError) {
        var file = try AtomicFile(path)
        try write(descriptions, metadata: metadata, into: &file, tensor: tensor)
        try file.commit()
    }

    /// The same into a file that the caller publishes.
    package static func write(
        _ descriptions: [TensorDescription], metadata: [String: String] = pytorchMetadata, into file: inout AtomicFile, tensor: (Int) throws(PEFTError) -> Tensor
    ) throws(PEFTError) {
        let order = try fileOrder(descriptions)
        let header = try header(descriptions, order: order, metadata: metadata)
        unsafe try withUnsafeBytes(of: UInt64(header.utf8.count).littleEndian) { (length) throws(PEFTError) -> Void in unsafe try file.write(length) }
        try file.write(header)
        for index in order {
            let made = try tensor(index)
            let promised = descriptions[index]
            guard made.dtype == promised.dtype, made.shape == promised.shape, made.storage.isReal else {
                throw PEFTError(.internal, "tensor '\(promised.name)' was announced as \(promised.dtype.name) \(promised.shape) and is \(made.dtype.name) \(made.shape)")
            }
            unsafe try file.write(UnsafeRawBufferPointer(start: made.pointer, count: made.byteCount))
        }
    }

    /// The reference implementation's order: element types by falling rank (so that alignment falls too), then names by bytes.
    private static func fileOrder(_ descriptions: [TensorDescription]) throws(PEFTError) -> [Int] {
        var seen: Set<String> = ["__metadata__"]
        var ranks: [Int] = []
        for item in descriptions {
            guard let rank = dtypes.firstIndex(where: { $0.dtype == item.dtype }) else {
                throw PEFTError(.unsupported, "tensor '\(item.name)' is \(item.dtype.name), which safetensors does not have; decode it first")
            }
            guard seen.insert(item.name).inserted else { throw PEFTError(.argument, "two tensors are to be written as '\(item.name)'") }
            ranks.append(rank)
        }
        return descriptions.indices.sorted { a, b in
            ranks[a] != ranks[b] ? ranks[a] > ranks[b] : descriptions[a].name.utf8.lexicographicallyPrecedes(descriptions[b].name.utf8)
        }
    }

    /// Compact JSON, padded with spaces so that the data begins on a multiple of 8.
    private static func header(_ descriptions: [TensorDescription], order: [Int], metadata: [String: String]) throws(PEFTError) -> String {
        var parts: [String] = []
        if !metadata.isEmpty {
            let pairs = metadata.sorted { $0.key < $1.key }.map { "\(quoted($0.key)):\(quoted($0.value))" }
            parts.append("\"__metadata__\":{\(pairs.joined(separator: ","))}")
        }
        var offset = 0
        for index in order {
            let item = descriptions[index]
            let end = try checkedSum(offset, item.dtype.byteCount(shape: item.shape), of: "the file")
            let type = dtypes.first { $0.dtype == item.dtype }?.name ?? ""
            let shape = item.shape.map { String($0) }.joined(separator: ",")
            parts.append("\(quoted(item.name)):{\"dtype\":\"\(type)\",\"shape\":[\(shape)],\"data_offsets\":[\(offset),\(end)]}")
            offset = end
        }
        let header = "{\(parts.joined(separator: ","))}"
        return header + String(repeating: " ", count: (8 - header.utf8.count % 8) % 8)
    }

    private static func quoted(_ text: String) -> String { JSONValue.string(text).text() }
}
