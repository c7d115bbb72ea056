internal import Autograd
internal import Models
internal import Platform
internal import Tensors

/// LoRA of a linear layer or a convolution, with DoRA's magnitude where the configuration asks for one.
final class LinearLoRA: AdapterModule {
    let target: MatrixTarget
    let linear: Linear
    /// f32 `[r, in]`, and the kernel of a convolution
    let a: Parameter
    /// f32 `[out, r]`; `[out, r/groups, 1…]` of a convolution
    let b: Parameter
    /// f32 `[out]`: `lora_bias`.
    let bias: Parameter?
    let magnitude: Magnitude?
    let rank: Int
    let factor: Double
    let start: LoRAStart
    let engine: Engine
    /// `BlockScaling.followsCPU`
    let followsCPU: Bool
    let dropout: Float
    /// B and A in bf16, as they are now.
    private let halves: Kept<Always, (b: Tensor, a: Tensor)>

    init(_ target: MatrixTarget, key: String, rank: Int, scaling: Double, _ settings: LoRASettings, _ model: Model)
        throws(PEFTError)
    {
        guard rank % target.groups == 0 else {
            throw PEFTError(.argument, "r is \(rank); '\(target.name)' has \(target.groups) groups, into which it must divide")
        }
        self.target = target
        linear = target.linear
        self.rank = rank
        factor = scaling
        start = settings.start
        dropout = settings.dropout
        halves = Kept(model)
        engine = model.engine
        followsCPU = model.followsCPU
        a = Parameter(
            name: key + ".lora_A.weight", value: try .zeros(engine, [rank, target.channels] + target.kernel, .f32, .adapters))
        b = Parameter(
            name: key + ".lora_B.weight",
            value: try .zeros(engine, [linear.outputSize, rank / target.groups] + target.kernel.map { _ in 1 }, .f32, .adapters),
            isTrainable: start != .mica)
        bias =
            settings.hasBias
            ? Parameter(name: key + ".lora_B.bias", value: try .zeros(engine, [linear.outputSize], .f32, .adapters))
            : nil
        let ones = target.kernel.map { _ in 1 }
        magnitude = settings.hasMagnitude ? try Magnitude(key: key, shape: ones.isEmpty ? [linear.outputSize] : [1, linear.outputSize] + ones, model) : nil
    }

    var layer: any Layer { target.layer }
    /// A and B as matrices: views.
    private func factors() throws(PEFTError) -> (b: Tensor, a: Tensor) {
        (try b.value.reshaped([linear.outputSize, rank / target.groups]), try a.value.reshaped([rank, linear.inputSize]))
    }
    /// What products of few rows read; the caller holds the model's lock.
    func factors(_ copies: DecodingCopies?) throws(PEFTError) -> (b: Tensor, a: Tensor) {
        guard let copies, copies.factors == .bf16 else { return (b.value, a.value) }
        let engine = copies.engine
        return try halves(engine) { () throws(PEFTError) in
            (try b.value.converted(to: .bf16, engine, .adapters), try a.value.converted(to: .bf16, engine, .adapters))
        }
    }
    var parameters: [Parameter] { [a, b, bias, magnitude?.parameter].compactMap { $0 } }
    var scaling: Double? { factor }
    var changesBase: Bool { start.changesBase }

    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        let residual = try start(random)
        try magnitude?.initialize(residual ?? linear.weight, isTransposed: linear.isTransposed, try factors(), scale: Float(factor))
        return residual.map { ["weight": $0] } ?? [:]
    }

    func hook(scale: Float, beside replacements: [String: Parameter]) -> any LayerHook {
        LinearLoRAHook(self, scale: Float(factor) * scale, dropout: dropout, replacements)
    }

    func change(scale: Float) throws(PEFTError) -> WeightChange? {
        guard magnitude == nil, target.groups == 1 else { return nil }
        let (b, a) = try factors()
        let scale = factor * Double(scale)
        let shift = try bias.map { (bias) throws(PEFTError) in
            let shift = try bias.value.converted(to: .f32, engine, .scratch)
            engine.axpby(Float(scale), bias.value, 0, into: shift)
            return shift
        }
        return WeightChange(.product(b: b, a: a, scale: scale), bias: shift)
    }

    func fold(into weights: inout FoldedWeights, scale: Float) throws(PEFTError) {
        if target.groups > 1 { return try weights.fold(hook(scale: scale, beside: [:]), target) }
        let scale = Float(factor) * scale
        guard let stored = try weights.tensor("weight") else { return }
        let w = try target.matrix(stored)
        try addProduct(to: w, scale: scale)
        if let magnitude, let original = weights.original("weight") {
            let scaled = try magnitude.scaled(w, try target.matrix(original), isTransposed: linear.isTransposed, try factors(), scale: scale)
            weights.set("weight", try scaled.reshaped(stored.shape))
        }
        guard let bias else { return }
        guard let layerBias = try weights.tensor("bias") else {
            throw PEFTError(.unsupported, "'\(linear.name)' has no bias that lora_bias could be merged into")
        }
        engine.axpby(scale, bias.value, 1, into: layerBias)
    }

    /// `w += scale·B·A`, as the layer stores it.
    func addProduct(to w: Tensor, scale: Float) throws(PEFTError) {
        let (b, a) = try factors()
        if linear.isTransposed {  // W [in, out] += s·Aᵀ·Bᵀ
            try engine.multiply(
                .forward, try a.transposed(engine), b, into: w, compute: .f32, alpha: scale,
                accumulate: true)
        } else {  // W [out, in] += s·B·A
            try engine.multiply(
                .inputGradient, b, a, into: w, compute: .f32, alpha: scale, accumulate: true)
        }
    }
}

