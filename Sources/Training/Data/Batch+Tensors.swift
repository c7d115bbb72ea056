package import Platform
package import Tensors

/// Batches as named arrays, under the names Hugging Face's models have for their inputs: how hosts hand them in and get
/// them from a data set.
extension Batch {
    static let tokenNames = ["attention_mask", "position_ids", "token_type_ids", "first_key", "input_type_mask"]
    static let labelNames = ["labels", "start_positions", "end_positions"]
    /// Networks without tokens: vectors, pictures.
    static let featureNames = ["x", "pixel_values", "input_features"]
    private static let inputNames = ["input_ids", "task_ids"] + tokenNames + labelNames + featureNames

    /// From `input_ids` `[rows, length]` with `attention_mask`, `position_ids`, `token_type_ids` and `first_key` (packed rows), or
    /// from `x` or `pixel_values` (f32 `[rows, …]`); and `task_ids` `[rows]`, `labels` (f32: numbers, else classes) or `start_positions` and
    /// `end_positions`. Integers of any width.
    /// - Throws: `.argument` naming the array, its shape or its value.
    package init(named arrays: [(name: String, tensor: Tensor)]) throws(PEFTError) {
        var byName: [String: Tensor] = [:]
        for (name, tensor) in arrays {
            guard Batch.inputNames.contains(name) else {
                throw PEFTError(.argument, "there is no input '\(name)'; there are \(Batch.inputNames.joined(separator: ", "))")
            }
            byName[name] = tensor
        }
        if let name = Batch.featureNames.first(where: { byName[$0] != nil }), let x = byName[name] {
            if let other = byName.keys.sorted().first(where: { $0 != name && !Batch.labelNames.contains($0) }) {
                throw PEFTError(.argument, "'\(name)' and '\(other)' exclude each other: a network has one kind of input")
            }
            guard x.dtype == .f32, x.shape.count >= 2, x.count > 0 else { throw PEFTError(.argument, "\(name) is \(x.dtype.name) \(x.shape); f32 [batch, …] is needed") }
            self.init(rows: x.shape[0], features: unsafe x.withFloats { unsafe Array($0) }, featureShape: Array(x.shape.dropFirst()), labels: [])
            try readLabels(byName)
            return
        }
        guard let ids = byName["input_ids"] else { throw PEFTError(.argument, "there is neither 'input_ids' nor 'x' or 'pixel_values'") }
        guard ids.shape.count == 2 else { throw PEFTError(.argument, "input_ids has the shape \(ids.shape); [batch, length] is needed") }
        for name in Batch.tokenNames {
            if let other = byName[name], other.shape != ids.shape { throw PEFTError(.argument, "\(name) has the shape \(other.shape), input_ids \(ids.shape)") }
        }
        self.init(rows: ids.rows, length: ids.columns, ids: try ids.integers("input_ids"), labels: [])
        try readLabels(byName)
        tasks = try byName["task_ids"].map { (tensor) throws(PEFTError) in try tensor.integers("task_ids") }
        tokenTypes = try byName["token_type_ids"].map { (tensor) throws(PEFTError) in try tensor.integers("token_type_ids") }
        inputTypes = try byName["input_type_mask"].map { (tensor) throws(PEFTError) in try tensor.integers("input_type_mask") }
        positions = try byName["position_ids"].map { (tensor) throws(PEFTError) in try tensor.integers("position_ids") }
        firstKey = try byName["first_key"].map { (tensor) throws(PEFTError) in try tensor.integers("first_key") }
        let mask = try byName["attention_mask"].map { (tensor) throws(PEFTError) in try tensor.integers("attention_mask") } ?? []
        if let wrong = mask.first(where: { $0 != 0 && $0 != 1 }) { throw PEFTError(.argument, "attention_mask holds \(wrong); 1 (token) and 0 (padding) are accepted") }
        if mask.contains(0) { keyMask = mask.map { $0 == 0 ? 0 : 1 } }
    }

    mutating func readLabels(_ byName: [String: Tensor]) throws(PEFTError) {
        if let tensor = byName["labels"] {
            if tensor.dtype == .f32 { targets = unsafe tensor.withFloats { unsafe Array($0) } } else { labels = try tensor.integers("labels") }
        }
        guard byName["start_positions"] != nil || byName["end_positions"] != nil else { return }
        guard let start = byName["start_positions"], let end = byName["end_positions"], byName["labels"] == nil else {
            throw PEFTError(.argument, "'start_positions' and 'end_positions' go together, and without 'labels'")
        }
        (labels, ends) = (try start.integers("start_positions"), try end.integers("end_positions"))
    }

    /// The same the other way: i64 arrays.
    package func named(_ engine: Engine) throws(PEFTError) -> [(name: String, tensor: Tensor)] {
        func array(_ values: [Int32]) throws(PEFTError) -> Tensor { try Tensor(engine, int64: values, shape: [rows, values.count / max(rows, 1)]) }
        if let source {
            return [
                (name: "input_ids", tensor: try array(source.ids)), (name: "attention_mask", tensor: try array(source.keyMask?.map { Int32($0) } ?? source.ids.map { _ in 1 })),
                (name: "labels", tensor: try array(labels)),
            ]
        }
        var arrays = [
            (name: "input_ids", tensor: try array(ids)), (name: "attention_mask", tensor: try array(keyMask?.map { Int32($0) } ?? ids.map { _ in 1 })),
            (name: "labels", tensor: try array(labels)),
        ]
        if let positions { arrays.append((name: "position_ids", tensor: try array(positions))) }
        if let firstKey { arrays.append((name: "first_key", tensor: try array(firstKey))) }
        return arrays
    }
}

extension Tensor {
    /// The values of an integer or boolean array as 32-bit integers.
    func integers(_ name: String) throws(PEFTError) -> [Int32] {
        switch dtype {
        case .i32: unsafe withInt32s { unsafe Array($0) }
        case .i64: try integers(Int64.self, name)
        case .i16: try integers(Int16.self, name)
        case .i8: try integers(Int8.self, name)
        case .u8, .bool: try integers(UInt8.self, name)
        default: throw PEFTError(.argument, "\(name) is \(dtype.name) \(shape); integers are needed")
        }
    }

    private func integers<T: FixedWidthInteger>(_ type: T.Type, _ name: String) throws(PEFTError) -> [Int32] {
        var result: [Int32] = []
        result.reserveCapacity(count)
        let values = unsafe UnsafeBufferPointer(start: pointer.assumingMemoryBound(to: T.self), count: storage.isReal ? count : 0)
        for index in values.indices {
            guard let value = unsafe Int32(exactly: values[index]) else { throw PEFTError(.argument, "\(name) holds \(unsafe values[index]), which no model has") }
            result.append(value)
        }
        return result
    }

    fileprivate init(_ engine: Engine, int64 values: [Int32], shape: [Int]) throws(PEFTError) {
        try self.init(engine, shape, .i64, .scratch)
        guard values.count == count else { throw PEFTError(.internal, "\(values.count) values for \(shape)") }
        let room = unsafe pointer.assumingMemoryBound(to: Int64.self)
        for (index, value) in values.enumerated() { unsafe room[index] = Int64(value) }
    }
}
