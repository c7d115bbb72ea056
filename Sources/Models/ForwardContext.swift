package import Autograd
package import Tensors

/// One forward pass over a model: the tape, who adapts what, and where the tokens stand.
///
/// Activations are `[batch·length, features]`, row `b·length + t`.
package final class ForwardContext {
    package let tape: Tape
    package let routing: Routing
    package let batch: Int
    package let length: Int
    /// i32 `[batch·length]`: rotary positions.
    package let positions: Tensor
    /// u8 `[batch, keyLength]`, 0 = padding; nil: none.
    package let keyMask: Tensor?
    /// i32 `[batch·length]`: first key each query may see (packed sequences); nil: 0.
    package let firstKey: Tensor?
    /// Keys and values of earlier tokens, one cache per sample; empty outside generation.
    package let caches: [KeyValueCache]
    /// Recompute each block in the backward pass instead of keeping its activations.
    package let recomputesBlocks: Bool

    package init(
        tape: Tape, routing: Routing, batch: Int, length: Int, positions: Tensor, keyMask: Tensor? = nil, firstKey: Tensor? = nil,
        caches: [KeyValueCache] = [], recomputesBlocks: Bool = false
    ) {
        self.tape = tape
        self.routing = routing
        self.batch = batch
        self.length = length
        self.positions = positions
        self.keyMask = keyMask
        self.firstKey = firstKey
        self.caches = caches
        self.recomputesBlocks = recomputesBlocks
    }

    /// The same pass on another tape (a recomputed block).
    package func on(_ tape: Tape) -> ForwardContext {
        ForwardContext(
            tape: tape, routing: routing, batch: batch, length: length, positions: positions, keyMask: keyMask, firstKey: firstKey, caches: caches)
    }
}
