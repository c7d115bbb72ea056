internal import Autograd
internal import Models
internal import Platform
internal import Tensors

/// LoHa or LoKr with the magnitude of each output by itself, as DoRA has it beside LoRA (LyCORIS' `weight_decompose`, `dora_scale` in files):
///
///     y = m/n ⊙ (W·x + ΔW·x) + b        n = ‖W + ΔW‖ of each output's row
///
/// of which, as in LyCORIS, n learns too (PEFT's DoRA, `Magnitude`, takes it for a constant; so do convolutions in groups here).
final class DecomposedModule: AdapterModule {
    private let inner: any MatrixModule
    /// f32 `[out, 1…]`
    private let magnitude: Parameter
    private let model: Model
    /// 1/n until something is written under the model's lock.
    private let known: Kept<Float, Tensor>

    init(_ inner: any MatrixModule, key: String, _ model: Model) throws(PEFTError) {
        (self.inner, self.model, known) = (inner, model, Kept(model))
        magnitude = try model.parameter(key + ".dora_scale", [inner.target.outputSize, 1] + inner.target.kernel.map { _ in 1 })
    }

    var layer: any Layer { inner.layer }
    var parameters: [Parameter] { inner.parameters + [magnitude] }
    var scaling: Double? { inner.scaling }

    func initialize(_ random: RandomStream) throws(PEFTError) -> [String: Tensor] {
        let changes = try inner.initialize(random)
        let norms = try inverseNorms(inner.target.linear.weight, scale: 1, model.engine).floats(model.engine)
        magnitude.value.set(norms.map { $0 > 0 ? 1 / $0 : 0 })
        return changes
    }

    func hook(scale: Float, beside replacements: [String: Parameter]) -> any LayerHook {
        DecomposedHook(self, inner.hook(scale: scale, beside: replacements), scale: scale, replacements)
    }

    func fold(into weights: inout FoldedWeights, scale: Float) throws(PEFTError) {
        let original = weights.original("weight").map { ["weight": Parameter(name: "", value: $0, isTrainable: false)] }
        try weights.fold(hook(scale: scale, beside: original ?? [:]), inner.target)
    }

    /// m/n `[out]`
    fileprivate func ratio(_ w: Tensor, scale: Float, _ tape: Tape) throws(PEFTError) -> Variable {
        if tape.isRecording, inner.target.groups == 1 {
            // ΔW as the inputs' unit vectors see it, [in, out], beside Wᵀ; nothing of it is kept.
            let inverse = try tape.recomputed([]) { [self] (tape, _) throws(PEFTError) in
                let target = inner.target, engine = tape.engine
                let turned = try target.weight(w, engine).transposed(engine)
                let site = HookSite(layer: target.linear, replacements: [:], tape: tape)
                let units = try Tensor.zeros(engine, [turned.rows, turned.rows])
                unsafe units.withMutableFloats { units in
                    for index in stride(from: 0, to: units.count, by: turned.rows + 1) { unsafe units[index] = 1 }
                }
                return try tape.inverseNorms(try inner.add(to: Variable(turned), input: Variable(units), scale: scale, site), ofColumns: true, floor: .leastNormalMagnitude)
            }
            return try tape.multiply(try tape.vector(magnitude), inverse)
        }
        let inverse = try known(scale, tape.engine) { () throws(PEFTError) in try inverseNorms(w, scale: scale, tape.engine) }
        return try tape.multiply(try tape.vector(magnitude), Variable(inverse))
    }

    private func inverseNorms(_ w: Tensor, scale: Float, _ engine: Engine) throws(PEFTError) -> Tensor {
        var weights = FoldedWeights(layer, originals: [:], start: ["weight": try w.converted(to: .f32, engine, .scratch)], engine)
        try inner.fold(into: &weights, scale: scale)
        let target = inner.target
        let inverse = try Tensor(engine, [target.outputSize], .f32, .adapters)
        guard let sum = try weights.tensor("weight"), !engine.isPlanning else { return inverse }
        let rows = try target.weight(sum, engine)
        let width = rows.columns
        unsafe rows.withFloats { values in
            unsafe inverse.withMutableFloats { inverse in
                for row in 0..<min(inverse.count, values.count / max(width, 1)) {
                    let squares = unsafe values[row * width..<(row + 1) * width].reduce(0.0) { $0 + Double($1) * Double($1) }
                    unsafe inverse[row] = squares > 0 ? Float(1 / squares.squareRoot()) : 0
                }
            }
        }
        return inverse
    }

    fileprivate var target: MatrixTarget { inner.target }
    fileprivate var weight: Tensor { target.linear.weight }
}

private final class DecomposedHook: LayerHook {
    private let module: DecomposedModule
    private let inner: any LayerHook
    private let scale: Float
    private let replacements: [String: Parameter]

    init(_ module: DecomposedModule, _ inner: any LayerHook, scale: Float, _ replacements: [String: Parameter]) {
        (self.module, self.inner, self.scale, self.replacements) = (module, inner, scale, replacements)
    }

    func weights(_ copies: DecodingCopies) throws(PEFTError) -> (weight: Tensor, bias: Tensor?)? {
        replacements.isEmpty ? try FoldedWeights.copies(of: module, module.target, scale: scale, copies) : nil
    }

    func add(to y: consuming Variable, input x: Variable, of layer: Linear, _ tape: Tape) throws(PEFTError) -> Variable {
        try inner.add(to: y, input: x, of: layer, tape)
    }

    /// The bias stands outside: `m/n⊙(Wx + b + ΔWx) + (1 − m/n)⊙b`.
    func output(_ y: consuming Variable, input x: Variable, of layer: Linear, _ tape: Tape) throws(PEFTError) -> Variable {
        let ratio = try module.ratio(replacements["weight"]?.value ?? module.weight, scale: scale, tape)
        let bias = replacements["bias"].map { tape.variable($0) } ?? layer.bias.map { Variable($0) }
        let shift = try bias.map { (bias) throws(PEFTError) in try tape.add(bias, try tape.scaled(try tape.multiply(ratio, bias), by: -1)) }
        return try tape.scaleColumns(y, scale: ratio, shift: shift)
    }
}
