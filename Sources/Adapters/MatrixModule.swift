internal import Autograd
internal import Models
internal import Platform
internal import Tensors

/// A layer that multiplies by a matrix: linear, Conv1D, or a convolution, whose rows are the patches its kernel sees.
struct MatrixTarget: Sendable {
    /// Under whose name everything is saved.
    let layer: any Layer
    /// The product, which calls the hooks.
    let linear: Linear
    /// Of a convolution; empty for linear layers.
    let kernel: [Int]

    /// - Parameter inGroups: convolutions in groups are possible too.
    /// - Throws: `.unsupported` naming the layer's kind and those that the method takes.
    init(_ layer: any Layer, of method: any AdapterMethod.Type, inGroups: Bool = true) throws(PEFTError) {
        let kinds = method.layerKinds
        self.layer = layer
        switch layer {
        case let layer as Linear where kinds.contains(layer.kind): (linear, kernel) = (layer, [])
        case let layer as Convolution where kinds.contains(layer.kind): (linear, kernel) = (layer.matrix, layer.geometry.kernel)
        default:
            throw PEFTError(.unsupported, "'\(layer.name)' is \(layer.kind); \(method.peftType) adapts \(kinds.joined(separator: ", "))")
        }
        guard inGroups || linear.groups == 1 else { throw PEFTError(.unsupported, "'\(layer.name)': \(method.peftType) adapts convolutions without groups") }
    }

    /// Of a layer whose kind is known to be one that is taken.
    init(_ linear: Linear) { (layer, self.linear, kernel) = (linear, linear, []) }

    static let linears = ["Linear", "Conv1D"]
    static let convolutions = ["Conv1d", "Conv2d", "Conv3d"]
    /// torch's, whose projections are one matrix; its output projection is adapted with it.
    static let attention = "MultiheadAttention"

    var name: String { layer.name }
    /// What a row of the input has, patches of all channels for a convolution.
    var inputSize: Int { linear.inputSize }
    var outputSize: Int { linear.outputSize }
    var groups: Int { linear.groups }
    var isTransposed: Bool { linear.isTransposed }
    /// Places of the kernel.
    var taps: Int { kernel.reduce(1, *) }
    /// Input channels.
    var channels: Int { inputSize / max(taps, 1) }
    /// `[out, in/groups]` and the kernel.
    var weightShape: [Int] { [outputSize, channels / groups] + kernel }

    /// The layer's weight without a kernel's dimensions, as it is stored.
    func matrix(_ tensor: Tensor) throws(PEFTError) -> Tensor {
        kernel.isEmpty ? tensor : try tensor.reshaped([outputSize, tensor.count / max(outputSize, 1)])
    }

    /// The layer's weight as `[out, in/groups]`, f32, in memory of its own.
    func weight(_ tensor: Tensor, _ engine: Engine) throws(PEFTError) -> Tensor {
        let w = try tensor.converted(to: .f32, engine, .scratch)
        return isTransposed ? try w.transposed(engine) : try w.reshaped([outputSize, w.count / max(outputSize, 1)])
    }
}

/// Where a hook is called: the layer, what stands in for its tensors, the computation.
struct HookSite {
    let layer: Linear
    let replacements: [String: Parameter]
    let tape: Tape

    var weight: Tensor { replacements["weight"]?.value ?? layer.weight }
    var bias: Variable? { replacements["bias"].map { tape.variable($0) } ?? layer.bias.map { Variable($0) } }
}

/// A module of a matrix that acts through hooks of its own, as it stands: what `LayerHook` has, with the module's scale.
/// It gives what the method is at scale 1; at others input and output go that part of the way.
protocol MatrixModule: AdapterModule {
    var target: MatrixTarget { get }
    /// All it does is `addLowRank` or `addProduct` of its input, once, in `add` or in `input`, with factors that depend on parameters and the weight alone.
    var isLowRank: Bool { get }
    /// It costs next to nothing beside the layer's product.
    var isElementwise: Bool { get }
    /// As `LayerHook.readsAllRows`.
    var readsAllRows: Bool { get }
    func input(_ x: Variable, _ site: HookSite) throws(PEFTError) -> Variable
    /// As `LayerHook.product`.
    func product(of x: Variable, bias: Variable?, scale: Float, _ site: HookSite, as dtype: DType?) throws(PEFTError) -> Variable?
    func add(to y: consuming Variable, input x: Variable, scale: Float, _ site: HookSite) throws(PEFTError) -> Variable
    func output(_ y: consuming Variable, _ site: HookSite) throws(PEFTError) -> Variable
}

extension MatrixModule {
    var layer: any Layer { target.layer }
    var isLowRank: Bool { false }
    var isElementwise: Bool { false }
    var readsAllRows: Bool { false }
    func input(_ x: Variable, _ site: HookSite) throws(PEFTError) -> Variable { x }
    func product(of x: Variable, bias: Variable?, scale: Float, _ site: HookSite, as dtype: DType?) throws(PEFTError) -> Variable? { nil }
    func add(to y: consuming Variable, input x: Variable, scale: Float, _ site: HookSite) throws(PEFTError) -> Variable { y }
    func output(_ y: consuming Variable, _ site: HookSite) throws(PEFTError) -> Variable { y }

    func hook(scale: Float, beside replacements: [String: Parameter]) -> any LayerHook {
        MatrixHook(self, scale: scale, replacements)
    }

