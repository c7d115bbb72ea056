internal import Kernels
package import Platform
internal import Tensors

/// Non-linearities; raw values are the kernels' (PK_SILU …).
package enum ActivationKind: Int32, Sendable, CaseIterable {
    case silu = 0
    /// Exact: x·Φ(x).
    case gelu = 1
    /// GPT-2's approximation ("gelu_new", "gelu_pytorch_tanh").
    case geluTanh = 2
    case relu = 3
    case tanh = 4
    case sigmoid = 5
    /// x·sigmoid(1.702x).
    case quickGelu = 6
}

extension Tape {
    /// `y = f(x)`. Keeps `x`.
    package func activation(_ x: Variable, _ kind: ActivationKind) throws(PEFTError) -> Variable {
        let (count, act) = (x.value.count, x.value.dtype.rawValue)
        let y = try Tensor(engine, x.shape, x.value.dtype)
        engine.parallel(engine.shares(count)) { part, parts in
            unsafe pk_activation_forward(engine.level, act, kind.rawValue, x.value.pointer, y.pointer, count, part, parts)
        }
        let output = result(y, of: x)
        record(output) { [engine] dY throws(PEFTError) in
            guard let slot = x.slot else { return }
            let (dX, accumulate) = try slot.buffer(engine)
            engine.parallel(engine.shares(count)) { part, parts in
                unsafe pk_activation_backward(
                    engine.level, act, kind.rawValue, x.value.pointer, dY.pointer, dX.pointer, accumulate ? 1 : 0, count, part, parts)
            }
        }
        return output
    }

    /// `y = f(gate) · up` (SwiGLU, GeGLU). Keeps `gate` and `up`, in 8 bits where activations are bf16: they are the largest
    /// things a decoder's block keeps.
    package func glu(_ gate: Variable, _ up: Variable, _ kind: ActivationKind) throws(PEFTError) -> Variable {
        try require(up.value.count == gate.value.count && up.value.dtype == gate.value.dtype, "glu: gate \(gate.shape), up \(up.shape)")
        var output = result(try engine.glu(gate.value, up.value, kind), of: gate, up)
        guard output.needsGradient else { return output }
        let (first, second) = (try compact(gate), try compact(up))
        output.recipe = Recipe { [engine] () throws(PEFTError) in try engine.glu(try first.tensor(), try second.tensor(), kind) }
        record(output) { [engine, gateSlot = gate.slot, upSlot = up.slot] dY throws(PEFTError) in
            let (gate, up) = (try first.tensor(), try second.tensor())
            // What was decompressed is nobody else's: its memory takes the gradients.
            let dGate = first.isFresh ? gate : try Tensor(engine, gate.shape, gate.dtype)
            let dUp = second.isFresh ? up : try Tensor(engine, up.shape, up.dtype)
            engine.parallel(engine.shares(gate.count)) { part, parts in
                unsafe pk_glu_backward(
                    engine.level, gate.dtype.rawValue, kind.rawValue, gate.pointer, up.pointer, dY.pointer, dGate.pointer, dUp.pointer, nil, gate.count, part, parts)
            }
            try gateSlot?.add(dGate, engine)
            try upSlot?.add(dUp, engine)
        }
        return output
    }
}

extension Engine {
    fileprivate func glu(_ gate: Tensor, _ up: Tensor, _ kind: ActivationKind) throws(PEFTError) -> Tensor {
        let y = try Tensor(self, gate.shape, gate.dtype)
        parallel(shares(gate.count)) { part, parts in
            unsafe pk_glu_forward(level, gate.dtype.rawValue, kind.rawValue, gate.pointer, up.pointer, y.pointer, gate.count, part, parts)
        }
        return y
    }
}
