internal import Platform
internal import Tensors

/// The JSON of a checkpoint, read with checks: every wrong or missing member is a `.format` error that names it.
struct SavedState {
    private let object: JSONObject

    init(_ object: JSONObject) { self.object = object }

    private func member<T>(_ key: String, _ kind: String, _ read: (JSONValue) -> T?) throws(PEFTError) -> T {
        guard let value = object[key].flatMap(read) else {
            throw PEFTError(.format, "the checkpoint's '\(key)' is \(object[key].map { $0.text() } ?? "missing"); it must be \(kind)")
        }
        return value
    }

    /// The member is there and not null.
    func has(_ key: String) -> Bool { object[key].map { !$0.isNull } ?? false }

    func object(_ key: String) throws(PEFTError) -> JSONObject { try member(key, "an object") { $0.objectValue } }
    func string(_ key: String) throws(PEFTError) -> String { try member(key, "a string") { $0.stringValue } }
    func flag(_ key: String) throws(PEFTError) -> Bool { try member(key, "true or false") { $0.boolValue } }

    /// A count: an integer from 0 on.
    func integer(_ key: String) throws(PEFTError) -> Int {
        try member(key, "an integer from 0 on") { $0.intValue.flatMap { $0 >= 0 && $0 < 1 << 48 ? $0 : nil } }
    }

    func optionalInteger(_ key: String) throws(PEFTError) -> Int? { object[key].map(\.isNull) ?? true ? nil : try integer(key) }

    /// A number; null stands for `missing` (JSON has no NaN and no infinity).
    func number(_ key: String, missing: Double) throws(PEFTError) -> Double {
        object[key].map(\.isNull) ?? true ? missing : try member(key, "a number") { $0.doubleValue }
    }

    func integers(_ key: String, count: Int) throws(PEFTError) -> [Int] {
        try member(key, "a list of \(count) integers from 0 on") { value in
            let list = (value.arrayValue ?? []).compactMap(\.intValue).filter { $0 >= 0 && $0 < 1 << 48 }
            return list.count == count && value.arrayValue?.count == count ? list : nil
        }
    }

    func stream(_ key: String) throws(PEFTError) -> RandomStream {
        let state = SavedState(try object(key))
        guard let seed = UInt64(try state.string("seed")), let position = UInt64(try state.string("position")) else {
            throw PEFTError(.format, "the checkpoint's '\(key)' has no integer seed and position")
        }
        return RandomStream(seed: seed, position: position)
    }
}

extension RunState {
    var json: JSONValue {
        .object([
            "loss_count": .integer(Int64(lossCount)), "smoothed_loss": .number(smoothedLoss),
            "evaluation_loss": evaluationLoss.isFinite ? .number(evaluationLoss) : .null, "best_loss": bestLoss.isFinite ? .number(bestLoss) : .null,
            "bad_evaluations": .integer(Int64(badEvaluations)), "evaluated_step": .integer(Int64(evaluatedStep)), "is_over": .bool(isOver),
        ])
    }

    /// Without the tensors of the best evaluation.
    init(_ saved: SavedState) throws(PEFTError) {
        let state = SavedState(try saved.object("run"))
        lossCount = try state.integer("loss_count")
        smoothedLoss = try state.number("smoothed_loss", missing: 0)
        evaluationLoss = try state.number("evaluation_loss", missing: .nan)
        bestLoss = try state.number("best_loss", missing: .infinity)
        badEvaluations = try state.integer("bad_evaluations")
        evaluatedStep = try state.integer("evaluated_step")
        isOver = try state.flag("is_over")
    }
}
