internal import Autograd
internal import Models
internal import Platform
internal import Synchronization
internal import Tensors

/// `velora_config`
struct VeLoRASettings: Sendable {
    enum Start: String { case random, average = "batch_average", averageOnce = "batch_average_once" }

    let groups: Int
    let scale: Float
    let start: Start

    init(_ options: JSONObject) throws(PEFTError) {
        groups = try options.integer("num_groups") ?? 64
        scale = try options.float("scale") ?? 1
        guard 1...1 << 20 ~= groups else { throw PEFTError(.argument, "velora_config: num_groups is \(groups); it must be positive") }
        let name = try options.text("init_type") ?? "batch_average"
        guard let start = Start(rawValue: name) else {
            throw PEFTError(.argument, "velora_config: init_type is '\(name)'; it can be 'random', 'batch_average', 'batch_average_once'")
        }
        self.start = start
    }
}

/// The direction in each group of a layer's inputs along which VeLoRA remembers them: random, or the normalised mean over the groups and
/// tokens of a batch, of every one or of the first.
final class VeLoRADirection: Sendable {
    /// f32 `[⌈in/groups⌉]`; zero: not known yet.
    let parameter: Parameter
    private let settings: VeLoRASettings
    /// That of the last batch, to be written into the parameter with the next step.
    private let latest = Mutex<[Float]?>(nil)

    init(_ linear: Linear, key: String, _ settings: VeLoRASettings, _ model: Model) throws(PEFTError) {
        self.settings = settings
        let width = linear.inputSize / settings.groups + (linear.inputSize % settings.groups > 0 ? 1 : 0)
        parameter = try model.parameter(key + ".lora_velora_embed", [width], isTrainable: false)
    }

    func initialize(_ random: inout RandomStream) {
        guard settings.start == .random else { return parameter.value.clear() }
        parameter.value.fillNormal(1, &random)
        parameter.value.set(VeLoRADirection.normalized(unsafe parameter.value.withFloats { unsafe Array($0) }))
    }

    /// `x·Aᵀ`, of which A's gradient sees the input along the direction alone.
    func product(_ x: Variable, _ a: Variable, _ tape: Tape) throws(PEFTError) -> Variable {
        let direction = try Tensor(tape.engine, try values(for: x, tape), shape: parameter.value.shape)
        return try tape.linear(x, a, rememberedAlong: direction, groups: settings.groups, scale: settings.scale)
    }

    private func values(for x: Variable, _ tape: Tape) throws(PEFTError) -> [Float] {
        let settled = unsafe parameter.value.withFloats { unsafe Array($0) }
        let known = latest.withLock { $0 } ?? settled
        switch settings.start {
        case .random: return known
        case .averageOnce where known.contains { $0 != 0 }: return known
        default:
            guard !tape.engine.isPlanning else { return known }
            let mean = try Tape(tape.engine, tape.precision).meanRows(Variable(x.value), [0..<x.value.rows]).value.floats(tape.engine)
            var sums = [Float](repeating: 0, count: known.count)
            for (column, value) in mean.enumerated() { sums[column % sums.count] += value / Float(settings.groups) }
            let fresh = VeLoRADirection.normalized(sums)
            latest.withLock { $0 = fresh }
            return fresh
        }
    }

    func settle() {
        let fresh = latest.withLock { latest in
            defer { latest = nil }
            return latest
        }
        if let fresh { parameter.value.set(fresh) }
    }

    private static func normalized(_ values: [Float]) -> [Float] {
        let length = values.reduce(0) { $0 + $1 * $1 }.squareRoot()
        return length > 0 ? values.map { $0 / length } : values.map { _ in 1 / Float(max(values.count, 1)).squareRoot() }
    }
}

/// Directions found on the way become those of the adapter.
final class VeLoRACompanion: AdapterCompanion {
    private let directions: [VeLoRADirection]

    init(_ directions: [VeLoRADirection]) { self.directions = directions }

    func willStep(_ gradients: GradientStore) { for direction in directions { direction.settle() } }
}
