internal import Glibc
package import Platform
internal import Tensors

// Parts of activations: rows are samples and tokens, columns are features.
extension Tape {
    /// Rows `range` of `x`; a view, no copy. The gradient is added into that part of x's.
    package func rows(_ x: Variable, _ range: Range<Int>) throws(PEFTError) -> Variable {
        let output = result(try x.value.rows(range), of: x)
        record(output) { [engine, slot = x.slot] dY throws(PEFTError) in
            guard let slot else { return }
            engine.axpby(1, dY, 1, into: try slot.sum(engine).rows(range))
        }
        return output
    }

    /// The parts below each other; same width and type.
    package func concatenateRows(_ parts: [Variable]) throws(PEFTError) -> Variable {
        guard let first = parts.first else { throw PEFTError(.internal, "concatenateRows of nothing") }
        if parts.count == 1 { return first }
        var rows = 0
        for part in parts {
            try require(part.value.columns == first.value.columns && part.value.dtype == first.value.dtype, "concatenateRows: \(part.shape) below \(first.shape)")
            rows += part.value.rows
        }
        let y = try Tensor(engine, [rows, first.value.columns], first.value.dtype)
        var start = 0
        var places: [(slot: GradientSlot, range: Range<Int>)] = []
        for part in parts {
            let range = start..<start + part.value.rows
            engine.axpby(1, part.value, 0, into: try y.rows(range))
            if let slot = part.slot { places.append((slot, range)) }
            start = range.upperBound
        }
        let output = places.isEmpty || !isRecording ? Variable(y) : Variable(y, GradientSlot(shape: y.shape, dtype: y.dtype))
        record(output) { [engine] dY throws(PEFTError) in
            for place in places { try place.slot.add(try dY.rows(place.range), engine) }
        }
        return output
    }

    /// Rows `indices` of `x`, in that order, repeats allowed.
    /// - Throws: `.argument` for an index `x` does not have.
    package func gatherRows(_ x: Variable, _ indices: [Int32]) throws(PEFTError) -> Variable {
        let indices = try Tensor(engine, indices, shape: [indices.count])
        try checkIndices(indices, in: 0..<x.value.rows, "row")
        return try gatherRows(x, checked: indices)
    }

    func gatherRows(_ x: Variable, checked indices: Tensor) throws(PEFTError) -> Variable {
        let y = try Tensor(engine, [indices.count, x.value.columns], x.value.dtype)
        engine.gatherRows(x.value, indices, into: y)
        let output = result(y, of: x)
        record(output) { [engine, slot = x.slot] dY throws(PEFTError) in
            guard let slot else { return }
            if slot.dtype == .f32 { return engine.scatterAddRows(dY, indices, into: try slot.sum(engine)) }
            let sum = try Tensor.zeros(engine, slot.shape)
            engine.scatterAddRows(dY, indices, into: sum)
            try slot.add(try sum.converted(to: slot.dtype, engine), engine)
        }
        return output
    }

    /// The mean of each range of rows: `[ranges.count, n]` (pooling).
    package func meanRows(_ x: Variable, _ ranges: [Range<Int>]) throws(PEFTError) -> Variable {
        let n = x.value.columns
        let sums = try Tensor.zeros(engine, [ranges.count, n])
        var groups = [Int32](repeating: 0, count: x.value.rows)
        var shares = [Float](repeating: 0, count: x.value.rows)
        for (group, range) in ranges.enumerated() {
            let (part, sum) = (try x.value.rows(range), try sums.rows(group..<group + 1))
            let share = 1 / Float(max(range.count, 1))
            engine.addColumnSums(of: part, to: sum)
            engine.axpby(share, sum, 0, into: sum)
            for row in range { (groups[row], shares[row]) = (Int32(truncatingIfNeeded: group), share) }
        }
        let mean = x.value.dtype == .f32 ? sums : try sums.converted(to: x.value.dtype, engine)
        let output = result(mean, of: x)
        record(output) { [engine, slot = x.slot] dY throws(PEFTError) in
            guard let slot else { return }
            let dX = try Tensor(engine, slot.shape, slot.dtype)
            engine.gatherRows(dY, try Tensor(engine, groups, shape: [groups.count]), into: dX)
            engine.scaleRows(dX, try Tensor(engine, shares, shape: [shares.count]), into: dX)
            try slot.add(dX, engine)
        }
        return output
    }

    /// `x` `[rows, n]` cut into parts of `widths` columns (a fused query-key-value projection).
    package func splitColumns(_ x: Variable, _ widths: [Int]) throws(PEFTError) -> [Variable] {
        try require(widths.reduce(0, +) == x.value.columns, "splitColumns: \(widths) of \(x.shape)")
        var parts: [Variable] = []
        var start = 0
        for width in widths {
            let part = try Tensor(engine, [x.value.rows, width], x.value.dtype)
            engine.copyColumns(from: x.value, at: start, to: part, at: 0, width: width)
            parts.append(result(part, of: x))
            start += width
        }
        guard let slot = x.slot else { return parts }
        let slots = parts.map(\.slot)
        record { [engine] () throws(PEFTError) in
            let gradients = slots.map { $0?.take() }
            guard gradients.contains(where: { $0 != nil }) else { return }
            let dX = try Tensor.zeros(engine, slot.shape, slot.dtype)
            var start = 0
            for (gradient, width) in zip(gradients, widths) {
                if let gradient { engine.copyColumns(from: gradient, at: 0, to: dX, at: start, width: width) }
                start += width
            }
            try slot.add(dX, engine)
        }
        return parts
    }

    /// The parts side by side; same number of rows and type.
    package func concatenateColumns(_ parts: [Variable]) throws(PEFTError) -> Variable {
        guard let first = parts.first else { throw PEFTError(.internal, "concatenateColumns of nothing") }
        var width = 0
        for part in parts {
            try require(part.value.rows == first.value.rows && part.value.dtype == first.value.dtype, "concatenateColumns: \(part.shape) beside \(first.shape)")
            width += part.value.columns
        }
        let y = try Tensor(engine, [first.value.rows, width], first.value.dtype)
        var start = 0
        var places: [(slot: GradientSlot, start: Int)] = []
        for part in parts {
            engine.copyColumns(from: part.value, at: 0, to: y, at: start, width: part.value.columns)
            if let slot = part.slot { places.append((slot, start)) }
            start += part.value.columns
        }
        let output = places.isEmpty || !isRecording ? Variable(y) : Variable(y, GradientSlot(shape: y.shape, dtype: y.dtype))
        record(output) { [engine] dY throws(PEFTError) in
            for place in places {
                let part = try Tensor(engine, place.slot.shape, place.slot.dtype)
                engine.copyColumns(from: dY, at: place.start, to: part, at: 0, width: part.columns)
                try place.slot.add(part, engine)
            }
        }
        return output
    }
}

extension Engine {
    /// Copies a band of `width` columns between two matrices of the same type and number of rows.
    fileprivate func copyColumns(from x: Tensor, at start: Int, to y: Tensor, at target: Int, width: Int) {
        let size = x.dtype.blockBytes
        parallel(1) { _, _ in
            for row in 0..<min(x.rows, y.rows) {
                unsafe memcpy(y.pointer + row * y.rowBytes + target * size, x.pointer + row * x.rowBytes + start * size, width * size)
            }
        }
    }
}
