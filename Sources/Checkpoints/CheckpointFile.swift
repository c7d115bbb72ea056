package import Platform
package import Tensors

/// An adapter or a training checkpoint in one HDF5 file: a JSON document and named tensors in groups. The layout, with the
/// lines of h5py that read and write it, is in docs/checkpoint-layout.md.
package struct CheckpointFile: Sendable {
    package enum Kind: String, Sendable {
        case adapter, training
    }

    package var kind: Kind
    /// Everything that is not a tensor: configuration, step, schedule, random streams, position in the data, fingerprint of the base.
    package var attributes: JSONObject
    /// By group: "adapter", "optimizer/exp_avg" … (at most two levels). Tensors of a file that was read are views of its mapping.
    package var groups: [String: [NamedTensor]]

    package init(kind: Kind, attributes: JSONObject, groups: [String: [NamedTensor]]) {
        self.kind = kind
        self.attributes = attributes
        self.groups = groups
    }

    /// A group as a source with its book of what was taken.
    package func source(_ group: String) throws(PEFTError) -> TensorSource {
        guard let tensors = groups[group] else {
            throw PEFTError(.notFound, "the checkpoint has no group '\(group)'; it has \(TensorSource.list(groups.keys.sorted(), most: 12))")
        }
        return try TensorSource(origin: "group '\(group)'", tensors)
    }

    // MARK: Writing

    /// Writes the file atomically (`AtomicFile`). It is made in memory of `budget` first.
    /// - Throws: `.unsupported` when the HDF5 library is not installed or a tensor is quantised.
    package func write(to path: String, budget: MemoryBudget) throws(PEFTError) {
        // First, so that an unwritable folder is known before the work.
        let file = try AtomicFile(path)
        do throws(PEFTError) {
            try write(into: file, budget)
        } catch {
            throw error.within(path)
        }
    }

    private func write(into file: consuming AtomicFile, _ budget: MemoryBudget) throws(PEFTError) {
        let state: JSONValue = .object(JSONObject(["kind": .string(kind.rawValue), "attributes": .object(attributes)]))
        let text = state.text(indent: 2, sortKeys: true)
        var descriptions: [TensorDescription] = []
        for item in groups.values.joined() { descriptions.append(TensorDescription(item.name, item.tensor.dtype, item.tensor.shape)) }
        let capacity = try HDF5Writer.capacity(descriptions, groups: 2 * groups.count, textBytes: text.utf8.count)
        let image = try Storage(byteCount: capacity, budget: budget, category: .scratch)
        var size = 0
        try HDF5Writer.withFile(in: image) { (writer) throws(PEFTError) -> Void in
            try fill(writer, text)
            size = try writer.finish()
        }
        var output = file
        unsafe try output.write(UnsafeRawBufferPointer(start: image.base, count: size))
        try output.commit()
    }

    private func fill(_ writer: borrowing HDF5Writer, _ text: String) throws(PEFTError) {
        try writer.rootAttribute(HDF5.magicAttribute, HDF5.layoutVersion)
        try writer.string(HDF5.stateDataset, text)
        var made: Set<String> = []
        for path in groups.keys.sorted() {
            try CheckpointFile.checkGroup(path)
            var prefix = ""
            for part in path.split(separator: "/") {
                prefix += prefix.isEmpty ? String(part) : "/" + part
                if made.insert(prefix).inserted { try writer.group(prefix) }
            }
            for item in groups[path] ?? [] {
                try CheckpointFile.checkName(item.name)
                try writer.dataset(path + "/" + item.name, item.tensor)
            }
        }
    }

    private static func checkGroup(_ path: String) throws(PEFTError) {
        let parts = path.split(separator: "/", omittingEmptySubsequences: false)
        guard (1...2).contains(parts.count), parts.allSatisfy({ !$0.isEmpty && $0 != "." && $0 != ".." }), parts[0] != HDF5.stateDataset else {
            throw PEFTError(.argument, "'\(path)' cannot be the name of a group in a checkpoint")
        }
    }

    private static func checkName(_ name: String) throws(PEFTError) {
        guard !name.isEmpty, name != ".", !name.utf8.contains(UInt8(ascii: "/")), !name.utf8.contains(0) else {
            throw PEFTError(.argument, "'\(name)' cannot be the name of a tensor in an HDF5 file: no '/', no zero byte")
        }
    }

    // MARK: Reading

    /// Opens a file. Tensors are views of the mapping.
    /// - Parameter budget: pays for the rare tensors on unaligned addresses (files of other programs).
    package static func read(path: String, budget: MemoryBudget) throws(PEFTError) -> CheckpointFile {
        try read(MappedFile(path: path), budget: budget)
    }

    /// Opens mapped bytes or a buffer of the host.
    package static func read(_ file: MappedFile, budget: MemoryBudget) throws(PEFTError) -> CheckpointFile {
        do throws(PEFTError) {
            var reader = unsafe try HDF5Reader(file.bytes)
            return try read(&reader, file, budget)
        } catch {
            throw error.within(file.name)
        }
    }

    private static func read(_ reader: inout HDF5Reader, _ file: MappedFile, _ budget: MemoryBudget) throws(PEFTError) -> CheckpointFile {
        let root = try reader.rootGroup()
        guard let version = root.integers[HDF5.magicAttribute] else {
            throw PEFTError(.format, "an HDF5 file, but not a checkpoint: the root has no integer attribute '\(HDF5.magicAttribute)'")
        }
        guard version == HDF5.layoutVersion else { throw PEFTError(.unsupported, "layout version \(version); version \(HDF5.layoutVersion) is read") }

        let storage = unsafe Storage(borrowing: file.bytes, keepingAlive: file)
        var groups: [String: [NamedTensor]] = [:]
        var state: JSONObject?
        for (name, address) in try reader.members(of: root, "the root group") {
            switch try reader.object(at: address, "'\(name)'") {
            case .dataset(let dataset):
                guard name == HDF5.stateDataset else { throw PEFTError(.format, "the dataset '\(name)' lies outside a group") }
                state = try parseState(dataset, reader)
            case .group(let group):
                try readGroup(name, group, &reader, storage, budget, depth: 1, into: &groups)
            }
        }
        guard let state else { throw PEFTError(.format, "no dataset '\(HDF5.stateDataset)'") }
        guard let kindName = state["kind"]?.stringValue, let kind = Kind(rawValue: kindName) else {
            throw PEFTError(.format, "'\(HDF5.stateDataset)': \"kind\" is \(state["kind"]?.text() ?? "missing"); \"adapter\" and \"training\" exist")
        }
        guard let attributes = state["attributes"]?.objectValue else { throw PEFTError(.format, "'\(HDF5.stateDataset)': no object \"attributes\"") }
        return CheckpointFile(kind: kind, attributes: attributes, groups: groups)
    }

    private static func parseState(_ dataset: HDF5Reader.Dataset, _ reader: HDF5Reader) throws(PEFTError) -> JSONObject {
        guard case .string = dataset.type, dataset.shape.isEmpty, dataset.byteCount <= 64 << 20 else {
            throw PEFTError(.format, "'\(HDF5.stateDataset)' is not one fixed-length string of at most 64 MB")
        }
        // Safe: the reader checked that the dataset lies within the file. The string may be padded with zeros.
        let padded = unsafe UnsafeRawBufferPointer(rebasing: reader.bytes[dataset.offset..<dataset.offset + dataset.byteCount])
        let text = unsafe UnsafeRawBufferPointer(rebasing: padded.prefix { $0 != 0 })
        do throws(PEFTError) {
            guard let object = unsafe try JSONValue(parsing: text).objectValue else { throw PEFTError(.format, "not a JSON object") }
            return object
        } catch {
            throw error.within("'\(HDF5.stateDataset)'")
        }
    }

    private static func readGroup(
        _ path: String, _ group: HDF5Group, _ reader: inout HDF5Reader, _ storage: Storage, _ budget: MemoryBudget, depth: Int,
        into groups: inout [String: [NamedTensor]]
    ) throws(PEFTError) {
        var tensors: [NamedTensor] = []
        var hasGroups = false
        for (name, address) in try reader.members(of: group, "'\(path)'") {
            let what = "'\(path)/\(name)'"
            switch try reader.object(at: address, what) {
            case .group(let inner):
                guard depth < 2 else { throw PEFTError(.format, "\(what): groups nested deeper than 2") }
                hasGroups = true
                try readGroup(path + "/" + name, inner, &reader, storage, budget, depth: depth + 1, into: &groups)
            case .dataset(let dataset):
                guard case .number(let encoding) = dataset.type, let dtype = HDF5.types.first(where: { $0.encoding == encoding })?.dtype else {
                    throw PEFTError(.unsupported, "\(what) has the element type \(dataset.type); read are \(HDF5.typeNames)")
                }
                tensors.append(NamedTensor(name, try .view(storage, offset: dataset.offset, dtype: dtype, shape: dataset.shape, budget: budget)))
            }
        }
        if !tensors.isEmpty || !hasGroups { groups[path] = tensors }
    }
}
