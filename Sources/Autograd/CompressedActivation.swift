internal import Kernels
internal import Platform
internal import Tensors

/// An activation kept for the backward pass in 8 bits and a scale for every 32 values (after GACT, arXiv:2206.11357, in its
/// simplest form): 17/32 of bf16's bytes. Only where activations are bf16, so that f32 computations stay exact.
struct CompressedActivation {
    private let values: Tensor
    private let scales: Tensor
    private let shape: [Int]
    private let dtype: DType

    private static let block = 32

    static func isPossible(_ x: Tensor) -> Bool { x.dtype == .bf16 && x.count % block == 0 }

    init(_ x: Tensor, _ engine: Engine) throws(PEFTError) {
        let count = x.count
        (shape, dtype) = (x.shape, x.dtype)
        values = try Tensor(engine, [count], .i8)
        scales = try Tensor(engine, [count / CompressedActivation.block], .bf16)
        let (q, s) = (values, scales)
        engine.parallel(engine.shares(count)) { part, parts in
            unsafe pk_compress(
                engine.level, x.dtype.rawValue, x.pointer, q.pointer.assumingMemoryBound(to: Int8.self), s.pointer.assumingMemoryBound(to: UInt16.self), count, part, parts)
        }
    }

    /// The values again, in new memory.
    func tensor(_ engine: Engine) throws(PEFTError) -> Tensor {
        let result = try Tensor(engine, shape, dtype)
        let count = result.count
        engine.parallel(engine.shares(count)) { part, parts in
            unsafe pk_decompress(
                engine.level, dtype.rawValue, values.pointer.assumingMemoryBound(to: Int8.self), scales.pointer.assumingMemoryBound(to: UInt16.self), result.pointer, count, part, parts)
        }
        return result
    }
}
