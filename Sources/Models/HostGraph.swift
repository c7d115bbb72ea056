package import Autograd
package import Platform
internal import Tensors

/// A network that a host describes: `{"model_type": "graph", "layers": [{"name", "kind", …}, …]}` (docs/graph.md). Each node works on
/// the result of the one before, or of those that "input" names; layers have torch's names, sizes come from their tensors.
///
/// Values are `[batch·positions, channels]` all the way: pictures are turned once, when they come in.
package final class HostGraph: Architecture {
    package static let modelTypes = ["graph"]

    package let task = ModelTask.classification
    private let nodes: [GraphNode]

    package init(_ configuration: ModelConfiguration, _ build: LayerBuilder) throws(PEFTError) {
        guard let list = configuration.json["layers"]?.arrayValue, !list.isEmpty else {
            throw PEFTError(.format, "\(configuration.origin): config \"layers\" is \(configuration.json["layers"]?.text() ?? "missing"); a list of nodes is needed")
        }
        build.ignore { $0.hasSuffix(".num_batches_tracked") }
        var nodes: [GraphNode] = []
        for (index, item) in list.enumerated() {
            let node = ModelConfiguration(item.objectValue ?? JSONObject(), origin: "\(configuration.origin): layers[\(index)]")
            nodes.append(try GraphNode(node, index, nodes.map(\.name), build))
        }
        self.nodes = nodes
    }

    /// What the last node gives.
    package func hidden(_ input: ModelInput, _ context: ForwardContext) throws(PEFTError) -> Variable {
        var values: [GraphValue] = []
        let tape = context.tape
        let first = try GraphValue(input, context)
        for node in nodes {
            let inputs = node.inputs.map { $0 < 0 ? first : values[$0] }
            values.append(try node(inputs, context))
        }
        guard let last = values.last else { throw PEFTError(.internal, "a graph without nodes") }
        return try last.flat(context.batch, tape)
    }

    package func logits(_ hidden: Variable, of input: ModelInput, rows: LogitRows, _ context: ForwardContext) throws(PEFTError) -> Variable {
        hidden.value.dtype == .f32 ? hidden : try context.tape.cast(hidden, to: .f32)
    }
}

/// A result on its way: rows of channels, and the sizes of the picture that a sample's rows are (none: one row a sample).
struct GraphValue {
    var rows: Variable
    var size: [Int] = []

    init(rows: Variable, size: [Int]) { (self.rows, self.size) = (rows, size) }

    /// `[batch, features]`, or `[batch, channels, sizes…]`, which is turned; or ids.
    init(_ input: ModelInput, _ context: ForwardContext) throws(PEFTError) {
        let tape = context.tape
        guard case .features(let features) = input else {
            guard case .ids(let ids) = input else { throw PEFTError(.argument, "this network reads vectors or pictures (x), or ids") }
            self.init(rows: Variable(ids), size: [])
            return
        }
        let shape = features.shape
        guard shape.count >= 2, shape.count <= 5 else { throw PEFTError(.argument, "x has the shape \(shape); [batch, channels] and up to three sizes are needed") }
        let x = try tape.cast(features, to: tape.precision.activation)
        let size = Array(shape.dropFirst(2))
        let positions = size.reduce(1, *)
        guard !size.isEmpty else {
            self.init(rows: x, size: [])
            return
        }
        self.init(rows: try tape.turned(x, batch: shape[0], rows: shape[1], columns: positions, shape: [shape[0] * positions, shape[1]]), size: size)
    }

    /// `[batch, channels·positions]`, channel after channel, as torch flattens.
    func flat(_ batch: Int, _ tape: Tape) throws(PEFTError) -> Variable {
        let positions = size.reduce(1, *)
        guard positions > 1 || rows.value.rows != batch else { return rows }
        return try tape.turned(rows, batch: batch, rows: positions, columns: rows.value.columns, shape: [batch, positions * rows.value.columns])
    }
}
