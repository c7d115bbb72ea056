internal import Models
internal import Platform
internal import Tensors

/// `layer_replication`: a deeper model out of the blocks that are there. `[[0, 4], [2, 5]]` runs the blocks 0 1 2 3 2 3 4,
/// which are then named 0 … 6; copies share the base weights and have adapters of their own.
///
/// Unlike in PEFT the base model stays what it is: the other order belongs to the adapter, and is there while it acts.
struct LayerReplication: Sendable, Equatable {
    /// Which block each run is of.
    let order: [Int]
    /// In front of the number in a name: "model.layers."
    private let prefix: String

    private static let mostRuns = 4096

    /// nil: the configuration does not ask for it.
    init?(_ configuration: AdapterConfiguration, _ model: Model) throws(PEFTError) {
        guard configuration.isSet("layer_replication"), let value = configuration.values["layer_replication"] else {
            return nil
        }
        guard let list = model.network.blockList else {
            throw PEFTError(
                .unsupported,
                "layer_replication: the layers of a \(model.architecture) model run in their own order only")
        }
        var order: [Int] = []
        for range in value.arrayValue ?? [.null] {
            guard let pair = range.arrayValue, pair.count == 2, let start = pair[0].intValue,
                let end = pair[1].intValue, start >= 0, start < end, end <= list.count,
                order.count + end - start <= LayerReplication.mostRuns
            else {
                throw PEFTError(
                    .argument,
                    "layer_replication has \(range.text()) in it; pairs [start, end] with 0 ≤ start < end ≤ \(list.count) are expected"
                )
            }
            order += start..<end
        }
        self.order = order
        prefix = list.name + "."
    }

    /// The layers of the deeper model: those outside of the blocks, and for each run the linear layers of its block under the
    /// run's number.
    func layers(_ model: Model) -> [any Layer] {
        let isInside = { (layer: any Layer) in layer.name.hasPrefix(prefix) }
        let first = model.layers.firstIndex(where: isInside) ?? 0
        let copies = order.enumerated().flatMap { run, block in
            model.layers.compactMap { $0 as? Linear }.filter { $0.name.hasPrefix("\(prefix)\(block).") }.map { layer in
                Linear(
                    name: "\(prefix)\(run).\(layer.name.dropFirst("\(prefix)\(block).".count))", index: layer.index,
                    weight: layer.weight, bias: layer.bias,
                    isTransposed: layer.isTransposed, kind: layer.kind) as any Layer
            }
        }
        return model.layers[..<first].filter { !isInside($0) } + copies
            + model.layers[first...].filter { !isInside($0) }
    }

    /// The run that a layer of `layers` belongs to; nil: it is outside.
    func run(of layer: any Layer) -> Int? {
        guard layer.name.hasPrefix(prefix) else { return nil }
        return Int(layer.name.dropFirst(prefix.count).prefix { $0 != "." })
    }

    /// Runs without adapters.
    func runs(layerCount: Int) -> [BlockRun] { order.map { BlockRun(block: $0, layerCount: layerCount) } }
}