private final class LinearLoRAHook: LayerHook {
    private let module: LinearLoRA
    private let scale: Float
    private let dropout: Float
    private let replacements: [String: Parameter]

    init(_ module: LinearLoRA, scale: Float, dropout: Float, _ replacements: [String: Parameter]) {
        self.module = module
        self.scale = scale
        self.dropout = dropout
        self.replacements = replacements
    }

    func branch(_ copies: DecodingCopies?) throws(PEFTError) -> LowRankBranch? {
        guard module.bias == nil, module.a.value.shape.count == 2, module.b.value.shape.count == 2, module.target.groups == 1 else { return nil }
        guard let magnitude = module.magnitude else {
            let (b, a) = try module.factors(copies)
            return LowRankBranch(a: a, b: b, scale: scale)
        }
        guard let copies, replacements.isEmpty, module.rank > 0 else { return nil }
        let ((b, a), linear) = (try module.factors(copies), module.linear)
        let factors = try magnitude.factors(linear.weight, isTransposed: linear.isTransposed, try module.factors(nil), scale: scale, copies.engine)
        return LowRankBranch(a: a, b: b, scale: scale, factors: factors)
    }

    func add(to y: consuming Variable, input x: Variable, of layer: Linear, _ tape: Tape) throws(PEFTError) -> Variable
    {
        let (a, b) = (try tape.matrix(module.a), try tape.matrix(module.b))
        if let magnitude = module.magnitude {
            let weight = replacements["weight"]?.value ?? layer.weight
            let bias = replacements["bias"].map { tape.variable($0) } ?? layer.bias.map { Variable($0) }
            return try magnitude.add(
                to: y, input: x, weight, bias: bias, isTransposed: layer.isTransposed, a: a, b: b, scale: scale,
                dropout: dropout, tape)
        }
        let sum =
            layer.groups == 1
            ? try tape.addLowRank(to: y, input: x, a: a, b: b, scale: scale, dropout: dropout)
            : try tape.add(y, try grouped(x, a, b, layer, tape))
        guard let bias = module.bias else { return sum }
        return try tape.scaleColumns(sum, scale: nil, shift: try tape.scaled(tape.variable(bias), by: scale))
    }
}

extension LinearLoRAHook {
    /// Each group of outputs sees its own of the r values.
    private func grouped(_ x: Variable, _ a: Variable, _ b: Variable, _ layer: Linear, _ tape: Tape) throws(PEFTError) -> Variable {
        let (groups, each) = (layer.groups, layer.outputSize / layer.groups)
        let parts = try tape.splitColumns(try tape.linear(try tape.dropout(x, dropout), a), Array(repeating: a.value.rows / groups, count: groups))
        let products = try parts.enumerated().map { (group, part) throws(PEFTError) in
            try tape.linear(part, try tape.rows(b, group * each..<(group + 1) * each))
        }
        return try tape.scaled(try tape.concatenateColumns(products), by: scale)
    }
}
