package import Platform
package import Tensors

/// Types of one computation: how activations are stored, how products are computed.
package struct Precision: Sendable, Equatable {
    /// f32 or bf16.
    package let activation: DType
    package let compute: Compute
    /// Forward products of linear layers and heads with frozen weights of 16 bits or fewer round both sides to int8.
    package let roundsForward: Bool

    /// What the conformance cases run.
    package static let f32 = Precision(activation: .f32, compute: .f32)
    /// bf16 activations and products, f32 sums, norms, losses and parameters.
    package static let bf16 = Precision(activation: .bf16, compute: .bf16)

    package init(activation: DType, compute: Compute, roundsForward: Bool = false) {
        self.activation = activation
        self.compute = compute
        self.roundsForward = roundsForward
    }
}

/// Records coarse operations while they run and plays their derivatives back.
///
/// An operation (an extension method of `Tape`, a file per family) computes its value, and if an input wants a gradient
/// it records one closure that holds exactly what its backward pass needs. The backward pass runs the closures last to
/// first and drops each after use, so activations are freed as early as they can be.
package final class Tape {
    package let engine: Engine
    package let precision: Precision
    /// nil: nothing is recorded (inference, the first run of a recomputed block).
    package let gradients: GradientStore?
    /// Dropout is active.
    package let isTraining: Bool
    /// Source of dropout masks; an operation captures the position it starts at.
    package var random: RandomStream
    /// Of each text in the rows that a layer sees just now: what gates take means over.
    package var textRows = 0
    /// What products of low rank are written down in instead of being computed.
    package var lowRank: LowRankRecord?
    /// A trainable parameter was asked for (what a recomputed block needs to know about its silent run).
    private var sawTrainable = false
    /// The silent first run of a block that the backward pass runs again: it records nothing, but must compute what that run will.
    private var isRehearsal = false
    private var records: [Record] = []
    private var lastCommon: Common?

    /// A struct around the closure: an array of typed-throwing closures crashes the compiler (Swift 6.3.1).
    private struct Record {
        let backward: () throws(PEFTError) -> Void
    }

    /// What was last made of a value for all who ask.
    private struct Common {
        weak var source: GradientSlot?
        let owner: ObjectIdentifier
        let result: Variable
    }

    package init(_ engine: Engine, _ precision: Precision, gradients: GradientStore? = nil, isTraining: Bool = false, random: RandomStream = RandomStream(seed: 0)) {
        self.engine = engine
        self.precision = precision
        self.gradients = gradients
        self.isTraining = isTraining
        self.random = random
    }

    package var isRecording: Bool { gradients != nil }
    /// Nothing of this computation will be differentiated: ways that record nothing, and ask for no parameter, may be taken.
    package var isInference: Bool { gradients == nil && !isRehearsal && !isTraining }

    /// A parameter as a variable of this computation.
    package func variable(_ parameter: Parameter) -> Variable {
        guard parameter.isTrainable else { return Variable(parameter.value) }
        sawTrainable = true
        return Variable(parameter.value, gradients.map { GradientSlot(parameter, $0) })
    }

    /// A value whose gradient the caller reads from the slot after `backward`.
    package func leaf(_ value: Tensor) -> Variable {
        Variable(value, isRecording ? GradientSlot(shape: value.shape, dtype: value.dtype) : nil)
    }

    /// The result of an operation on `inputs`: with a slot if one of them wants a gradient.
    package func result(_ value: Tensor, of inputs: Variable...) -> Variable {
        let wanted = isRecording && inputs.contains { $0.needsGradient }
        return Variable(value, wanted ? GradientSlot(shape: value.shape, dtype: value.dtype) : nil)
    }

    /// Remembers how to pass on the gradient of `output`; does nothing when no gradient is wanted. `backward` is called
    /// with the complete gradient of `output`, and not at all when none arrived.
    package func record(_ output: Variable, _ backward: @escaping (_ dOutput: Tensor) throws(PEFTError) -> Void) {
        guard let slot = output.slot else { return }
        records.append(
            Record { () throws(PEFTError) in
                if let gradient = slot.take() { try backward(gradient) }
            })
    }

    /// For operations with several outputs: `backward` takes from the slots itself.
    package func record(_ backward: @escaping () throws(PEFTError) -> Void) {
        if isRecording { records.append(Record(backward: backward)) }
    }

    /// Runs the derivatives of everything recorded, from `root` with gradient `seed`. The tape is empty afterwards.
    package func backward(from root: Variable, gradient seed: Tensor) throws(PEFTError) {
        guard let slot = root.slot else { return records.removeAll() }
        try slot.add(seed, engine)
        lastCommon = nil
        while let record = records.popLast() { try record.backward() }
    }

    /// What several layers that read `x` one after the other make of it in the same way (q, k and v by a projection that they share):
    /// computed once, with one gradient, and kept once.
    /// - Parameter owner: what decides, beside `x`, what `body` gives.
    package func common(of x: Variable, _ owner: AnyObject, _ body: () throws(PEFTError) -> Variable) throws(PEFTError) -> Variable {
        let owner = ObjectIdentifier(owner)
        if let lastCommon, let source = lastCommon.source, source === x.slot, lastCommon.owner == owner { return lastCommon.result }
        var result = try body()
        guard let slot = x.slot, result.needsGradient else { return result }
        result.recipe = recipe(of: try compact(result))
        lastCommon = Common(source: slot, owner: owner, result: result)
        return result
    }

    /// Runs `body` without keeping its activations; the backward pass runs it again (with the same dropout masks) to
    /// get them back. Costs one more forward pass of the block, saves all it would have kept but its inputs.
    /// - Parameter learnsBeside: `body` holds variables of this tape that are no inputs and want a gradient (one value that all
    ///   blocks read). They were made before, so their own derivatives come after those of all blocks.
    package func recomputed(
        _ inputs: [Variable], learnsBeside: Bool = false, _ body: @escaping (_ tape: Tape, _ inputs: [Variable]) throws(PEFTError) -> Variable
    ) throws(PEFTError) -> Variable {
        guard let gradients else { return try body(self, inputs) }
        let start = random
        let silent = Tape(engine, precision, isTraining: isTraining, random: start)
        silent.isRehearsal = true
        let value = try body(silent, inputs.map { Variable($0.value) }).value
        random = silent.random
        guard silent.sawTrainable || learnsBeside || inputs.contains(where: \.needsGradient) else { return Variable(value) }
        sawTrainable = true
        let output = Variable(value, GradientSlot(shape: value.shape, dtype: value.dtype))
        let again = SecondRun(Tape(engine, precision, gradients: gradients, isTraining: isTraining, random: start), inputs, body)
        record(output) { dOutput throws(PEFTError) in try again.backward(dOutput) }
        return output
    }

    /// A value that is made of parameters and costs little beside the products it enters (a rotation from its free numbers, factors
    /// of factors): no operation keeps it. The first that needs it in the backward pass has `body` run again, for all of them and for
    /// its own derivatives.
    package func remade(
        _ inputs: [Variable], _ body: @escaping (_ tape: Tape, _ inputs: [Variable]) throws(PEFTError) -> Variable
    ) throws(PEFTError) -> Variable {
        guard let gradients, inputs.contains(where: \.needsGradient) else { return try body(self, inputs) }
        let start = random
        let silent = Tape(engine, precision, isTraining: isTraining, random: start)
        silent.isRehearsal = true
        let value = try body(silent, inputs.map { Variable($0.value) }).value
        random = silent.random
        let again = SecondRun(Tape(engine, precision, gradients: gradients, isTraining: isTraining, random: start), inputs) { (tape, inputs) throws(PEFTError) in
            // The values are there as long as this run: nobody needs a smaller copy.
            try body(tape, inputs.map { input in
                var input = input
                input.recipe = Recipe { [value = input.value] in value }
                return input
            })
        }
        var output = Variable(value, GradientSlot(shape: value.shape, dtype: value.dtype))
        output.recipe = Recipe { () throws(PEFTError) in try again.result().value }
        record(output) { dOutput throws(PEFTError) in try again.backward(dOutput) }
        return output
    }

    /// A computation that is run again on a tape of its own.
    private final class SecondRun {
        private let tape: Tape
        private let inputs: [(kept: Kept, slot: GradientSlot?)]
        private let body: (_ tape: Tape, _ inputs: [Variable]) throws(PEFTError) -> Variable
        private var run: (inputs: [Variable], output: Variable)?

        init(_ tape: Tape, _ inputs: [Variable], _ body: @escaping (_ tape: Tape, _ inputs: [Variable]) throws(PEFTError) -> Variable) {
            self.tape = tape
            self.inputs = inputs.map { ($0.kept, $0.slot) }
            self.body = body
        }

        func result() throws(PEFTError) -> Variable {
            if let run { return run.output }
            var fresh: [Variable] = []
            for (kept, slot) in inputs { fresh.append(slot == nil ? Variable(try kept.tensor()) : tape.leaf(try kept.tensor())) }
            let output = try body(tape, fresh)
            run = (fresh, output)
            return output
        }

        func backward(_ gradient: Tensor) throws(PEFTError) {
            try tape.backward(from: try result(), gradient: gradient)
            for (input, copy) in zip(inputs, run?.inputs ?? []) {
                if let slot = input.slot, let gradient = copy.slot?.take() { try slot.add(gradient, tape.engine) }
            }
        }
    }
}
