package import Platform

/// Reads options from a JSON object by key, checking types, and remembers which keys were asked for. `null` counts as absent.
struct JSONOptions {
    private let object: JSONObject
    private var known: Set<String> = []

    init(_ json: JSONValue) throws(PEFTError) {
        guard let object = json.objectValue else { throw PEFTError(.argument, "the options are \(json.kindName); they must be a JSON object") }
        self.object = object
    }

    /// A member; nil when absent or null.
    mutating func value(_ key: String) -> JSONValue? {
        known.insert(key)
        guard let value = object[key], !value.isNull else { return nil }
        return value
    }

    /// The member is there, be it null.
    func isGiven(_ key: String) -> Bool { object[key] != nil }

    mutating func integer(_ key: String) throws(PEFTError) -> Int? {
        guard let value = value(key) else { return nil }
        guard let integer = value.intValue else { throw JSONOptions.wrong(key, value, "an integer") }
        return integer
    }

    mutating func number(_ key: String) throws(PEFTError) -> Double? {
        guard let value = value(key) else { return nil }
        guard let number = value.doubleValue else { throw JSONOptions.wrong(key, value, "a number") }
        return number
    }

    mutating func flag(_ key: String) throws(PEFTError) -> Bool? {
        guard let value = value(key) else { return nil }
        guard let flag = value.boolValue else { throw JSONOptions.wrong(key, value, "true or false") }
        return flag
    }

    mutating func string(_ key: String) throws(PEFTError) -> String? {
        guard let value = value(key) else { return nil }
        guard let string = value.stringValue else { throw JSONOptions.wrong(key, value, "a string") }
        return string
    }

    mutating func seed(_ key: String) throws(PEFTError) -> UInt64? {
        guard let integer = try integer(key) else { return nil }
        guard integer >= 0 else { throw PEFTError(.argument, "\(key) is \(integer); it must be at least 0") }
        return UInt64(integer)
    }

    /// One of an enumeration's names.
    mutating func choice<T: RawRepresentable & CaseIterable>(_ key: String, _ type: T.Type) throws(PEFTError) -> T? where T.RawValue == String {
        guard let name = try string(key) else { return nil }
        if let value = T(rawValue: name) { return value }
        throw PEFTError(.argument, "\(key) is '\(name)'; it must be one of \(T.allCases.map { "'\($0.rawValue)'" }.joined(separator: ", "))")
    }

    /// - Throws: `.argument` for a key that nobody asked for, with the ones that were.
    func requireAllKnown(_ what: String) throws(PEFTError) {
        guard let unknown = object.keys.first(where: { !known.contains($0) }) else { return }
        throw PEFTError(.argument, "unknown \(what) option \"\(unknown)\"; known are \(known.sorted().joined(separator: ", "))")
    }

    static func wrong(_ key: String, _ value: JSONValue, _ wanted: String) -> PEFTError {
        PEFTError(.argument, "\(key) is \(value.text()); it must be \(wanted)")
    }
}

extension TrainerOptions {
    /// The options as JSON: `{"optimizer", "lr", "betas", "eps", "weight_decay", "momentum", "riemannian_reg", "lr_scheduler", "warmup_steps",
    /// "max_steps", "epochs", "gradient_accumulation_steps", "max_grad_norm", "loraplus_lr_ratio", "loraplus_lr_embedding",
    /// "loraplus_weight_decay", "lorafa", "gradient_checkpointing", "seed", "evaluation_steps", "early_stopping_patience",
    /// "dropout", "int8_activations"}`. What is left out keeps its default.
    ///
    /// - Parameters:
    ///   - otherKeys: keys the caller reads itself ("adapter").
    ///   - warn: receives a line for options without effect.
    /// - Throws: `.argument` naming a key that is not known, or a key, its value and what would be right.
    package init(_ json: JSONValue, otherKeys: [String] = [], warn: (String) -> Void) throws(PEFTError) {
        self.init()
        var keys = try JSONOptions(json)
        optimizer.rule = try keys.choice("optimizer", OptimizerOptions.Rule.self) ?? optimizer.rule
        optimizer.learningRate = try keys.number("lr") ?? optimizer.learningRate
        if let betas = keys.value("betas") {
            guard let list = betas.arrayValue, list.count == 2, let first = list[0].doubleValue, let second = list[1].doubleValue else {
                throw JSONOptions.wrong("betas", betas, "a list of two numbers")
            }
            (optimizer.beta1, optimizer.beta2) = (first, second)
        } else if optimizer.rule == .lion {
            optimizer.beta2 = 0.99  // its authors'
        }
        optimizer.epsilon = try keys.number("eps") ?? optimizer.epsilon
        optimizer.weightDecay = try keys.number("weight_decay") ?? optimizer.weightDecay
        optimizer.momentum = try keys.number("momentum") ?? optimizer.momentum
        optimizer.riemannianDamping = try keys.number("riemannian_reg")
        optimizer.loraPlusRatio = try keys.number("loraplus_lr_ratio")
        optimizer.loraPlusEmbeddingRate = try keys.number("loraplus_lr_embedding") ?? optimizer.loraPlusEmbeddingRate
        optimizer.loraPlusWeightDecay = try keys.number("loraplus_weight_decay") ?? optimizer.loraPlusWeightDecay
        schedule = try keys.choice("lr_scheduler", LearningRateSchedule.Shape.self) ?? schedule
        warmupSteps = try keys.integer("warmup_steps") ?? 0
        maxSteps = try keys.integer("max_steps")
        epochs = try keys.integer("epochs") ?? epochs
        accumulationSteps = try keys.integer("gradient_accumulation_steps") ?? 1
        if keys.isGiven("max_grad_norm") { maximumGradientNorm = try keys.number("max_grad_norm") }
        recomputation = try TrainerOptions.recomputation(&keys)
        seed = try keys.seed("seed") ?? 0
        evaluationSteps = try keys.integer("evaluation_steps")
        patience = try keys.integer("early_stopping_patience")
        followsMode = keys.value("dropout") == .string("mode")
        usesDropout = followsMode ? true : try keys.flag("dropout") ?? true
        roundsForward = try keys.flag("int8_activations") ?? false
        // PEFT's create_lorafa_optimizer takes r and lora_alpha; like PEFT's, ours uses each layer's own scaling.
        let loraFA = keys.value("lorafa")
        for key in otherKeys { _ = keys.value(key) }
        try keys.requireAllKnown("training")
        try validate()
        warnOfIneffective(hasLoRAFA: loraFA != nil, hasAdamNumbers: keys.isGiven("eps") || keys.isGiven("betas"), warn)
    }

