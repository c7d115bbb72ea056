package import Platform
internal import Tensors

// Pictures as rows: `[batch·positions, channels]`.
extension Tape {
    /// The same values the other way round: each sample's `[positions, channels]` becomes `[channels, positions]`, or back. `x` holds
    /// `batch` matrices of `rows` × `columns`; the result, as many of `columns` × `rows`, has the shape `shape`.
    package func turned(_ x: Variable, batch: Int, rows: Int, columns: Int, shape: [Int]) throws(PEFTError) -> Variable {
        try require(x.value.count == batch * rows * columns && shape.reduce(1, *) == x.value.count, "turned: \(batch) × \(rows) × \(columns) of \(x.shape)")
        let y = try Tensor(engine, shape, x.value.dtype)
        engine.turn(x.value, into: y, rows, columns)
        let output = result(y, of: x)
        record(output) { [engine, slot = x.slot] dY throws(PEFTError) in
            guard let slot else { return }
            let dX = try Tensor(engine, slot.shape, slot.dtype)
            engine.turn(dY, into: dX, columns, rows)
            try slot.add(dX, engine)
        }
        return output
    }

    /// The largest value of each row of `x` f32 `[n, k]`: `[n, 1]`. The gradient goes to the first of equal ones. Keeps a place per row.
    package func rowMaxima(_ x: Variable) throws(PEFTError) -> Variable {
        let (n, k) = (x.value.rows, x.value.columns)
        try require(x.value.dtype == .f32 && k > 0, "rowMaxima of \(x.value.dtype.name) \(x.shape)")
        let y = try Tensor(engine, [n, 1])
        var places = [Int](repeating: 0, count: n)
        unsafe x.value.withFloats { values in
            unsafe y.withMutableFloats { maxima in
                for row in 0..<min(n, maxima.count) where values.count >= n * k {
                    for column in 0..<k where unsafe !(values[row * k + column] <= values[row * k + places[row]]) { places[row] = column }
                    unsafe maxima[row] = values[row * k + places[row]]
                }
            }
        }
        let output = result(y, of: x)
        record(output) { [engine, slot = x.slot, places] dY throws(PEFTError) in
            guard let slot else { return }
            let dX = try Tensor.zeros(engine, slot.shape, slot.dtype)
            unsafe dY.withFloats { gradients in
                unsafe dX.withMutableFloats { dX in
                    for row in 0..<min(n, gradients.count) where dX.count >= n * k { unsafe dX[row * k + places[row]] = gradients[row] }
                }
            }
            try slot.add(dX, engine)
        }
        return output
    }
}

extension Engine {
    /// `y[sample][c][r] = x[sample][r][c]`.
    fileprivate func turn(_ x: Tensor, into y: Tensor, _ rows: Int, _ columns: Int) {
        let size = x.dtype.blockBytes
        guard rows * columns > 0, x.byteCount == y.byteCount else { return }
        let count = x.count
        parallel(1) { _, _ in
            for index in 0..<count {
                let (sample, r, c) = (index / (rows * columns), index / columns % rows, index % columns)
                unsafe (y.pointer + ((sample * columns + c) * rows + r) * size).copyMemory(from: x.pointer + index * size, byteCount: size)
            }
        }
    }
}
