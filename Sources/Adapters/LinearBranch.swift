internal import Autograd
internal import Models
internal import Platform
internal import Tensors

/// What most methods are at a linear layer: a branch beside it, in the cheapest factored form,
///
///     y += scale·ΔW·drop(x)
///
/// Hook and folding follow from the branch alone.
protocol LinearBranch: MatrixModule {
    var linear: Linear { get }
    /// What folding sees, where that is not the branch itself (without what is random).
    var folded: any LinearBranch { get }

    /// - Parameters:
    ///   - y: the running output, consumed.
    ///   - w: the layer's weight as it stores it and without adapters that are merged with this one, for branches that are
    ///     made of it.
    func add(to y: consuming Variable, input x: Variable, beside w: Tensor, scale: Float, _ tape: Tape)
        throws(PEFTError) -> Variable
}

extension LinearBranch {
    var target: MatrixTarget { MatrixTarget(linear) }
    var folded: any LinearBranch { self }

    func add(to y: consuming Variable, input x: Variable, scale: Float, _ site: HookSite) throws(PEFTError) -> Variable {
        try add(to: y, input: x, beside: site.weight, scale: scale, site.tape)
    }

    func fold(into weights: inout FoldedWeights, scale: Float) throws(PEFTError) {
        try weights.fold(folded.hook(scale: scale, beside: weights.beforeFolding()), target)
    }
}

/// One factor of ΔW.
enum BranchFactor {
    /// `[out, in]`
    case matrix(Variable)
    /// `[in, out]`
    case transposed(Variable)
    /// f32 `[n]`
    case diagonal(Variable)
}

extension Tape {
    /// `y += scale · F_n·…·F_1·drop(x)`, never forming the product.
    func addProduct(
        to y: consuming Variable, input x: Variable, _ factors: [BranchFactor], scale: Float, dropout p: Float = 0
    ) throws(PEFTError) -> Variable {
        if let lowRank, lowRank.isInput(x), let (a, b) = try endMatrices(factors) { return try addLowRank(to: y, input: x, a: a, b: b, scale: scale) }
        // The two matrices at the end are LoRA's fused operation.
        if factors.count >= 2, case .matrix(let a) = factors[factors.count - 2], case .matrix(let b) = factors[factors.count - 1] {
            if factors.count == 2 { return try addLowRank(to: y, input: x, a: a, b: b, scale: scale, dropout: p) }
            let h = try product(of: try dropout(x, p), factors.dropLast(2), nil)
            return try addLowRank(to: y, input: h, a: a, b: b, scale: scale)
        }
        let h = try product(of: try dropout(x, p), factors[...], y.value.dtype)
        return try add(y, scale == 1 ? h : try scaled(h, by: scale))
    }

    /// The last of some matrices, and the product of those before it; nil: not all are matrices.
    private func endMatrices(_ factors: [BranchFactor]) throws(PEFTError) -> (a: Variable, b: Variable)? {
        var matrices: [Variable] = []
        for factor in factors {
            switch factor {
            case .matrix(let w): matrices.append(w)
            case .transposed(let w): matrices.append(Variable(try w.value.transposed(engine)))
            case .diagonal: return nil
            }
        }
        guard var a = matrices.first, matrices.count >= 2, let b = matrices.popLast() else { return nil }
        for next in matrices.dropFirst() { a = try linear(next, a, transposed: true) }
        return (a, b)
    }

    private func product(of x: Variable, _ factors: ArraySlice<BranchFactor>, _ dtype: DType?) throws(PEFTError) -> Variable {
        var h = x
        for (index, factor) in factors.enumerated() {
            let type = factors.dropFirst(index + 1).contains { !$0.isDiagonal } ? nil : dtype
            switch factor {
            case .matrix(let w): h = try linear(h, w, as: type)
            case .transposed(let w): h = try linear(h, w, transposed: true, as: type)
            case .diagonal(let d): h = try scaleColumns(h, scale: d)
            }
        }
        return h
    }
}

extension BranchFactor {
    fileprivate var isDiagonal: Bool { if case .diagonal = self { true } else { false } }
}

extension Tensor {
    /// Sets the values of an f32 tensor of the caller's own.
    func set(_ values: [Float]) {
        unsafe withMutableFloats { target in
            for index in 0..<min(target.count, values.count) { unsafe target[index] = values[index] }
        }
    }
}

extension AdapterMethod {
    /// The layer as a linear one of a kind that the method takes.
    static func linear(_ layer: any Layer) throws(PEFTError) -> Linear {
        if let linear = layer as? Linear, layerKinds.contains(linear.kind) { return linear }
        throw PEFTError(
            .unsupported, "'\(layer.name)' is \(layer.kind); \(peftType) adapts \(layerKinds.joined(separator: ", "))")
    }
}

extension Model {
    /// A parameter of an adapter, all zeros.
    func parameter(_ name: String, _ shape: [Int], isTrainable: Bool = true) throws(PEFTError) -> Parameter {
        Parameter(name: name, value: try .zeros(engine, shape, .f32, .adapters), isTrainable: isTrainable)
    }
}

extension [String: JSONValue] {
    /// A table of default targets with other rows.
    func with(_ rows: (targets: [String], types: [String])...) -> [String: JSONValue] {
        var table = self
        for row in rows {
            for type in row.types { table[type] = .array(row.targets.map { .string($0) }) }
        }
        return table
    }
}
