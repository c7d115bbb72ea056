public import CPEFTSwift
internal import Adapters
internal import Autograd
internal import Models
internal import Platform
internal import Tensors
internal import Training

/// Behind a `peft_pass`: a layer's run until its backward pass.
final class PassObject: @unchecked Sendable {
    // Sendable: `use` lets one call at a time in.
    let model: Model
    let trainer: TrainerObject?
    let use = HandleUse()
    /// nil once the backward pass was run.
    private var recorded: (tape: Tape, run: Model.LayerRun)?
    /// f32
    let output: Tensor

    init(_ model: Model, _ trainer: TrainerObject?, _ tape: Tape, _ run: Model.LayerRun) {
        self.model = model
        self.trainer = trainer
        recorded = (tape, run)
        output = run.output.value
    }

    /// nil before, for ids, and after the backward pass.
    var inputCount: Int? { recorded?.run.input?.value.count }

    /// - Returns: the gradient of the input; nil for ids.
    func backward(_ dY: (_ shape: [Int]) throws(PEFTError) -> Tensor) throws(PEFTError) -> Tensor? {
        guard let (tape, run) = recorded else { throw PEFTError(.state, "the backward pass of this peft_pass was run already") }
        let seed = try dY(run.output.shape)
        recorded = nil
        try model.lock.read { () throws(PEFTError) in try tape.backward(from: run.output, gradient: seed) }
        return run.input?.slot?.take()
    }
}

@_cdecl("peft_layer_forward") @implementation
public func peft_layer_forward(
    _ y: UnsafeMutablePointer<Float>?, _ count: Int, _ pass: UnsafeMutablePointer<OpaquePointer?>?, _ model: OpaquePointer?, _ layer: UnsafePointer<CChar>?,
    _ x: UnsafePointer<peft_array>?, _ trainer: OpaquePointer?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(error) { () throws(PEFTError) -> Void in
        unsafe pass?.pointee = nil
        let object = unsafe try handles.model(model)
        let name = unsafe try text(layer, "layer")
        let trainer = unsafe trainer == nil ? nil : try handles.trainer(trainer)
        let isKept = unsafe pass != nil
        let input = unsafe try array(x, object.model.engine, isCopied: isKept)
        let made = try alone(trainer) { () throws(PEFTError) -> PassObject in
            let (model, engine) = (object.model, object.model.engine)
            if let trainer, trainer.trainer.model !== model { throw PEFTError(.argument, "the trainer is another model's") }
            let tape = isKept ? trainer?.trainer.tape() ?? Tape(engine, model.precision, gradients: GradientStore(engine)) : Tape(engine, model.precision)
            let run = try model.lock.read { () throws(PEFTError) in
                let adaptation = if let trainer { try trainer.trainer.adaptation() } else { try object.adapters.activeAdaptation() }
                return try model.run(layer: name, input, adaptation, tape)
            }
            trainer?.trainer.keep(tape)
            return PassObject(model, trainer, tape, run)
        }
        if unsafe y != nil || !isKept { unsafe try copy(made.output, to: y, count, "y") }
        if isKept { unsafe pass?.pointee = unsafe try handles.add(made, .pass) }
    }
}

@_cdecl("peft_layer_backward") @implementation
public func peft_layer_backward(
    _ dx: UnsafeMutablePointer<Float>?, _ dx_count: Int, _ pass: OpaquePointer?, _ dy: UnsafePointer<Float>?, _ dy_count: Int, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(error) { () throws(PEFTError) -> Void in
        let object = unsafe try handles.find(pass, .pass, as: PassObject.self)
        guard let dy = unsafe dy else { throw PEFTError(.argument, "dy is NULL") }
        let gradient = try object.use.alone(.pass) { () throws(PEFTError) in
            try alone(object.trainer) { () throws(PEFTError) in
                try object.backward { (shape) throws(PEFTError) in
                    let wanted = shape.reduce(1, *)
                    guard dy_count == wanted else { throw PEFTError(.argument, "dy has \(dy_count) values, the layer gave \(wanted) \(shape)") }
                    if unsafe dx != nil, let input = object.inputCount, dx_count != input { throw PEFTError(.argument, "dx has room for \(dx_count) values, x has \(input)") }
                    let seed = try Tensor(object.model.engine, shape)
                    unsafe seed.pointer.copyMemory(from: dy, byteCount: seed.byteCount)
                    return seed
                }
            }
        }
        guard unsafe dx != nil else { return }
        guard let gradient else { throw PEFTError(.argument, "there is no gradient of ids: dx must be NULL") }
        unsafe try copy(gradient, to: dx, dx_count, "dx")
    }
}

@_cdecl("peft_pass_output") @implementation
public func peft_pass_output(_ y: UnsafeMutablePointer<peft_array>?, _ pass: OpaquePointer?, _ error: UnsafeMutablePointer<peft_error>?) -> Int32 {
    unsafe guarded(error) { () throws(PEFTError) -> Void in
        unsafe try give(peft_array(), to: y, "peft_array")
        let object = unsafe try handles.find(pass, .pass, as: PassObject.self)
        unsafe try give(try peft_array(object.output), to: y, "peft_array")
    }
}

