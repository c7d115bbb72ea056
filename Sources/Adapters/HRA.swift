internal import Autograd
package import Models
package import Platform
internal import Tensors

/// HRA (Yuan et al., arXiv:2405.17484): r reflections of the input,
///
///     y = W·H·x + b        H = Π (I − 2·û_i·û_iᵀ),   û_i the columns of u [in, r], normalised
///
/// which together are `I − Û·T·Ûᵀ` with a small T (the compact WY form, Schreiber & Van Loan 1989): `T⁻¹ = ½I + striu(ÛᵀÛ)`. So
/// r reflections cost what a branch of rank r does. With `apply_GS` the columns are made orthogonal first, and H mirrors the
/// space they span: `I − 2·U·(UᵀU)⁻¹·Uᵀ`. For linear layers and convolutions (their patches).
package struct HRA: AdapterMethod {
    package static let peftType = "HRA"
    package static let layerKinds = ["Linear", "Conv2d"]

    package static let defaults: JSONObject = [
        "apply_GS": .bool(false), "bias": .string("none"), "exclude_modules": .null, "init_weights": .bool(true), "layers_pattern": .null,
        "layers_to_transform": .null, "modules_to_save": .null, "r": .integer(8), "target_modules": .null,
    ]

    private let rank: Int
    private let isOrthogonal: Bool
    private let isIdentity: Bool

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        try configuration.checkBias()
        rank = try configuration.positive("r")
        isOrthogonal = try configuration.flag("apply_GS")
        isIdentity = try configuration.choice("init_weights", [], orFlag: true) == "true"
        if isNew, isIdentity, rank % 2 != 0 || isOrthogonal {
            model.engine.warn("with an odd r (\(rank)) or apply_GS, HRA does not begin as the identity")
        }
    }

    package func module(for layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule {
        let target = try MatrixTarget(layer, of: HRA.self, inGroups: false)
        try AdapterConfiguration.checkRank(rank, layer)
        return try HRAModule(target, key: key, rank: rank, isOrthogonal: isOrthogonal, isIdentity: isIdentity, model.engine)
    }
}

private final class HRAModule: MatrixModule {
    let target: MatrixTarget
    /// f32 `[in, r]`
    private let u: Parameter
    private let rank: Int
    private let isOrthogonal: Bool
    private let isIdentity: Bool

    init(_ target: MatrixTarget, key: String, rank: Int, isOrthogonal: Bool, isIdentity: Bool, _ engine: Engine) throws(PEFTError) {
        self.target = target
        (self.rank, self.isOrthogonal, self.isIdentity) = (rank, isOrthogonal, isIdentity)
        u = Parameter(name: key + ".hra_u", value: try .zeros(engine, [target.inputSize, rank], .f32, .adapters))
    }

    let isLowRank = true
    var parameters: [Parameter] { [u] }

    /// Two equal reflections cancel each other; columns that are made orthogonal must not be equal.
    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        var random = random
        let pairs = isIdentity && rank % 2 == 0 && !isOrthogonal
        let bound = 1 / Float(pairs ? rank / 2 : rank).squareRoot()
        var previous: Float = 0
        var count = 0
        u.value.fill {
            if !pairs || count % 2 == 0 { previous = (2 * random.uniform() - 1) * bound }
            count += 1
            return previous
        }
        return [:]
    }

    /// `x·Hᵀ = x − x·U·Tᵀ·Uᵀ`
    func input(_ x: Variable, _ site: HookSite) throws(PEFTError) -> Variable {
        let tape = site.tape
        let free = tape.variable(u)
        let units = isOrthogonal ? free : try tape.scaleColumns(free, scale: try tape.inverseNorms(free, ofColumns: true, floor: 1e-30))
        let products = try tape.transposedProduct(units, units)  // [r, r]
        let inner: Variable
        if isOrthogonal {
            inner = try tape.scaled(products, by: 0.5)
        } else {
            let upper = (0..<rank * rank).map { $0 % rank > $0 / rank ? Float(1) : 0 }
            let half = (0..<rank * rank).map { $0 % (rank + 1) == 0 ? Float(0.5) : 0 }
            let masked = try tape.multiply(products, Variable(try Tensor(tape.engine, upper, shape: [rank, rank])))
            inner = try tape.add(masked, Variable(try Tensor(tape.engine, half, shape: [rank, rank])))
        }
        let t = try tape.reshaped(try tape.inverses(try tape.reshaped(inner, [1, rank, rank])), [rank, rank])
        // A = T·Uᵀ [r, in]
        return try tape.addLowRank(to: x, input: x, a: try tape.linear(t, units), b: units, scale: -1)
    }
}
