internal import Kernels
package import Platform

/// A product of low rank beside a layer's own: `y = factors ⊙ (x·Wᵀ + scale · x·Aᵀ·Bᵀ)`; A `[r, in]`, B `[out, r]`, both f32 or both bf16.
package struct LowRankBranch {
    package let a: Tensor
    package let b: Tensor
    package let scale: Float
    /// f32 `[out]`; nil: 1.
    package let factors: Tensor?
    /// It is what it is where nothing else acts: others would see another input, or be multiplied too.
    package let isAlone: Bool

    package init(a: Tensor, b: Tensor, scale: Float, factors: Tensor? = nil, isAlone: Bool = false) {
        self.a = a
        self.b = b
        self.scale = scale
        self.factors = factors
        self.isAlone = isAlone || factors != nil
    }
}

/// What adapters do at a layer, where products of few rows can do it.
package enum FewRowChange {
    /// They add products of low rank.
    case branches([LowRankBranch])
    /// They come to another weight `[out, in]`, and bias (f32 `[out]`), in place of the layer's.
    case weights(Tensor, bias: Tensor?)
}

/// What adapters do, layer by layer, as products of few rows take it along (`FewRowProduct`).
@safe package final class FewRowChanges: @unchecked Sendable {
    // Sendable: nothing changes after `init`; the pointers lead into `memory`.

    @safe struct Entry {
        let inputSize: Int, outputSize: Int
        /// Of no rows yet.
        let branch: pk_branch
    }

    private let entries: [Entry]
    /// Those of a layer; nil: what acts there is more than that.
    private let layers: [Range<Int>?]
    private let weights: [Int: (weight: Tensor, bias: Tensor?)]
    private let memory: [Tensor]

    /// - Parameter changes: by `Layer.index`; nil: see `isAll`.
    /// - Throws: `.internal` for factors that do not fit each other.
    package init(_ changes: [FewRowChange?]) throws(PEFTError) {
        var (entries, layers, memory): ([Entry], [Range<Int>?], [Tensor]) = ([], [], [])
        var weights: [Int: (weight: Tensor, bias: Tensor?)] = [:]
        for (index, change) in changes.enumerated() {
            let first = entries.count
            var branches: [LowRankBranch] = []
            switch change {
            case .branches(let own)?: branches = own
            case .weights(let weight, let bias)?: weights[index] = (weight, bias)
            case nil: break
            }
            for branch in branches {
                let (a, b) = (branch.a, branch.b)
                guard a.dtype == .f32 || a.dtype == .bf16, b.dtype == a.dtype, b.columns == a.rows, a.rows > 0,
                    branch.factors.map({ $0.dtype == .f32 && $0.count == b.rows }) ?? true, !branch.isAlone || branches.count == 1
                else {
                    throw PEFTError(.internal, "a branch of A \(a.dtype.name) \(a.shape), B \(b.dtype.name) \(b.shape)")
                }
                memory += [a, b] + (branch.factors.map { [$0] } ?? [])
                unsafe entries.append(
                    Entry(
                        inputSize: a.columns, outputSize: b.rows,
                        branch: pk_branch(a: a.pointer, b: b.pointer, rank: Int64(a.rows), begin: 0, end: 0, scale: branch.scale, type: a.dtype.rawValue,
                            factors: branch.factors.map { unsafe UnsafePointer($0.pointer.assumingMemoryBound(to: Float.self)) })))
            }
            layers.append(change == nil ? nil : first..<entries.count)
        }
        self.entries = entries
        self.layers = layers
        self.weights = weights
        self.memory = memory
    }

    /// Whether they are all that acts at a layer.
    package func isAll(at layer: Int) -> Bool { layer >= layers.count || layers[layer] != nil }

    /// What stands in for the layer's own.
    package func weights(at layer: Int) -> (weight: Tensor, bias: Tensor?)? { weights[layer] }

    func entries(at layer: Int) -> ArraySlice<Entry> { layer < layers.count ? entries[layers[layer] ?? 0..<0] : [] }
}
