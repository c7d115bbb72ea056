package import Autograd
internal import Checkpoints
package import Platform
package import Tensors

/// Makes a model's layers from named tensors, checks their shapes, and numbers them in the order they are asked for: that
/// of the module tree. A layer is one call; a tensor that is missing or misshapen ends the load with its name.
package final class LayerBuilder {
    package let engine: Engine
    private let source: TensorSource
    private let newHead: NewHead?
    package private(set) var layers: [any Layer] = []
    /// Layers that are not in the file.
    private(set) var newLayers: [String] = []

    package enum Bias {
        case none
        case required
        /// There if the file has one.
        case optional
    }

    /// Its tensors are made instead of read, all zeros.
    private let makesTensors: Bool

    init(_ source: TensorSource, _ engine: Engine, newHead: NewHead? = nil) {
        (self.source, self.engine, self.newHead, makesTensors) = (source, engine, newHead, false)
    }

    /// Of layers of an adapter's own.
    package init(makingFor engine: Engine) throws(PEFTError) {
        (source, self.engine, newHead, makesTensors) = (try TensorSource(origin: "a network that is made", []), engine, nil, true)
    }

    /// The file has this tensor.
    package func has(_ name: String) -> Bool { source.contains(stored(name)) }

    /// The name in the file: under a new head stands a bare model, whose names may begin without the family's.
    private func stored(_ name: String) -> String {
        guard newHead != nil, !source.contains(name), let dot = name.firstIndex(of: ".") else { return name }
        let bare = String(name[name.index(after: dot)...])
        return source.contains(bare) ? bare : name
    }

    /// `y = x·Wᵀ + b`; `transposed`: stored `[in, out]`; `kind`: of a class of its own.
    package func linear(
        _ name: String, _ inputs: Int, _ outputs: Int, bias: Bias = .none, transposed: Bool = false, kind: String? = nil
    ) throws(PEFTError) -> Linear {
        let shape = transposed ? [inputs, outputs] : [outputs, inputs]
        let isInBlock = name.split(separator: ".").contains { Int($0) != nil }
        if let newHead, !isInBlock, source.peek(stored(name + ".weight"))?.shape != shape {
            newLayers.append(name)
            let zeros = bias == .required ? try Tensor.zeros(engine, [outputs], .f32, .weights) : nil
            return add(Linear(name: name, index: layers.count, weight: try newHead.weight(name, shape, engine), bias: zeros, isTransposed: transposed, kind: kind))
        }
        let weight = try matrix(name + ".weight", shape)
        let hasBias = bias == .required || bias == .optional && has(name + ".bias")
        let vector = hasBias ? try vector(name + ".bias", outputs) : nil
        return add(Linear(name: name, index: layers.count, weight: weight, bias: vector, isTransposed: transposed, kind: kind))
    }

    /// The networks of a mixture, in stacks, or each expert's matrices by themselves (w1 the gate, w3 up, w2 down).
    func experts(_ name: String, _ count: Int, chosen: Int, _ hidden: Int, _ inner: Int, _ activation: ActivationKind) throws(PEFTError) -> Experts {
        let gateUp = try stack(name, "gate_up_proj", count, of: ["w1", "w3"], inner, hidden)
        let down = try stack(name, "down_proj", count, of: ["w2"], hidden, inner)
        return add(try Experts(name: name, index: layers.count, gateUp: gateUp, down: down, chosen: chosen, activation: activation))
    }

    /// `[count, parts·outputs, inputs]`. From parts it is a copy, counted as weights.
    private func stack(_ module: String, _ name: String, _ count: Int, of parts: [String], _ outputs: Int, _ inputs: Int) throws(PEFTError) -> Tensor {
        let names = (0..<count).flatMap { expert in parts.map { "\(module).\(expert).\($0).weight" } }
        let shape = [count, parts.count * outputs, inputs]
        guard names.contains(where: { source.contains($0) }) else { return try matrix("\(module).\(name)", shape) }
        let matrices = try names.map { (name) throws(PEFTError) in try matrix(name, [outputs, inputs]) }
        let (dtype, scaling) = (matrices[0].dtype, matrices[0].scaling)
        if let other = matrices.firstIndex(where: { $0.dtype != dtype || $0.scaling != scaling }) {
            throw PEFTError(.unsupported, "\(source.origin): '\(names[other])' is \(matrices[other].dtype.name), '\(names[0])' is \(dtype.name); the experts of a layer must be alike")
        }
        let result = try Tensor(engine, shape, dtype, .weights, scaling: scaling)
        for (number, matrix) in matrices.enumerated() where result.storage.isReal {
            unsafe (result.pointer + number * matrix.byteCount).copyMemory(from: matrix.pointer, byteCount: matrix.byteCount)
        }
        return result
    }

    /// An output head: its own weights, or those of the embedding.
    package func head(_ name: String, tiedTo embedding: Embedding?, _ inputs: Int, _ outputs: Int) throws(PEFTError) -> Linear {
        guard let embedding else { return try linear(name, inputs, outputs) }
        // Some files hold the shared matrix twice.
        _ = source.optionalTensor(named: name + ".weight")
        return add(Linear(name: name, index: layers.count, tiedTo: embedding))
    }

    package func embedding(_ name: String, _ count: Int, _ dimension: Int) throws(PEFTError) -> Embedding {
        add(Embedding(name: name, index: layers.count, weight: try matrix(name + ".weight", [count, dimension])))
    }

    package func rmsNorm(_ name: String, _ size: Int, epsilon: Double, offset: Float = 0) throws(PEFTError) -> RMSNorm {
        add(RMSNorm(name: name, index: layers.count, weight: try vector(name + ".weight", size), epsilon: Float(epsilon), offset: offset))
    }

    package func layerNorm(_ name: String, _ size: Int, epsilon: Double) throws(PEFTError) -> LayerNorm {
        let (weight, bias) = (try vector(name + ".weight", size), try vector(name + ".bias", size))
        return add(LayerNorm(name: name, index: layers.count, weight: weight, bias: bias, epsilon: Float(epsilon)))
    }

    /// A convolution over as many dimensions as `geometry` has; plain weights only.
    package func convolution(_ name: String, _ inputs: Int, _ outputs: Int, _ geometry: PatchGeometry, groups: Int = 1, bias: Bias = .none) throws(PEFTError) -> Convolution {
        guard inputs % groups == 0, outputs % groups == 0 else { throw PEFTError(.format, "'\(name)': \(inputs) and \(outputs) channels do not divide into \(groups) groups") }
        let weight = try matrix(name + ".weight", [outputs, inputs / groups] + geometry.kernel)
        let hasBias = bias == .required || bias == .optional && source.contains(name + ".bias")
        let vector = hasBias ? try vector(name + ".bias", outputs) : nil
        return add(try Convolution(name: name, index: layers.count, weight: weight, bias: vector, geometry: geometry, groups: groups))
    }

    /// Batch normalisation as it is in evaluation, or over `groups` of channels.
    package func channelNorm(_ name: String, _ kind: String, groups: Int?, channels: Int, epsilon: Double) throws(PEFTError) -> ChannelNorm {
        let isAffine = source.contains(name + ".weight")
        let (weight, bias) = isAffine ? (try vector(name + ".weight", channels), try vector(name + ".bias", channels)) : (nil, nil)
        let statistics: ChannelNorm.Statistics =
            if let groups { .groups(groups) } else { .fixed(mean: try vector(name + ".running_mean", channels), variance: try vector(name + ".running_var", channels)) }
        return add(ChannelNorm(name: name, index: layers.count, kind: kind, channels: channels, statistics: statistics, weight: weight, bias: bias, epsilon: Float(epsilon)))
    }

    /// The shape of a tensor, which must have `rank` axes of 1 or more.
    package func shape(of name: String, rank: Int) throws(PEFTError) -> [Int] {
        guard let tensor = source.peek(name) else { return try source.tensor(named: name).shape }
        guard tensor.shape.count == rank, !tensor.shape.contains(0) else { throw PEFTError(.format, "\(source.origin): '\(name)' has the shape \(tensor.shape); \(rank) sizes are needed") }
        return tensor.shape
    }

    /// Parameters of a module that are in no layer, f32.
    package func bare(_ name: String, kind: String, _ tensors: [(name: String, shape: [Int])]) throws(PEFTError) -> BareTensors {
        var found: [(name: String, tensor: Tensor)] = []
        for (tensor, shape) in tensors {
            let stored = try matrix("\(name).\(tensor)", shape)
            found.append((tensor, stored.dtype == .f32 ? stored : try stored.converted(to: .f32, engine, .weights)))
        }
        return add(BareTensors(name: name, index: layers.count, kind: kind, tensors: found))
    }

    /// Tensors that need not be read (buffers that older checkpoints hold).
    package func ignore(where isIgnored: (String) -> Bool) { source.ignore(where: isIgnored) }

    private func add<L: Layer>(_ layer: L) -> L {
        layers.append(layer)
        return layer
    }

    private func matrix(_ name: String, _ shape: [Int]) throws(PEFTError) -> Tensor {
        if makesTensors { return try .zeros(engine, shape, .f32, .adapters) }
        let tensor = try source.tensor(named: stored(name), shape: shape)
        guard tensor.dtype.isWeightFormat else { throw PEFTError(.unsupported, "\(source.origin): '\(name)' is \(tensor.dtype.name), which is no weight format") }
        return tensor
    }

    /// Vectors are f32 everywhere; they are small.
    private func vector(_ name: String, _ size: Int) throws(PEFTError) -> Tensor {
        let tensor = try matrix(name, [size])
        return tensor.dtype == .f32 ? tensor : try tensor.converted(to: .f32, engine, .weights)
    }
}
