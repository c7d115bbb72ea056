public import CPEFTSwift
internal import Adapters
internal import Models
internal import Platform
internal import Tensors
internal import Training

/// Behind a `peft_trainer`.
final class TrainerObject: @unchecked Sendable {
    // Sendable: `use` lets one call at a time in; `Trainer.cancel` is made for any thread.
    let trainer: Trainer
    let model: ModelObject
    let use = HandleUse()

    init(_ trainer: Trainer, _ model: ModelObject) { (self.trainer, self.model) = (trainer, model) }
}

extension HandleTable {
    func trainer(_ handle: OpaquePointer?) throws(PEFTError) -> TrainerObject {
        unsafe try find(handle, .trainer, as: TrainerObject.self)
    }

    /// A handle that may be NULL.
    fileprivate func optionalDataset(_ handle: OpaquePointer?) throws(PEFTError) -> DatasetObject? {
        unsafe handle == nil ? nil : try dataset(handle)
    }
}

extension peft_step {
    init(_ result: StepResult) {
        self.init()
        updated = result.updated ? 1 : 0
        step = Int64(result.step)
        tokens = Int64(result.tokens)
        loss = result.loss
        gradient_norm = result.gradientNorm
        learning_rate = result.learningRate
    }
}

@_cdecl("peft_trainer_create") @implementation
public func peft_trainer_create(
    _ trainer: UnsafeMutablePointer<OpaquePointer?>?, _ model: OpaquePointer?, _ options_json: UnsafePointer<CChar>?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(trainer, "trainer", error) { () throws(PEFTError) -> OpaquePointer? in
        let object = unsafe try handles.model(model)
        let json = unsafe try options(options_json, "options_json", allowing: nil)
        let engine = object.model.engine
        let options = try TrainerOptions(.object(json), otherKeys: ["adapter", "adapters"]) { engine.warn($0) }
        let adapter = try json.text("adapter").map { [$0] }
        let several = try json.strings("adapters")
        guard adapter == nil || several == nil else { throw PEFTError(.argument, "\"adapter\" and \"adapters\" exclude each other") }
        let made = try object.use.alone(.model) { () throws(PEFTError) in
            TrainerObject(try Trainer(object.model, try Trainee(object.adapters, adapter ?? several), options), object)
        }
        return unsafe try handles.add(made, .trainer)
    }
}

@_cdecl("peft_trainer_free") @implementation
public func peft_trainer_free(_ trainer: OpaquePointer?) { unsafe handles.remove(trainer, .trainer) }

// MARK: Training

@_cdecl("peft_trainer_step") @implementation
public func peft_trainer_step(
    _ step: UnsafeMutablePointer<peft_step>?, _ trainer: OpaquePointer?, _ inputs: OpaquePointer?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe run(step, trainer, inputs, nil, error)
}

@_cdecl("peft_trainer_step_rows") @implementation
public func peft_trainer_step_rows(
    _ step: UnsafeMutablePointer<peft_step>?, _ trainer: OpaquePointer?, _ inputs: OpaquePointer?, _ adapters: UnsafePointer<UnsafePointer<CChar>?>?, _ count: Int64,
    _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe run(step, trainer, inputs, (adapters, count), error)
}

private func run(
    _ step: UnsafeMutablePointer<peft_step>?, _ trainer: OpaquePointer?, _ inputs: OpaquePointer?, _ rows: (names: UnsafePointer<UnsafePointer<CChar>?>?, count: Int64)?,
    _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(error) { () throws(PEFTError) -> Void in
        unsafe try give(peft_step(), to: step, "peft_step")
        let object = unsafe try handles.trainer(trainer)
        var batch = try Batch(named: unsafe handles.tensors(inputs).all, for: object.trainer.model)
        if let rows = unsafe rows {
            batch.adapters = unsafe try names(rows.names, rows.count, "adapters").map { $0 == "__base__" ? nil : $0 }
        }
        let result = try object.use.alone(.trainer) { () throws(PEFTError) in try object.trainer.step(batch, isTraining: object.model.isTraining) }
        unsafe try give(peft_step(result), to: step, "peft_step")
    }
}

@_cdecl("peft_trainer_run") @implementation
public func peft_trainer_run(
    _ trainer: OpaquePointer?, _ dataset: OpaquePointer?, _ evaluation: OpaquePointer?, _ progress: peft_training_fn?, _ user_data: UnsafeMutableRawPointer?,
    _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(error) { () throws(PEFTError) -> Void in
        let object = unsafe try handles.trainer(trainer)
        let data = unsafe try handles.dataset(dataset)
        let evaluation = unsafe try handles.optionalDataset(evaluation)?.dataSet
        try object.use.alone(.trainer) { () throws(PEFTError) in
            try data.use.alone(.dataset) { () throws(PEFTError) in
                try object.trainer.run(data.loader, evaluation: evaluation) { report in
                    guard let progress = unsafe progress else { return true }
                    var record = peft_training_progress(report)
                    return object.use.lending { data.use.lending { unsafe progress(user_data, &record) == 0 } }
                }
            }
        }
    }
}

