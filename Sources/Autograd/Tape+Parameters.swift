internal import Glibc
package import Platform
internal import Tensors

// Functions of parameters (f32, small): computed in plain loops.
extension Tape {
    package func cosine(_ x: Variable) throws(PEFTError) -> Variable { try mapped(x, { cosf($0) }, derivative: { -sinf($0) }) }
    package func sine(_ x: Variable) throws(PEFTError) -> Variable { try mapped(x, { sinf($0) }, derivative: { cosf($0) }) }
    package func arctangent(_ x: Variable) throws(PEFTError) -> Variable { try mapped(x, { atanf($0) }, derivative: { 1 / (1 + $0 * $0) }) }

    /// `ln σ(x)`
    package func logSigmoid(_ x: Variable) throws(PEFTError) -> Variable {
        try mapped(x, { min($0, 0) - log1pf(expf(-abs($0))) }, derivative: { 1 / (1 + expf($0)) })
    }

    /// A function of each value.
    package func mapped(_ x: Variable, _ function: (Float) -> Float, derivative: @escaping (Float) -> Float) throws(PEFTError) -> Variable {
        let y = try Tensor(engine, x.shape, .f32)
        y.fill(from: x.value) { value, _ in function(value) }
        let output = result(y, of: x)
        record(output) { [engine, slot = x.slot, x = x.value] dY throws(PEFTError) in
            let dX = try Tensor(engine, x.shape, .f32)
            dX.fill(from: x) { value, _ in derivative(value) }
            try slot?.add(try dX.times(dY, engine), engine)
        }
        return output
    }

    /// `1 / max(‖x_i‖, floor)` for each row, or column, of a matrix. Where the floor holds, nothing comes back.
    ///
    ///     dX_i = −dy_i · y_i³ · x_i
    package func inverseNorms(_ x: Variable, ofColumns: Bool, floor: Float) throws(PEFTError) -> Variable {
        let (rows, columns) = (x.value.rows, x.value.columns)
        let count = ofColumns ? columns : rows
        let y = try Tensor(engine, [count], .f32)
        var squares = [Double](repeating: 0, count: count)
        unsafe x.value.withFloats { x in
            for unsafe (place, value) in unsafe x.enumerated() { squares[ofColumns ? place % columns : place / columns] += Double(value) * Double(value) }
        }
        unsafe y.withMutableFloats { y in
            for index in y.indices { unsafe y[index] = 1 / max(Float(squares[index].squareRoot()), floor) }
        }
        let output = result(y, of: x)
        record(output) { [engine, slot = x.slot, x = x.value] dY throws(PEFTError) in
            let dX = try Tensor(engine, x.shape, .f32)
            // −dy·y³, zero where the floor holds.
            var factors = [Float](repeating: 0, count: count)
            unsafe dY.withFloats { dY in
                unsafe y.withFloats { y in
                    for index in 0..<min(dY.count, y.count, count) {
                        let inverse = unsafe y[index]
                        factors[index] = unsafe inverse * floor < 1 ? -dY[index] * inverse * inverse * inverse : 0
                    }
                }
            }
            dX.fill(from: x) { value, place in factors[ofColumns ? place % columns : place / columns] * value }
            try slot?.add(dX, engine)
        }
        return output
    }

    /// `√Σ x²` `[1]`; at zero nothing comes back.
    package func norm(_ x: Variable) throws(PEFTError) -> Variable {
        let square = unsafe x.value.withFloats { unsafe $0.reduce(0.0) { $0 + Double($1) * Double($1) } }
        let norm = Float(square.squareRoot())
        let output = result(try Tensor(engine, [norm], shape: [1]), of: x)
        record(output) { [engine, slot = x.slot, x = x.value] dY throws(PEFTError) in
            let factor = unsafe dY.withFloats { unsafe $0.first ?? 0 }
            try slot?.add(norm > 0 ? factor / norm : 0, times: x, engine)
        }
        return output
    }
}

extension Tensor {
    /// `self[i] = function(x[i], i)`; both f32 of the same count.
    fileprivate func fill(from x: Tensor, _ function: (_ value: Float, _ place: Int) -> Float) {
        unsafe x.withFloats { x in
            unsafe withMutableFloats { y in
                for place in 0..<min(x.count, y.count) { unsafe y[place] = function(x[place], place) }
            }
        }
    }

    /// `self · other` elementwise, over `self`.
    fileprivate func times(_ other: Tensor, _ engine: Engine) throws(PEFTError) -> Tensor {
        unsafe other.withFloats { other in
            unsafe withMutableFloats { values in
                for place in 0..<min(values.count, other.count) { unsafe values[place] *= other[place] }
            }
        }
        return self
    }
}
