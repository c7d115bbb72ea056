internal import Kernels
package import Platform
package import Tensors

/// For each column of a result, a column of the input: an order, a selection, a repetition. Checked once.
package struct ColumnMap: Sendable {
    /// i32
    let indices: Tensor
    /// The way back, i32, where each column is chosen once.
    let inverse: Tensor?
    /// Columns there are to choose from.
    package let width: Int
    package var count: Int { indices.count }

    package init(_ engine: Engine, _ indices: [Int], of width: Int) throws(PEFTError) {
        try require(indices.allSatisfy { $0 >= 0 && $0 < width } && width <= Int(Int32.max), "a column that is none of \(width)")
        self.indices = try Tensor(engine, indices.map { Int32(truncatingIfNeeded: $0) }, shape: [indices.count], .adapters)
        self.width = width
        var places = [Int32](repeating: -1, count: width)
        for (place, column) in indices.enumerated() where places[column] < 0 { places[column] = Int32(truncatingIfNeeded: place) }
        let isPermutation = indices.count == width && !places.contains(-1)
        inverse = isPermutation ? try Tensor(engine, places, shape: [width], .adapters) : nil
    }
}

extension Tape {
    /// `y[:, c] = x[:, map[c]]`; `x` `[rows, map.width]`, `y` `[rows, map.count]`. Keeps nothing.
    package func gatherColumns(_ x: Variable, _ map: ColumnMap) throws(PEFTError) -> Variable {
        try require(x.value.columns == map.width, "gatherColumns: \(map.width) columns of \(x.shape)")
        let output = result(try engine.gatherColumns(x.value, map), of: x)
        record(output) { [engine, slot = x.slot] dY throws(PEFTError) in
            try slot?.add(try engine.scatterColumns(dY, map), engine)
        }
        return output
    }

    /// Each row is a matrix `[n, m]`; the result's are its transpose, `[m, n]`. Keeps nothing.
    package func turnedRows(_ x: Variable, _ n: Int, _ m: Int) throws(PEFTError) -> Variable {
        try require(x.value.columns == n * m, "turnedRows: \(n) × \(m) for x \(x.shape)")
        let output = result(try engine.turnedRows(x.value, n, m), of: x)
        record(output) { [engine, slot = x.slot] dY throws(PEFTError) in try slot?.add(try engine.turnedRows(dY, m, n), engine) }
        return output
    }

    /// The first `width` columns of a frozen f32 matrix; itself where it has no more. Nobody keeps them: the backward pass cuts
    /// them off again.
    package func leftColumns(of x: Tensor, _ width: Int) throws(PEFTError) -> Variable {
        try require(width <= x.columns && x.dtype == .f32, "\(width) columns of \(x.dtype.name) \(x.shape)")
        if width == x.columns { return Variable(x) }
        var cut = Variable(try engine.leftColumns(of: x, width))
        cut.recipe = Recipe { [engine] () throws(PEFTError) in try engine.leftColumns(of: x, width) }
        return cut
    }

    /// The same for rows: `y[r, :] = x[map[r], :]`.
    package func gatherRows(_ x: Variable, _ map: ColumnMap) throws(PEFTError) -> Variable {
        try require(x.value.rows == map.width, "gatherRows: \(map.width) rows of \(x.shape)")
        return try gatherRows(x, checked: map.indices)
    }

    /// The other way: `y[:, map[c]] = Σ x[:, c]`; `x` `[rows, map.count]`, `y` `[rows, map.width]`, zero where nothing comes.
    package func scatterColumns(_ x: Variable, _ map: ColumnMap) throws(PEFTError) -> Variable {
        try require(x.value.columns == map.count, "scatterColumns: \(map.count) columns of \(x.shape)")
        let output = result(try engine.scatterColumns(x.value, map), of: x)
        record(output) { [engine, slot = x.slot] dY throws(PEFTError) in
            try slot?.add(try engine.gatherColumns(dY, map), engine)
        }
        return output
    }
}

extension Engine {
    fileprivate func turnedRows(_ x: Tensor, _ n: Int, _ m: Int) throws(PEFTError) -> Tensor {
        let y = try Tensor(self, x.shape, x.dtype)
        parallel(shares(y.count)) { part, parts in
            unsafe pk_turn_rows(x.dtype.rawValue, x.pointer, y.pointer, Int64(x.rows), Int64(n), Int64(m), part, parts)
        }
        return y
    }

    fileprivate func leftColumns(of x: Tensor, _ width: Int) throws(PEFTError) -> Tensor {
        let (rows, all, y) = (x.rows, x.columns, try Tensor(self, [x.rows, width], .f32, .scratch))
        parallel(shares(y.count)) { part, parts in
            let (from, to) = unsafe (x.floatPointer, y.floatPointer)
            for row in rows * Int(part) / Int(parts)..<rows * (Int(part) + 1) / Int(parts) { unsafe (to + row * width).update(from: from + row * all, count: width) }
        }
        return y
    }

    func gatherColumns(_ x: Tensor, _ map: ColumnMap) throws(PEFTError) -> Tensor {
        try gatherColumns(x, map.indices, of: map.width)
    }

    private func gatherColumns(_ x: Tensor, _ indices: Tensor, of width: Int) throws(PEFTError) -> Tensor {
        let y = try Tensor(self, [x.rows, indices.count], x.dtype)
        parallel(shares(y.count)) { part, parts in
            unsafe pk_gather_columns(
                x.dtype.rawValue, x.pointer, indices.int32Pointer, y.pointer, Int64(x.rows), Int64(width), Int64(indices.count), part, parts)
        }
        return y
    }

    func scatterColumns(_ x: Tensor, _ map: ColumnMap) throws(PEFTError) -> Tensor {
        if let inverse = map.inverse { return try gatherColumns(x, inverse, of: map.count) }
        let sums = try Tensor(self, [x.rows, map.width], .f32)
        parallel(shares(x.count)) { part, parts in
            unsafe pk_scatter_columns(
                x.dtype.rawValue, x.pointer, map.indices.int32Pointer, sums.floatPointer, Int64(x.rows), Int64(map.count), Int64(map.width), part, parts)
        }
        return x.dtype == .f32 ? sums : try sums.converted(to: x.dtype, self)
    }
}
