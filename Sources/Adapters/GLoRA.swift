internal import Autograd
package import Models
package import Platform
internal import Tensors

/// GLoRA (Chavan et al., arXiv:2306.07967): a weight and its bias, scaled and shifted,
///
///     ΔW = W⊙A + B        Δb = b⊙D + E + W·C
///
/// each of A to E of low rank (Xd·Xu), a vector, one number, or nothing. C, D, E are for layers that have a bias.
package struct GLoRA: AdapterMethod {
    package static let peftType = "GLORA"
    package static let layerKinds = ["Linear"]
    package static let defaults: JSONObject = [
        "bias": .string("none"), "config_A_B": .string("lora"), "config_C": .string("lora"), "config_D_E": .string("constant"),
        "init_weights": .bool(true), "modules_to_save": .null, "r": .integer(8), "target_modules": .null,
    ]

    private let rank: Int
    private let (ab, c, de): (String, String, String)
    private let isIdentity: Bool

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        rank = try configuration.positive("r")
        ab = try configuration.choice("config_A_B", ["lora", "vector", "constant", "none"])
        c = try configuration.choice("config_C", ["lora", "vector", "none"])
        de = try configuration.choice("config_D_E", ["vector", "constant", "none"])
        isIdentity = try configuration.flag("init_weights")
        try configuration.checkBias()
    }

    package func module(for layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule {
        let target = try MatrixTarget(layer, of: GLoRA.self)
        let linear = target.linear
        let (out, input) = (linear.outputSize, linear.inputSize)
        func path(_ name: String, _ form: String, _ shape: [Int], column: Bool = true) throws(PEFTError) -> GLoRAPath {
            try GLoRAPath(
                key: "\(key).glora_\(name)", form: shape.count < 2 && form == "lora" ? "none" : form, shape, rank: rank, isColumn: column,
                isIdentity: isIdentity, model)
        }
        let hasBias = linear.bias != nil
        return GLoRALinear(
            target, a: try path("A", ab, [out, input]), b: try path("B", ab, [out, input]),
            c: try path("C", hasBias ? c : "none", [input, 1]), d: try path("D", hasBias ? de : "none", [out], column: false),
            e: try path("E", hasBias ? de : "none", [out], column: false))
    }
}

/// One of A to E.
private final class GLoRAPath: Sendable {
    /// Xd and Xu, or X; nothing: `none`.
    let parameters: [Parameter]
    private let isIdentity: Bool
    /// PEFT saves the zeros of a path that is none.
    let zeros: Parameter?

    init(
        key: String, form: String, _ shape: [Int], rank: Int, isColumn: Bool, isIdentity: Bool, _ model: Model
    ) throws(PEFTError) {
        self.isIdentity = isIdentity
        zeros = form == "none" ? try model.parameter(key + ".zeros", shape, isTrainable: false) : nil
        switch form {
        case "lora":
            parameters = [try model.parameter(key + ".Xd", [shape[0], rank]), try model.parameter(key + ".Xu", [rank, shape[1]])]
        case "vector": parameters = [try model.parameter(key + ".X", isColumn ? [shape[0], 1] : [shape[0]])]
        case "constant": parameters = [try model.parameter(key + ".X", [1])]
        default: parameters = []
        }
    }

    var isNone: Bool { parameters.isEmpty }

    func initialize(_ random: inout RandomStream) {
        if parameters.count == 2 { parameters[1].value.fillUniform(fanIn: parameters[1].value.columns, &random) }
        guard !isIdentity, let first = parameters.first else { return }
        if first.value.count == 1 { first.value.fillNormal(0.02, &random) } else { first.value.fillUniform(fanIn: first.value.columns, &random) }
    }

    /// A vector of `size` values from a vector or one number.
    func vector(_ size: Int, _ tape: Tape) throws(PEFTError) -> Variable {
        let x = tape.variable(parameters[0])
        if x.value.count == size { return try tape.reshaped(x, [size]) }
        return try tape.reshaped(try tape.gatherRows(try tape.reshaped(x, [1, 1]), [Int32](repeating: 0, count: size)), [size])
    }
}

private final class GLoRALinear: MatrixModule {
    let target: MatrixTarget
    private let (a, b, c, d, e): (GLoRAPath, GLoRAPath, GLoRAPath, GLoRAPath, GLoRAPath)

    private var linear: Linear { target.linear }

    init(_ target: MatrixTarget, a: GLoRAPath, b: GLoRAPath, c: GLoRAPath, d: GLoRAPath, e: GLoRAPath) {
        self.target = target
        (self.a, self.b, self.c, self.d, self.e) = (a, b, c, d, e)
    }