    func fold(into weights: inout FoldedWeights, scale: Float) throws(PEFTError) {
        try weights.fold(hook(scale: scale, beside: [:]), target)
    }
}

/// The hook of every `MatrixModule`.
private final class MatrixHook: LayerHook {
    private let module: any MatrixModule
    private let scale: Float
    private let replacements: [String: Parameter]

    init(_ module: any MatrixModule, scale: Float, _ replacements: [String: Parameter]) {
        self.module = module
        self.scale = scale
        self.replacements = replacements
    }

    var invocation: [Int32]? { module.invocation }
    var readsAllRows: Bool { module.readsAllRows }

    /// Beyond this rank it costs more to read than one operation after the other does.
    private static let highestRank = 64

    func branch(_ copies: DecodingCopies?) throws(PEFTError) -> LowRankBranch? {
        let (target, linear) = (module.target, module.target.linear)
        guard let copies, replacements.isEmpty, target.kernel.isEmpty, linear.groups == 1, !linear.isTransposed else { return nil }
        let engine = copies.engine
        guard var found = try module.isLowRank ? writtenDown(linear, engine) : factored(), found.a.rows > 0, found.a.rows <= MatrixHook.highestRank else { return nil }
        if copies.factors != .f32 {
            found = LowRankBranch(
                a: try found.a.converted(to: copies.factors, engine, .adapters), b: try found.b.converted(to: copies.factors, engine, .adapters), scale: found.scale,
                isAlone: found.isAlone)
        }
        return found
    }

    func weights(_ copies: DecodingCopies) throws(PEFTError) -> (weight: Tensor, bias: Tensor?)? {
        module.isElementwise || !replacements.isEmpty ? nil : try FoldedWeights.copies(of: module, module.target, scale: scale, copies)
    }

    private func factored() throws(PEFTError) -> LowRankBranch? {
        guard let change = try module.change(scale: scale), change.bias == nil, case .product(let b, let a, let scale) = change.matrix else { return nil }
        return LowRankBranch(a: a, b: b, scale: Float(scale))
    }

    /// What a computation with it would add.
    private func writtenDown(_ linear: Linear, _ engine: Engine) throws(PEFTError) -> LowRankBranch? {
        let tape = Tape(engine, .f32)
        let (x, y) = (Variable(try .zeros(engine, [1, linear.inputSize], .f32, .scratch)), Variable(try .zeros(engine, [1, linear.outputSize], .f32, .scratch)))
        let record = LowRankRecord(of: x)
        tape.lowRank = record
        let site = site(linear, tape)
        guard try module.input(x, site).value.storage === x.value.storage else { return nil }
        let inputs = record.branches
        guard try module.add(to: y, input: x, scale: scale, site).value.storage === y.value.storage, record.branches.count == 1, let only = record.branches.first else { return nil }
        guard inputs.count == 1 else { return only }
        // W·(x + scale·B·A·x) = W·x + scale·(W·B)·A·x
        let columns = try Tensor(engine, [only.a.rows, linear.outputSize], .f32, .scratch)
        try engine.multiply(.forward, try only.b.transposed(engine), linear.weight, into: columns, compute: .f32)
        return LowRankBranch(a: only.a, b: try columns.transposed(engine), scale: scale * only.scale, isAlone: true)
    }

    private func site(_ layer: Linear, _ tape: Tape) -> HookSite { HookSite(layer: layer, replacements: replacements, tape: tape) }

    func input(_ x: Variable, of layer: Linear, _ tape: Tape) throws(PEFTError) -> Variable {
        let changed = try module.input(x, site(layer, tape))
        return try partly(x, changed, tape)
    }

    func product(of x: Variable, bias: Variable?, of layer: Linear, _ tape: Tape, as dtype: DType?) throws(PEFTError) -> Variable? {
        try module.product(of: x, bias: bias, scale: scale, site(layer, tape), as: dtype)
    }

    func add(to y: consuming Variable, input x: Variable, of layer: Linear, _ tape: Tape) throws(PEFTError) -> Variable {
        try module.add(to: y, input: x, scale: scale, site(layer, tape))
    }

    func output(_ y: consuming Variable, input x: Variable, of layer: Linear, _ tape: Tape) throws(PEFTError) -> Variable {
        if scale == 1 { return try module.output(y, site(layer, tape)) }
        let before = y
        return try partly(before, try module.output(before, site(layer, tape)), tape)
    }

    /// `x + scale·(changed − x)`
    private func partly(_ x: Variable, _ changed: Variable, _ tape: Tape) throws(PEFTError) -> Variable {
        if scale == 1 || changed.value.storage === x.value.storage { return changed }
        return try tape.add(try tape.scaled(x, by: 1 - scale), try tape.scaled(changed, by: scale))
    }
}

extension Tape {
    /// A parameter as a matrix of `rows` rows (kernels of convolutions have more dimensions).
    func matrix(_ parameter: Parameter, rows: Int? = nil) throws(PEFTError) -> Variable {
        let value = parameter.value
        let rows = rows ?? value.shape.first ?? 1
        let shape = [rows, value.count / max(rows, 1)]
        return value.shape == shape ? variable(parameter) : try reshaped(variable(parameter), shape)
    }

    /// A parameter's values as a row for `scaleColumns`.
    func vector(_ parameter: Parameter) throws(PEFTError) -> Variable {
        parameter.value.shape.count == 1 ? variable(parameter) : try reshaped(variable(parameter), [parameter.value.count])
    }
}