@_cdecl("peft_pass_free") @implementation
public func peft_pass_free(_ pass: OpaquePointer?) { unsafe handles.remove(pass, .pass) }

@_cdecl("peft_trainer_update") @implementation
public func peft_trainer_update(_ step: UnsafeMutablePointer<peft_step>?, _ trainer: OpaquePointer?, _ error: UnsafeMutablePointer<peft_error>?) -> Int32 {
    unsafe guarded(error) { () throws(PEFTError) -> Void in
        unsafe try give(peft_step(), to: step, "peft_step")
        let object = unsafe try handles.trainer(trainer)
        let result = try object.use.alone(.trainer) { () throws(PEFTError) in try object.trainer.update() }
        unsafe try give(peft_step(result), to: step, "peft_step")
    }
}

@_cdecl("peft_trainer_gradients") @implementation
public func peft_trainer_gradients(
    _ gradients: UnsafeMutablePointer<OpaquePointer?>?, _ trainer: OpaquePointer?, _ is_cleared: Int32, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(gradients, "gradients", error) { () throws(PEFTError) -> OpaquePointer? in
        let object = unsafe try handles.trainer(trainer)
        let all = try object.use.alone(.trainer) { () throws(PEFTError) in
            let all = try object.trainer.gathered()
            if is_cleared != 0 { object.trainer.clearGradients() }
            return all
        }
        return unsafe try handles.add(all.map { (name: $0.key, tensor: $0.gradient) }, object.trainer.model.engine)
    }
}

/// With the trainer to itself, where there is one.
private func alone<R>(_ trainer: TrainerObject?, _ body: () throws(PEFTError) -> R) throws(PEFTError) -> R {
    guard let trainer else { return try body() }
    return try trainer.use.alone(.trainer, body)
}

/// A host's array: f32 as it is, integers as i32.
/// - Parameter isCopied: it is needed after the call.
private func array(_ pointer: UnsafePointer<peft_array>?, _ engine: Engine, isCopied: Bool) throws(PEFTError) -> Tensor {
    guard let pointer = unsafe pointer else { throw PEFTError(.argument, "x is NULL") }
    var given = unsafe peft_array()
    unsafe try copyOptions(pointer, into: &given, "peft_array")
    guard unsafe given.rank >= 1 && given.rank <= PEFT_MAX_RANK else { throw PEFTError(.argument, "x has the rank \(unsafe given.rank); 1 to \(PEFT_MAX_RANK) are accepted") }
    let sizes = unsafe withUnsafeBytes(of: &given.shape) { room in
        unsafe (0..<Int(given.rank)).map { axis in unsafe room.load(fromByteOffset: axis * 8, as: Int64.self) }
    }
    let shape = sizes.compactMap { Int(exactly: $0) }.filter { $0 > 0 }
    let (type, size) = unsafe (given.type, given.size)
    guard shape.count == sizes.count, let dtype = DType(rawValue: type), [.f32, .i32, .i64].contains(dtype) else {
        throw PEFTError(.argument, "x has the type \(type) and the shape \(sizes); PEFT_F32, PEFT_I32 or PEFT_I64 and sizes above 0 are accepted")
    }
    let needed = try dtype.byteCount(shape: shape)
    guard let data = unsafe given.data, needed == size else { throw PEFTError(.argument, "x is NULL or has \(size) bytes; its shape \(shape) needs \(needed)") }
    if dtype == .i64 {
        var ids: [Int32] = []
        for index in 0..<size / 8 {
            let value = unsafe data.loadUnaligned(fromByteOffset: index * 8, as: Int64.self)
            guard let id = Int32(exactly: value) else { throw PEFTError(.argument, "x holds \(value), which no table has") }
            ids.append(id)
        }
        return try Tensor(engine, ids, shape: shape)
    }
    guard isCopied || UInt(bitPattern: data) % 4 != 0 else {
        return try Tensor(unsafe Storage(borrowing: UnsafeRawBufferPointer(start: data, count: size), keepingAlive: nil), dtype: dtype, shape: shape)
    }
    let copy = try Tensor(engine, shape, dtype)
    unsafe copy.pointer.copyMemory(from: data, byteCount: size)
    return copy
}

private func copy(_ tensor: Tensor, to room: UnsafeMutablePointer<Float>?, _ count: Int, _ what: String) throws(PEFTError) {
    guard let room = unsafe room, count == tensor.count, tensor.dtype == .f32 else {
        throw PEFTError(.argument, "\(what) is NULL or has room for \(count) values; \(tensor.count) \(tensor.shape) are needed")
    }
    unsafe UnsafeMutableRawPointer(room).copyMemory(from: tensor.pointer, byteCount: tensor.byteCount)
}