    private var paths: [GLoRAPath] { [a, b, c, d, e] }
    var parameters: [Parameter] { paths.flatMap(\.parameters) }
    var views: [SavedTensor] { paths.compactMap { $0.zeros.map { SavedTensor($0) } } }

    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        var random = random
        for path in paths { path.initialize(&random) }
        return [:]
    }

    /// `W ⊙ (1 + A) + B` as one weight, see HiRA.
    func product(of x: Variable, bias: Variable?, scale: Float, _ site: HookSite, as dtype: DType?) throws(PEFTError) -> Variable? {
        let (tape, w) = (site.tape, site.weight)
        guard a.parameters.count == 2, !tape.isInference else { return nil }
        let factors = (a.parameters + (b.parameters.count == 2 ? b.parameters : [])).map { tape.variable($0) }
        let changed = try tape.remade(factors) { [target] (tape, factors) throws(PEFTError) in
            try tape.changedWeight(
                try target.weight(w, tape.engine), times: LowRankChange(b: factors[0], a: factors[1]),
                plus: factors.count == 4 ? LowRankChange(b: factors[2], a: factors[3]) : nil, scale: scale)
        }
        let y = try tape.linear(x, changed, bias: bias, as: dtype)
        return try addShift(to: b.parameters.count == 2 ? y : try addB(to: y, input: x, scale: scale, tape), scale: scale, site)
    }

    func add(to y: consuming Variable, input x: Variable, scale: Float, _ site: HookSite) throws(PEFTError) -> Variable {
        let (tape, w) = (site.tape, site.weight)
        var y = y
        let isTransposed = linear.isTransposed
        if a.parameters.count == 2 {
            let (xd, xu) = (tape.variable(a.parameters[0]), tape.variable(a.parameters[1]))
            y = try tape.addProduct(to: y, input: x, scale: scale, of: [xd, xu]) { (tape, inputs) throws(PEFTError) in
                let dense = try w.converted(to: .f32, tape.engine, .scratch)
                return try tape.multiply(
                    try tape.linear(inputs[0], inputs[1], transposed: true), Variable(isTransposed ? try dense.transposed(tape.engine) : dense))
            }
        } else if !a.isNone {
            let product = try tape.linear(x, frozen: w, transposed: isTransposed, as: y.value.dtype)
            y = try tape.addProduct(to: y, input: product, [.diagonal(try a.vector(linear.outputSize, tape))], scale: scale)
        }
        return try addShift(to: try addB(to: y, input: x, scale: scale, tape), scale: scale, site)
    }

    func fold(into weights: inout FoldedWeights, scale: Float) throws(PEFTError) {
        try weights.fold(hook(scale: scale, beside: weights.beforeFolding()), target)
    }

    private func addB(to y: consuming Variable, input x: Variable, scale: Float, _ tape: Tape) throws(PEFTError) -> Variable {
        if b.isNone { return y }
        if b.parameters.count == 2 {
            return try tape.addLowRank(to: y, input: x, a: tape.variable(b.parameters[1]), b: tape.variable(b.parameters[0]), scale: scale)
        }
        // The same number in all columns: the sum of the inputs, once for each output.
        let ones = try Tensor(tape.engine, [Float](repeating: 1, count: linear.inputSize), shape: [1, linear.inputSize])
        let column = try tape.reshaped(try b.vector(linear.outputSize, tape), [linear.outputSize, 1])
        return try tape.addLowRank(to: y, input: x, a: Variable(ones), b: column, scale: scale)
    }

    private func addShift(to y: consuming Variable, scale: Float, _ site: HookSite) throws(PEFTError) -> Variable {
        guard let shift = try shift(site) else { return y }
        let tape = site.tape
        return try tape.scaleColumns(y, scale: nil, shift: scale == 1 ? shift : try tape.scaled(shift, by: scale))
    }

    /// `b⊙D + E + W·C`
    private func shift(_ site: HookSite) throws(PEFTError) -> Variable? {
        let (tape, size) = (site.tape, linear.outputSize)
        var terms: [Variable] = []
        if !d.isNone, let bias = site.bias { terms.append(try tape.multiply(try d.vector(size, tape), bias)) }
        if !e.isNone { terms.append(try e.vector(size, tape)) }
        if !c.isNone {
            var row = try tape.reshaped(tape.variable(c.parameters[0]), [1, c.parameters[0].value.count])
            if c.parameters.count == 2 {
                let xu = tape.variable(c.parameters[1])
                row = try tape.linear(try tape.reshaped(xu, [1, xu.value.count]), tape.variable(c.parameters[0]))
            }
            terms.append(try tape.reshaped(try tape.linear(row, frozen: site.weight, transposed: linear.isTransposed), [size]))
        }
        guard var sum = terms.first else { return nil }
        for term in terms.dropFirst() { sum = try tape.add(sum, term) }
        return sum
    }
}
