internal import Autograd
internal import Models
internal import Platform
internal import Tensors

extension FoldedWeights {
    /// Rows that are sent through a hook at once.
    private static let tile = 256

    /// Puts what a hook does around a layer into its weights, whatever it is, as long as it is affine in the layer's input:
    ///
    ///     b′ = y(0)    W′ᵀ = y(I) − b′
    ///
    /// `I` is sent through in tiles of rows. A hook that leaves the input alone costs no product with W: `I·Wᵀ` is Wᵀ.
    /// - Throws: `.unsupported` where a layer without a bias would need one, or one of groups inputs of other groups.
    mutating func fold(_ hook: any LayerHook, _ target: MatrixTarget) throws(PEFTError) {
        guard let stored = try tensor("weight") else { return }
        let (inputs, outputs) = (target.inputSize, target.outputSize)
        let bias = try tensor("bias")
        let w = try target.dense(stored, engine)
        let current = Linear(name: target.name, index: target.linear.index, weight: w, bias: bias, isTransposed: true)
        let tape = Tape(engine, .f32)

        func response(_ x: Tensor, _ product: Tensor) throws(PEFTError) -> Tensor {
            let y = try hook.add(to: try tape.scaleColumns(Variable(product), scale: nil, shift: bias.map { Variable($0) }), input: Variable(x), of: current, tape)
            return try hook.output(y, input: Variable(x), of: current, tape).value
        }
        let nothing = try Tensor.zeros(engine, [1, inputs], .f32, .scratch)
        let shift = try response(nothing, try .zeros(engine, [1, outputs], .f32, .scratch)).reshaped([outputs])
        let opposite = try tape.scaled(Variable(shift), by: -1)

        let result = try Tensor(engine, [inputs, outputs], .f32, .scratch)
        for start in stride(from: 0, to: inputs, by: FoldedWeights.tile) {
            let range = start..<min(start + FoldedWeights.tile, inputs)
            let x = try Tensor.unitRows(engine, range, inputs)
            let seen = try hook.input(Variable(x), of: current, tape).value
            var product = try w.rows(range)
            if seen.storage !== x.storage {
                product = try Tensor(engine, [range.count, outputs], .f32, .scratch)
                try engine.multiply(.inputGradient, seen, w, into: product, compute: .f32)
            }
            let y = try tape.scaleColumns(Variable(try response(x, product)), scale: nil, shift: opposite).value
            engine.axpby(1, y, 0, into: try result.rows(range))
        }
        set("weight", try target.stored(result, like: stored, engine))
        if bias != nil { return set("bias", shift) }
        let isZero = unsafe shift.withFloats { unsafe $0.allSatisfy { $0 == 0 } }
        guard isZero else { throw PEFTError(.unsupported, "'\(target.name)' has no bias that this adapter could be merged into") }
    }
}

extension MatrixTarget {
    /// Wᵀ `[in, out]` of an f32 weight as the layer stores it, zero where a group of outputs does not see an input.
    fileprivate func dense(_ stored: Tensor, _ engine: Engine) throws(PEFTError) -> Tensor {
        if isTransposed { return stored }
        let matrix = try stored.reshaped([outputSize, inputSize / groups])
        if groups == 1 { return try matrix.transposed(engine) }
        let dense = try Tensor.zeros(engine, [inputSize, outputSize], .f32, .scratch)
        unsafe matrix.withFloats { from in
            unsafe dense.withMutableFloats { to in
                forEachWeight { index, place in unsafe to[place] = from[index] }
            }
        }
        return dense
    }

    fileprivate func stored(_ dense: Tensor, like stored: Tensor, _ engine: Engine) throws(PEFTError) -> Tensor {
        if isTransposed { return dense }
        if groups == 1 { return try dense.transposed(engine).reshaped(stored.shape) }
        let result = try Tensor(engine, stored.shape, .f32, .scratch)
        let isWhole = unsafe dense.withFloats { from in
            unsafe result.withMutableFloats { to in
                var kept = 0
                forEachWeight { index, place in
                    unsafe to[index] = from[place]
                    if unsafe from[place] != 0 { kept += 1 }
                }
                return unsafe kept == from.reduce(0) { $0 + ($1 != 0 ? 1 : 0) }
            }
        }
        guard isWhole else {
            throw PEFTError(.unsupported, "'\(name)' has \(groups) groups, and this adapter mixes them: it cannot be merged")
        }
        return result
    }

    /// Calls `body` with each place of a grouped weight `[out, in/groups]`, and its place in `[in, out]`.
    private func forEachWeight(_ body: (_ index: Int, _ place: Int) -> Void) {
        let (each, width) = (outputSize / groups, inputSize / groups)
        for output in 0..<outputSize {
            for column in 0..<width { body(output * width + column, (output / each * width + column) * outputSize + output) }
        }
    }
}

extension Tensor {
    /// Rows `range` of the identity of size `n`.
    static func unitRows(_ engine: Engine, _ range: Range<Int>, _ n: Int) throws(PEFTError) -> Tensor {
        let rows = try Tensor.zeros(engine, [range.count, n], .f32, .scratch)
        unsafe rows.withMutableFloats { values in
            guard values.count == range.count * n, range.upperBound <= n else { return }
            for (row, column) in range.enumerated() { unsafe values[row * n + column] = 1 }
        }
        return rows
    }
}
