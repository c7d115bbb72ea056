package import Autograd
package import Platform
package import Tensors

/// An adapter that weighs what it does to each token by what the base model makes of it (X-LoRA): a pass runs twice, first without
/// adapters.
package protocol TokenRouter: AnyObject, Sendable {
    /// - Parameter states: of the base model, `[batch·length, hiddenSize]`.
    /// - Returns: what acts in this pass.
    func routed(_ adaptation: Adaptation, by states: Variable, _ tape: Tape) throws(PEFTError) -> Adaptation
}

/// What a router gave each expert in one pass: `[tokens, experts]`, once or for each layer.
package final class RoutedShares {
    package internal(set) var layers: [Tensor] = []

    package init() {}
}

extension Model {
    /// The states before the head, with whatever adapters do.
    package func hidden(_ input: ModelInput, _ context: ForwardContext) throws(PEFTError) -> Variable {
        let states = try routed(input, context)
        // Undone for a head over the vocabulary, which embeddings have, too.
        return network.head == nil ? states : try context.left(states)
    }

    private func routed(_ input: ModelInput, _ context: ForwardContext) throws(PEFTError) -> Variable {
        guard let groups = context.groups else {
            guard let adaptation = context.commonAdaptation, let router = adaptation.router else { return try network.hidden(input, context) }
            return try hidden(input, context, router, adaptation)
        }
        guard groups.allSatisfy({ $0.adaptation.router == nil }) else {
            throw PEFTError(.unsupported, "X-LoRA acts on whole batches; this batch has an adapter for each sample")
        }
        return try network.hidden(input, context)
    }

    private func hidden(_ input: ModelInput, _ context: ForwardContext, _ router: any TokenRouter, _ adaptation: Adaptation) throws(PEFTError) -> Variable {
        guard !network.readsSource else { throw PEFTError(.unsupported, "X-LoRA of an encoder-decoder") }
        let tape = context.tape
        // As in PEFT, nothing goes back through the first pass.
        let first = Tape(tape.engine, tape.precision)
        let states = try network.hidden(input, context.with { (context) throws(PEFTError) in
            context.route(.all(unadapted))
            context.tape = first
            context.caches = try context.caches.map { (cache) throws(PEFTError) in try cache.companion() }
        })
        let routed = try router.routed(adaptation, by: Variable(states.value), tape)
        context.shares?.layers = routed.shares
        return try network.hidden(input, context.with { (context) throws(PEFTError) in
            context.route(.all(routed))
            context.learnsBeside = true
        })
    }
}