extension peft_training_progress {
    fileprivate init(_ report: TrainingProgress) {
        self.init()
        struct_size = UInt32(MemoryLayout<peft_training_progress>.size)
        (step, total_steps, epoch) = (Int64(report.step), Int64(report.totalSteps), Int64(report.epoch))
        (loss, evaluation_loss) = (report.loss, report.evaluationLoss)
        (learning_rate, tokens_per_second) = (report.learningRate, report.tokensPerSecond)
        (seconds, seconds_left) = (report.seconds, report.secondsLeft)
        (memory, memory_peak) = (UInt64(clamping: report.memory), UInt64(clamping: report.memoryPeak))
    }
}

@_cdecl("peft_trainer_advance") @implementation
public func peft_trainer_advance(
    _ step: UnsafeMutablePointer<peft_step>?, _ trainer: OpaquePointer?, _ dataset: OpaquePointer?, _ seconds: Double, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(error) { () throws(PEFTError) -> Int32 in
        unsafe try give(peft_step(), to: step, "peft_step")
        let object = unsafe try handles.trainer(trainer)
        let data = unsafe try handles.dataset(dataset)
        guard seconds >= 0 else { throw PEFTError(.argument, "seconds is \(seconds); 0 or more is accepted") }
        let result = try object.use.alone(.trainer) { () throws(PEFTError) in
            try data.use.alone(.dataset) { () throws(PEFTError) in try object.trainer.advance(data.loader, seconds: seconds) }
        }
        unsafe try give(peft_step(result.last), to: step, "peft_step")
        return result.isOver ? PEFT_DONE : PEFT_OK
    }
}

@_cdecl("peft_trainer_evaluate") @implementation
public func peft_trainer_evaluate(
    _ loss: UnsafeMutablePointer<Double>?, _ trainer: OpaquePointer?, _ dataset: OpaquePointer?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(error) { () throws(PEFTError) -> Void in
        guard let loss = unsafe loss else { throw PEFTError(.argument, "loss is NULL") }
        unsafe loss.pointee = 0
        let object = unsafe try handles.trainer(trainer)
        let data = unsafe try handles.dataset(dataset).dataSet
        unsafe loss.pointee = try object.use.alone(.trainer) { () throws(PEFTError) in try object.trainer.evaluate(data).loss }
    }
}

@_cdecl("peft_trainer_plan") @implementation
public func peft_trainer_plan(
    _ buffer: UnsafeMutablePointer<CChar>?, _ capacity: Int, _ needed: UnsafeMutablePointer<Int>?, _ trainer: OpaquePointer?, _ batch: Int64, _ length: Int64,
    _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(buffer, capacity, needed, error) { () throws(PEFTError) -> String in
        let object = unsafe try handles.trainer(trainer)
        guard batch > 0, length > 0 else { throw PEFTError(.argument, "batch is \(batch), length is \(length); both must be at least 1") }
        let plan = try object.use.looking(.trainer) { () throws(PEFTError) in
            try object.trainer.plan(rows: Int(clamping: batch), length: Int(clamping: length))
        }
        var report: JSONObject = ["total": .integer(Int64(plan.total))]
        for (category, bytes) in plan.byCategory { report[category.name] = .integer(Int64(bytes)) }
        report["gradient_checkpointing"] = .bool(plan.recomputedBlocks > 0)
        report["recomputed_blocks"] = .integer(Int64(plan.recomputedBlocks))
        report["limit"] = plan.limit == .max ? .null : .integer(Int64(plan.limit))
        report["fits"] = .bool(plan.fits)
        return JSONValue.object(report).text()
    }
}

// MARK: Checkpoints

@_cdecl("peft_trainer_save") @implementation
public func peft_trainer_save(
    _ trainer: OpaquePointer?, _ dataset: OpaquePointer?, _ path: UnsafePointer<CChar>?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(error) { () throws(PEFTError) -> Void in
        let object = unsafe try handles.trainer(trainer)
        let (data, path) = unsafe (try handles.optionalDataset(dataset), try text(path, "path"))
        try object.use.looking(.trainer) { () throws(PEFTError) in
            guard let data else { return try object.trainer.save(to: path) }
            try data.use.looking(.dataset) { () throws(PEFTError) in try object.trainer.save(to: path, data.loader) }
        }
    }
}

@_cdecl("peft_trainer_resume") @implementation
public func peft_trainer_resume(
    _ trainer: OpaquePointer?, _ dataset: OpaquePointer?, _ path: UnsafePointer<CChar>?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(error) { () throws(PEFTError) -> Void in
        let object = unsafe try handles.trainer(trainer)
        let (data, path) = unsafe (try handles.optionalDataset(dataset), try text(path, "path"))
        try object.use.alone(.trainer) { () throws(PEFTError) in
            guard let data else { return try object.trainer.resume(from: path) }
            try data.use.alone(.dataset) { () throws(PEFTError) in try object.trainer.resume(from: path, data.loader) }
        }
    }
}

@_cdecl("peft_trainer_cancel") @implementation
public func peft_trainer_cancel(_ trainer: OpaquePointer?, _ error: UnsafeMutablePointer<peft_error>?) -> Int32 {
    unsafe guarded(error) { () throws(PEFTError) -> Void in unsafe try handles.trainer(trainer).trainer.cancel() }
}
