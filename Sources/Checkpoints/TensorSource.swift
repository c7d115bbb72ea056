package import Platform
package import Tensors
internal import Synchronization

/// A tensor and the name it is saved under.
package struct NamedTensor: Sendable {
    package let name: String
    package let tensor: Tensor

    package init(_ name: String, _ tensor: Tensor) {
        self.name = name
        self.tensor = tensor
    }
}

/// A tensor to be written: what a file's header must say before the tensor is made.
package struct TensorDescription: Sendable {
    package let name: String
    package let dtype: DType
    package let shape: [Int]

    package init(_ name: String, _ dtype: DType, _ shape: [Int]) {
        self.name = name
        self.dtype = dtype
        self.shape = shape
    }
}

/// The named tensors of a file, of a folder's shards, or of one group of a checkpoint, whatever the format.
///
/// Tensors of mapped files are views of the mapping: taking one copies nothing, and the mapping lives as long as any of
/// them. The source keeps a book of what was taken, so that a loader can name what it did not understand:
///
/// ```swift
/// let weight = try source.tensor(named: "model.norm.weight", shape: [576])
/// …
/// try source.requireAllTaken(by: "the Llama architecture")
/// ```
package final class TensorSource: Sendable {
    /// For messages: the path of the file or folder.
    package let origin: String
    /// In the order of the file.
    package let names: [String]
    /// The file's text metadata (safetensors `__metadata__`); empty for other formats.
    package let metadata: [String: String]
    private let held: Mutex<[String: Tensor]>
    private var tensors: [String: Tensor] { held.withLock { $0 } }
    private let taken = Mutex<Set<String>>([])

    /// - Throws: `.format` when a name appears twice.
    package init(origin: String, metadata: [String: String] = [:], _ named: [NamedTensor]) throws(PEFTError) {
        var tensors: [String: Tensor] = [:]
        tensors.reserveCapacity(named.count)
        for item in named {
            if tensors.updateValue(item.tensor, forKey: item.name) != nil {
                throw PEFTError(.format, "\(origin): the tensor '\(item.name)' is there twice")
            }
        }
        self.origin = origin
        self.metadata = metadata
        self.names = named.map(\.name)
        held = Mutex(tensors)
    }

    /// Lets go of all tensors, whoever took them; their names stay.
    package func release() { held.withLock { $0 = [:] } }

    package func contains(_ name: String) -> Bool { tensors[name] != nil }

    /// Looks without taking; nil when there is no such tensor.
    package func peek(_ name: String) -> Tensor? { tensors[name] }

    /// Takes a tensor that may be absent.
    package func optionalTensor(named name: String) -> Tensor? {
        guard let tensor = tensors[name] else { return nil }
        _ = taken.withLock { $0.insert(name) }
        return tensor
    }

    /// Takes a tensor.
    /// - Throws: `.notFound` naming it and, when there is one, a similar name that exists.
    package func tensor(named name: String) throws(PEFTError) -> Tensor {
        guard let tensor = optionalTensor(named: name) else {
            let end = name.split(separator: ".").suffix(2).joined(separator: ".")
            let similar = names.first { $0.hasSuffix(end) }.map { " (there is '\($0)')" } ?? ""
            throw PEFTError(.notFound, "\(origin): no tensor '\(name)' among its \(names.count) tensors\(similar)")
        }
        return tensor
    }

    /// Takes a tensor that must have this shape.
    package func tensor(named name: String, shape: [Int]) throws(PEFTError) -> Tensor {
        let tensor = try tensor(named: name)
        guard tensor.shape == shape else {
            throw PEFTError(.mismatch, "\(origin): the tensor '\(name)' has the shape \(tensor.shape), \(shape) is needed")
        }
        return tensor
    }

    /// Marks tensors as understood though nothing is read from them (rotary tables, position ids).
    package func ignore(where isIgnored: (String) -> Bool) {
        let ignored = names.filter(isIgnored)
        taken.withLock { $0.formUnion(ignored) }
    }

    /// What nobody took so far, in the order of the file.
    package var unusedNames: [String] {
        let taken = taken.withLock { $0 }
        return names.filter { !taken.contains($0) }
    }

    /// - Throws: `.mismatch` naming the first tensors that nobody took.
    package func requireAllTaken(by whom: String) throws(PEFTError) {
        let unused = unusedNames
        guard unused.isEmpty else {
            throw PEFTError(.mismatch, "\(origin): \(unused.count) tensors that \(whom) does not know: \(TensorSource.list(unused))")
        }
    }

    /// "a, b, c and 12 more", for messages.
    package static func list(_ names: [String], most: Int = 5) -> String {
        let shown = names.prefix(most).map { "'\($0)'" }.joined(separator: ", ")
        return names.count > most ? "\(shown) and \(names.count - most) more" : shown
    }

    /// All tensors, in the order of the file, without taking them.
    package var all: [NamedTensor] {
        names.compactMap { name in tensors[name].map { NamedTensor(name, $0) } }
    }
}

extension Tensor {
    /// A view of `storage`, or a copy where the file's layout puts the values on an address their type cannot be read from.
    static func view(_ storage: Storage, offset: Int, dtype: DType, shape: [Int], budget: MemoryBudget) throws(PEFTError) -> Tensor {
        let view = try Tensor(storage, offset: offset, dtype: dtype, shape: shape)
        // Quantised blocks are read bytewise or as 16-bit scales; plain types as themselves.
        let alignment = dtype.isQuantized ? 2 : dtype.blockBytes
        guard unsafe UInt(bitPattern: view.pointer) % UInt(alignment) != 0 else { return view }
        let copy = try Tensor(Storage(byteCount: view.byteCount, budget: budget, category: .weights), dtype: dtype, shape: shape)
        unsafe copy.pointer.copyMemory(from: view.pointer, byteCount: view.byteCount)
        return copy
    }
}
