import Autograd
import Checkpoints
import Platform
import Tensors
import Testing

@testable import Models

/// The conformance kit's tiny bases and PEFT's numbers on them (Tests/Golden/README.md).
enum Golden {
    static let folder = String(#filePath.dropLast("ModelsTests/Support.swift".count)) + "Golden/data"

    static func base(_ name: String) -> String { "\(folder)/bases/\(name)" }

    static func tensors(_ test: String, _ file: String) throws -> TensorSource {
        try Safetensors.open(path: "\(folder)/cases/\(test)/\(file).safetensors", budget: MemoryBudget())
    }

    static func integers(_ tensor: Tensor) -> [Int32] {
        (0..<tensor.count).map { Int32(truncatingIfNeeded: tensor.pointer.load(fromByteOffset: $0 * 8, as: Int64.self)) }
    }
}

/// The largest difference relative to the largest expected value.
func relativeError(_ found: [Float], _ expected: [Float]) -> Float {
    guard found.count == expected.count else { return .infinity }
    let largest = expected.map { abs($0) }.max() ?? 0
    return (zip(found, expected).map { abs($0 - $1) }.max() ?? 0) / max(largest, 1e-30)
}

extension Model {
    /// A pass over `ids` `[batch, length]` without adapters.
    func run(_ ids: [Int32], batch: Int, mask: [UInt8]? = nil, recomputes: Bool = false, caches: [KeyValueCache] = [], from start: Int32 = 0) throws -> [Float] {
        let length = ids.count / batch
        var keyMask: Tensor?
        if let mask {
            let tensor = try Tensor(engine, [batch, length], .u8)
            for (index, value) in mask.enumerated() { tensor.pointer.storeBytes(of: value, toByteOffset: index, as: UInt8.self) }
            keyMask = tensor
        }
        let context = ForwardContext(
            tape: Tape(engine, precision), routing: .all(unadapted), batch: batch, length: length,
            positions: try Tensor(engine, (0..<batch).flatMap { _ in (0..<Int32(length)).map { start + $0 } }, shape: [ids.count]), keyMask: keyMask, caches: caches,
            recomputedBlocks: recomputes ? .max : 0)
        let input = ModelInput.ids(try Tensor(engine, ids, shape: [ids.count]))
        return try logits(try hidden(input, context), of: input, context).value.floats(engine)
    }
}
