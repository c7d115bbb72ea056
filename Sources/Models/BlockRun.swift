internal import Autograd
internal import Platform
internal import Tensors

/// One of the runs through a decoder's blocks, when an adapter has them run in another order than they stand in the model
/// (LoRA's layer_replication): blocks may run several times, each time with adapters of their own.
package struct BlockRun: Sendable {
    package let block: Int
    /// What adapters do at the block's layers in this run, by `Layer.index`.
    package var layers: [LayerAdaptation]

    package init(block: Int, layerCount: Int) {
        self.block = block
        layers = Array(repeating: LayerAdaptation(), count: layerCount)
    }
}

extension ForwardContext {
    /// The blocks in the order they run, each with the pass as it is for that run.
    /// - Throws: `.unsupported` when samples of one batch ask for different orders, or a cache is made for another number of runs.
    func runs(of blockCount: Int) throws(PEFTError) -> [(block: Int, context: ForwardContext)] {
        if let groups, groups.contains(where: { $0.adaptation.runs != nil }) {
            throw PEFTError(.unsupported, "an adapter with layer_replication cannot share a batch with others")
        }
        let runs = commonAdaptation?.runs
        for cache in caches where cache.layerCount != runs?.count ?? blockCount {
            throw PEFTError(
                .unsupported,
                "\(runs?.count ?? blockCount) layers are to run now (layer_replication), the session was begun with \(cache.layerCount): start a new session"
            )
        }
        guard let runs else { return (0..<blockCount).map { ($0, self) } }
        return try runs.enumerated().map { (number, run) throws(PEFTError) in
            guard run.block >= 0, run.block < blockCount else {
                throw PEFTError(.internal, "run of block \(run.block) of \(blockCount)")
            }
            var adaptation = Adaptation(layerCount: 0)
            adaptation.layers = run.layers
            return (run.block, self.run(number, adaptation))
        }
    }
}
