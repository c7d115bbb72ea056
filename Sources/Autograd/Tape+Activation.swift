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

    /// `y = f(gate) · up` (SwiGLU, GeGLU). Keeps `gate` and `up`.
    package func glu(_ gate: Variable, _ up: Variable, _ kind: ActivationKind) throws(PEFTError) -> Variable {
        let (count, dtype) = (gate.value.count, gate.value.dtype)
        try require(up.value.count == count && up.value.dtype == dtype, "glu: gate \(gate.shape), up \(up.shape)")
        let product = { [engine, gate = gate.value, up = up.value] () throws(PEFTError) -> Tensor in
            let y = try Tensor(engine, gate.shape, dtype)
            engine.parallel(engine.shares(count)) { part, parts in
                unsafe pk_glu_forward(engine.level, dtype.rawValue, kind.rawValue, gate.pointer, up.pointer, y.pointer, count, part, parts)
            }
            return y
        }
        var output = result(try product(), of: gate, up)
        if output.needsGradient { output.recipe = Recipe(product) }
        record(output) { [engine] dY throws(PEFTError) in
            let dGate = try Tensor(engine, gate.shape, dtype)
            let dUp = try Tensor(engine, up.shape, dtype)
            engine.parallel(engine.shares(count)) { part, parts in
                unsafe pk_glu_backward(
                    engine.level, dtype.rawValue, kind.rawValue, gate.value.pointer, up.value.pointer, dY.pointer, dGate.pointer, dUp.pointer, nil, count, part,
                    parts)
            }
            try gate.slot?.add(dGate, engine)
            try up.slot?.add(dUp, engine)
        }
        return output
    }
}
