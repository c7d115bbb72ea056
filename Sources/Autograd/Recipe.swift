internal import Platform
internal import Tensors

/// How to get a value back that costs next to nothing to compute again from what is kept anyway (a norm's output, a gated
/// product). Operations that need such an input in their backward pass keep the recipe instead of the value.
final class Recipe {
    private let compute: () throws(PEFTError) -> Tensor
    /// While the backward passes of the value's users run; it goes with the last of them.
    private var value: Tensor?

    init(_ compute: @escaping () throws(PEFTError) -> Tensor) { self.compute = compute }

    func result() throws(PEFTError) -> Tensor {
        if let value { return value }
        let fresh = try compute()
        value = fresh
        return fresh
    }
}

/// What a record keeps of an input.
enum Kept {
    case value(Tensor)
    case recipe(Recipe)
    case compressed(CompressedActivation, Engine)

    func tensor() throws(PEFTError) -> Tensor {
        switch self {
        case .value(let tensor): tensor
        case .recipe(let recipe): try recipe.result()
        case .compressed(let activation, let engine): try activation.tensor(engine)
        }
    }
}

extension Tape {
    /// A large activation for a backward pass: in 8 bits where activations are bf16 (`CompressedActivation`), else as it is.
    func compact(_ x: Tensor) throws(PEFTError) -> Kept {
        CompressedActivation.isPossible(x) ? .compressed(try CompressedActivation(x, engine), engine) : .value(x)
    }

    /// The same of one that may be computed again.
    func compact(_ x: Variable) throws(PEFTError) -> Kept { x.recipe == nil ? try compact(x.value) : x.kept }

    /// For several users: what they need is made once.
    func recipe(of kept: Kept) -> Recipe {
        if case .recipe(let recipe) = kept { return recipe }
        return Recipe { () throws(PEFTError) in try kept.tensor() }
    }
}

extension Kept {
    /// Every use has memory of its own.
    var isFresh: Bool { if case .compressed = self { true } else { false } }
}

extension Variable {
    /// The value for a backward pass, as cheaply as it can be kept.
    var kept: Kept { recipe.map { .recipe($0) } ?? .value(value) }
}