    private static func recomputation(_ keys: inout JSONOptions) throws(PEFTError) -> Recomputation {
        switch keys.value("gradient_checkpointing") {
        case nil, .string("auto"): return .automatic
        case .bool(true): return .on
        case .bool(false): return .off
        case .some(let other): throw JSONOptions.wrong("gradient_checkpointing", other, "true, false or \"auto\"")
        }
    }

    private func warnOfIneffective(hasLoRAFA: Bool, hasAdamNumbers: Bool, _ warn: (String) -> Void) {
        if hasLoRAFA, optimizer.rule != .loraFA { warn("'lorafa' has no effect with the optimizer '\(optimizer.rule.rawValue)'") }
        if hasAdamNumbers, optimizer.rule == .adafactor { warn("'adafactor' has no betas and no eps of Adam's: its own are those of transformers' Trainer") }
        if hasAdamNumbers, optimizer.rule == .loraFA { warn("'lorafa' has fixed betas [0.9, 0.999] and eps 1e-6, as in PEFT") }
        if schedule == .constant, warmupSteps > 0 { warn("'constant' has no warm-up, as in transformers; 'constant_with_warmup' has") }
    }
}

extension DataSetOptions {
    /// The options as JSON: `{"format", "max_length", "truncation", "batch_size", "packing", "encoder_decoder", "shuffle", "seed", "loss_on",
    /// "on_bad_line", "max_line_bytes"}`; `"holdout"`, `"holdout_every"` and `"split"` are read by `DataSetPart`.
    /// - Parameter otherKeys: keys the caller reads itself ("chat_template").
    package init(_ json: JSONValue, otherKeys: [String] = []) throws(PEFTError) {
        self.init()
        var keys = try JSONOptions(json)
        if let format = try keys.string("format"), format != "auto" {
            guard let known = DataFormat(rawValue: format) else {
                throw PEFTError(.argument, "format is '\(format)'; it must be one of 'auto', 'jsonl', 'csv', 'text'")
            }
            self.format = known
        }
        maxLength = try keys.integer("max_length") ?? maxLength
        truncation = try keys.choice("truncation", Truncation.self) ?? truncation
        batchSize = try keys.integer("batch_size") ?? batchSize
        packing = try keys.flag("packing") ?? packing
        isForEncoderDecoders = try keys.flag("encoder_decoder") ?? isForEncoderDecoders
        shuffle = try keys.flag("shuffle") ?? shuffle
        seed = try keys.seed("seed") ?? seed
        learned = try keys.choice("loss_on", Learned.self) ?? learned
        badRecords = try keys.choice("on_bad_line", BadRecords.self) ?? badRecords
        maximumRecordBytes = try keys.integer("max_line_bytes") ?? maximumRecordBytes
        for key in ["holdout", "holdout_every", "split"] + otherKeys { _ = keys.value(key) }
        try keys.requireAllKnown("data set")
        try validate()
    }
}

/// Which part of a file a host asked for: `{"holdout": 0.1, "split": "train"}`.
package struct DataSetPart: Sendable, Equatable {
    private enum Side: String, CaseIterable { case train, holdout }

    /// nil: all of it.
    package let heldOut: HeldOut?
    package let isHeldOutPart: Bool

    package init(_ json: JSONValue) throws(PEFTError) {
        var keys = try JSONOptions(json)
        let share = try keys.number("holdout").flatMap { $0 == 0 ? nil : $0 }
        let every = try keys.integer("holdout_every")
        let side = try keys.choice("split", Side.self)
        guard share == nil || every == nil else { throw PEFTError(.argument, "'holdout' and 'holdout_every' exclude each other") }
        heldOut = every.map { .every($0) } ?? share.map { .share($0) }
        isHeldOutPart = side == .holdout
        if isHeldOutPart, heldOut == nil { throw PEFTError(.argument, "split is 'holdout', but nothing is held out ('holdout' must be above 0 and below 1)") }
    }

    /// That part of `whole`.
    package func of(_ whole: DataSet) throws(PEFTError) -> DataSet {
        guard let heldOut else { return whole }
        let (training, held) = try whole.divided(heldOut)
        return isHeldOutPart ? held : training
    }
}
