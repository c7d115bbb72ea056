internal import Autograd
internal import Platform
internal import Tensors

/// Mixtral (arXiv:2401.04088), after transformers' `modeling_mixtral.py`: Mistral whose feed-forward is a mixture of experts. Files
/// have each expert's matrices by themselves (`block_sparse_moe.experts.0.w1`), the model has them in stacks (`mlp.experts.gate_up_proj`).
extension DecoderFamily {
    static var mixtral: DecoderFamily {
        DecoderFamily(
            modelTypes: ["mixtral"],
            settings: { (configuration, engine) throws(PEFTError) in
                var settings = try DecoderSettings(configuration, engine)
                try settings.setWindows(configuration, slides: Array(repeating: true, count: settings.layerCount))
                let count = try configuration.size("num_local_experts", or: 8, most: 4096)
                let chosen = try configuration.size("num_experts_per_tok", or: 2, most: 4096)
                guard chosen <= count else {
                    throw PEFTError(.format, "\(configuration.origin): config \"num_experts_per_tok\" is \(chosen), and there are \(count) experts")
                }
                settings.experts = (count, chosen)
                guard try configuration.number("router_jitter_noise", or: 0) == 0 else { throw configuration.unsupported("router_jitter_noise", "0") }
                // The loss would have the routers' balance in it.
                try configuration.require("output_router_logits", .bool(false))
                return settings
            })
    }
}

/// A router and what it sends each row to.
final class MixtureOfExperts: FeedForwardPart {
    private let router: Linear
    private let experts: Experts

    init(_ name: String, _ settings: DecoderSettings, count: Int, chosen: Int, _ build: LayerBuilder) throws(PEFTError) {
        router = try build.linear(name + ".gate", settings.hiddenSize, count, kind: "TopKRouter")
        experts = try build.experts(name + ".experts", count, chosen: chosen, settings.hiddenSize, settings.intermediateSize, settings.activation)
    }

    func callAsFunction(_ x: Variable, _ context: ForwardContext) throws(PEFTError) -> Variable {
        try experts(x, logits: try router(x, context, as: .f32), context)
    }
}
