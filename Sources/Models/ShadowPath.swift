package import Autograd
package import Platform

/// A small network that runs beside a decoder's blocks: a state they see and change (Shadow).
package protocol ShadowPath: AnyObject, Sendable {
    /// Of the loss it has by itself; 0: none.
    var lossWeight: Float { get }
    /// The state the first block sees, `[batch·length, hiddenSize]`.
    /// - Parameter x: what the first block reads.
    func start(_ x: Variable, _ input: ModelInput, _ context: ForwardContext) throws(PEFTError) -> Variable
    /// What a block reads beside a state.
    func injected(into h: Variable, _ state: Variable, block: Int, _ tape: Tape) throws(PEFTError) -> Variable
    /// The state after a block that gave `h`.
    func updated(_ state: Variable, by h: Variable, block: Int, _ tape: Tape) throws(PEFTError) -> Variable
}

extension ForwardContext {
    /// - Throws: `.unsupported` where it cannot be beside what acts too.
    func shadow() throws(PEFTError) -> (any ShadowPath)? {
        if let groups, groups.contains(where: { $0.adaptation.shadow != nil }) {
            throw PEFTError(.unsupported, "SHADOW acts on whole batches; this batch has an adapter for each sample")
        }
        guard let adaptation = commonAdaptation, let shadow = adaptation.shadow else { return nil }
        guard adaptation.prompt == nil, memory == nil, adaptation.runs == nil, firstKey == nil else {
            throw PEFTError(.unsupported, "SHADOW beside virtual tokens, prefixes, layer_replication or packed rows")
        }
        return shadow
    }

    /// The same pass through a network of an adapter's own.
    package func beside(_ network: any Network, _ adaptation: Adaptation) throws(PEFTError) -> ForwardContext {
        try with { (context) throws(PEFTError) in
            context.route(.all(adaptation))
            (context.recomputedBlocks, context.shadowStart) = (0, nil)
            context.caches = try context.caches.map { (cache) throws(PEFTError) in try cache.companion(network.cacheShape) }
        }
    }
}
