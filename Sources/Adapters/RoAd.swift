internal import Autograd
package import Models
package import Platform
internal import Tensors

/// RoAd (Liao & Monz, arXiv:2409.00119): pairs of outputs are rotated and stretched; a group's first half pairs with its second,
///
///     y₁ = α·cos θ · x₁ − α·sin θ · x₂        y₂ = α·sin θ · x₁ + α·cos θ · x₂        x = W·input + b
///
/// with θ and α of a pair (road_1), of each output (road_2), or of cosine and sine apart (road_4). For linear layers.
package struct RoAd: AdapterMethod {
    package static let peftType = "ROAD"
    package static let layerKinds = ["Linear"]

    package static let defaults: JSONObject = [
        "group_size": .integer(64), "init_weights": .bool(true), "modules_to_save": .null, "target_modules": .null, "variant": .string("road_1"),
    ]

    private let variant: String
    private let group: Int
    private let isIdentity: Bool

    package init(_ configuration: inout AdapterConfiguration, _ model: Model, isNew: Bool) throws(PEFTError) {
        variant = try configuration.choice("variant", ["road_1", "road_2", "road_4"])
        group = try configuration.positive("group_size")
        guard group % 2 == 0 else { throw PEFTError(.argument, "group_size is \(group); it must be even") }
        isIdentity = try configuration.flag("init_weights")
    }

    package func module(for layer: any Layer, key: String, _ model: Model) throws(PEFTError) -> any AdapterModule {
        let target = try MatrixTarget(layer, of: RoAd.self)
        guard target.outputSize % group == 0 else {
            throw PEFTError(.argument, "group_size is \(group), which does not divide the \(target.outputSize) outputs of '\(layer.name)'")
        }
        return try RoAdModule(target, key: key, variant: variant, group: group, isIdentity: isIdentity, model.engine)
    }
}

private final class RoAdModule: MatrixModule {
    let target: MatrixTarget
    /// f32 `[out/2]`, `[out]` or `[2·out]`
    private let (theta, alpha): (Parameter, Parameter)
    private let isIdentity: Bool
    /// The parameter of each output's cosine and sine, and the output that it is paired with.
    private let (cosines, sines, partners): (ColumnMap, ColumnMap, ColumnMap)
    /// f32 `[out]`: −1 for first halves, else 1.
    private let signs: Tensor

    init(_ target: MatrixTarget, key: String, variant: String, group: Int, isIdentity: Bool, _ engine: Engine) throws(PEFTError) {
        self.target = target
        self.isIdentity = isIdentity
        let (outputs, half) = (target.outputSize, group / 2)
        let size = variant == "road_1" ? outputs / 2 : variant == "road_2" ? outputs : 2 * outputs
        theta = Parameter(name: key + ".road_theta", value: try .zeros(engine, [size], .f32, .adapters))
        alpha = Parameter(name: key + ".road_alpha", value: try .zeros(engine, [size], .f32, .adapters))
        func places(sine: Bool) -> [Int] {
            (0..<outputs).map { output in
                switch variant {
                case "road_1": output / group * half + output % half
                case "road_2": output
                default: output / group * 2 * group + output % group + (sine ? group : 0)
                }
            }
        }
        cosines = try ColumnMap(engine, places(sine: false), of: size)
        sines = try ColumnMap(engine, places(sine: true), of: size)
        partners = try ColumnMap(engine, (0..<outputs).map { $0 % group < half ? $0 + half : $0 - half }, of: outputs)
        signs = try Tensor(engine, (0..<outputs).map { $0 % group < half ? Float(-1) : 1 }, shape: [outputs], .adapters)
    }

    var parameters: [Parameter] { [theta, alpha] }

    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        var random = random
        if !isIdentity { theta.value.fillNormal(0.5, &random) }
        alpha.value.fill { isIdentity ? 1 : 1 + 0.5 * random.normal() }
        return [:]
    }

    func output(_ y: consuming Variable, _ site: HookSite) throws(PEFTError) -> Variable {
        let (tape, outputs) = (site.tape, target.outputSize)
        func factors(_ map: ColumnMap, _ function: (Variable) throws(PEFTError) -> Variable) throws(PEFTError) -> Variable {
            let theta = try tape.gatherColumns(try tape.reshaped(tape.variable(theta), [1, map.width]), map)
            let alpha = try tape.gatherColumns(try tape.reshaped(tape.variable(alpha), [1, map.width]), map)
            return try tape.reshaped(try tape.multiply(alpha, try function(theta)), [outputs])
        }
        let cosine = try factors(cosines) { (x) throws(PEFTError) in try tape.cosine(x) }
        let sine = try tape.multiply(try factors(sines) { (x) throws(PEFTError) in try tape.sine(x) }, Variable(signs))
        return try tape.turnColumns(y, cosine: cosine, sine: sine, partners: partners)
    }
}
