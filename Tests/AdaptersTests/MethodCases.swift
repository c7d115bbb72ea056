import Platform
import Tensors
import Testing

@testable import Adapters

/// A method with settings that fit the tiny model; the same table feeds all tests of what every method has to do.
struct MethodCase: Sendable, CustomTestStringConvertible {
    let config: JSONObject
    /// A fresh adapter changes nothing.
    var isNeutral = true
    /// Two of the kind can act on the same layers.
    var isAdditive = true
    /// The merged weights do what the hooks do.
    var isMergeable = true
    /// Its function has no steps within the reach of difference quotients.
    var isSmooth = true
    /// Its gradients are those of its function (OSF's are projected, on purpose).
    var hasExactGradients = true
    /// What it does to a sample does not depend on the others.
    var isPerSample = true
    /// Few rows take all it does with the layer's own product.
    var isJoined = false
    /// Few rows can take weights with it in them, where it is more than that. AdaMSS is where there is a bias.
    var isFolded: Bool { type == "ADAMSS" || isMergeable && !isJoined && !["IA3", "BEFT", "LN_TUNING", "TRAINABLE_TOKENS"].contains(type) }
    /// What happens to random values at the layer named first: how much noise they take.
    var noise: Float = 0.3

    /// Norms of weights learn too (in LoRA's DoRA they are constants of the backward pass, as in PEFT).
    var movesNorms: Bool { config["weight_decompose"] == .bool(true) }
    var type: String { config["peft_type"]?.stringValue ?? "" }
    var testDescription: String { "\(type) \(config.pairs.filter { $0.key != "peft_type" && $0.key != "target_modules" }.map { "\($0.key)=\($0.value.text())" }.joined(separator: " "))" }

    /// All weight formats that have an encoder, in turn: one for each case.
    static func formats(from start: Int) -> [DType] {
        let formats = DType.allCases.filter { $0.isWeightFormat && ![.f32, .tq1_0, .tq2_0].contains($0) }
        return all.indices.map { formats[(start + $0) % formats.count] }
    }

    init(
        _ type: String, _ settings: JSONObject = [:], targets: [String] = ["q_proj", "v_proj"], isNeutral: Bool = true, isAdditive: Bool = true,
        isMergeable: Bool = true, isSmooth: Bool = true, hasExactGradients: Bool = true, isPerSample: Bool = true, isJoined: Bool = false, noise: Float = 0.3
    ) {
        (self.hasExactGradients, self.isPerSample) = (hasExactGradients, isPerSample)
        var config: JSONObject = ["peft_type": .string(type), "target_modules": .array(targets.map { .string($0) })]
        for (key, value) in settings.pairs { config[key] = value }
        self.config = config
        self.isSmooth = isSmooth
        (self.isNeutral, self.isAdditive, self.isMergeable, self.isJoined, self.noise) = (isNeutral, isAdditive, isMergeable, isJoined, noise)
    }

    static let all: [MethodCase] = [
        MethodCase("LORA", ["r": .integer(4)], targets: ["q_proj", "c_fc", "embed_tokens"], isJoined: true),
        MethodCase("LORA", ["r": .integer(4), "use_dora": .bool(true)], isAdditive: false, isJoined: true),
        MethodCase(
            "LORA", ["r": .integer(4), "use_bdlora": .object(["target_modules_bd_a": names("q_proj"), "target_modules_bd_b": names("v_proj"), "nblocks": .integer(2)])]),
        MethodCase("LORA", ["r": .integer(4), "alora_invocation_tokens": .array([.integer(9), .integer(2)])], isAdditive: false, isMergeable: false),
        MethodCase("LORA", ["r": .integer(4), "velora_config": .object(["init_type": .string("random"), "num_groups": .integer(5)])]),
        MethodCase("LORA", ["r": .integer(4), "velora_config": .object(["num_groups": .integer(5)])]),
        // Its priors act in training alone.
        MethodCase("LORA", ["r": .integer(4), "monteclora_config": .object(["num_samples": .integer(3), "use_entropy": .bool(true)])], hasExactGradients: false),
        MethodCase("LORA", ["r": .integer(4), "use_qalora": .bool(true), "qalora_group_size": .integer(8)], noise: 0.1),
        MethodCase("LORA", ["r": .integer(6), "dylora_block_size": .integer(2)]),
        MethodCase("LORA", ["r": .integer(4), "use_gating": .bool(true)], isAdditive: false, isMergeable: false),
        MethodCase("IA3", ["feedforward_modules": names("v_proj")], targets: ["q_proj", "v_proj", "c_fc"]),
        MethodCase("LOHA", ["r": .integer(2)], isJoined: true),
        MethodCase("LOHA", ["r": .integer(12)]),
        MethodCase("LOKR", ["r": .integer(2)]),
        MethodCase("LOKR", ["r": .integer(1), "decompose_both": .bool(true)]),
        MethodCase("LOKR", ["r": .integer(9), "init_weights": .string("lycoris")]),
        MethodCase("LOHA", ["r": .integer(2), "weight_decompose": .bool(true)], isAdditive: false, noise: 0.2),
        MethodCase("LOKR", ["r": .integer(2), "weight_decompose": .bool(true)], isAdditive: false, noise: 0.2),
        MethodCase("OFT", ["oft_block_size": .integer(8)], noise: 0.1),
        MethodCase("OFT", ["oft_block_size": .integer(0), "r": .integer(4), "use_cayley_neumann": .bool(false)], noise: 0.1),
        MethodCase("OFT", ["oft_block_size": .integer(8), "block_share": .bool(true)], targets: ["q_proj", "embed_tokens"], noise: 0.1),
        MethodCase("BOFT", ["boft_block_size": .integer(4)]),
        MethodCase("BOFT", ["boft_block_size": .integer(4), "boft_n_butterfly_factor": .integer(3)]),
        MethodCase("HRA", ["r": .integer(4)], isJoined: true),
        MethodCase("HRA", ["r": .integer(4), "apply_GS": .bool(true)], isNeutral: false, isJoined: true),
        MethodCase("ADALORA", ["init_r": .integer(4), "total_step": .integer(10)], targets: ["q_proj", "c_fc"], isJoined: true),
        MethodCase("MISS", ["r": .integer(7)], isJoined: true),
        MethodCase("MISS", ["r": .integer(8), "init_weights": .string("mini"), "mini_r": .integer(4)], isJoined: true),
        MethodCase("MISS", ["r": .integer(8), "init_weights": .string("bat")], isAdditive: false),
        MethodCase("ROAD", ["group_size": .integer(8)]),
        MethodCase("ROAD", ["group_size": .integer(8), "variant": .string("road_4")]),
        MethodCase("GRALORA", ["r": .integer(4), "hybrid_r": .integer(2)], targets: ["q_proj", "c_fc"]),
        MethodCase("DELORA", ["r": .integer(4)], isJoined: true),
        MethodCase("HIRA", ["r": .integer(4)], targets: ["q_proj", "c_fc", "embed_tokens"], isAdditive: false),
        MethodCase("LN_TUNING", targets: ["input_layernorm"], isAdditive: false),
        MethodCase("VERA", ["r": .integer(8)]),
        MethodCase("PVERA", ["r": .integer(8)]),
        MethodCase("RANDLORA", ["r": .integer(8)], noise: 0.03),
        MethodCase("VBLORA", ["r": .integer(2), "vector_length": .integer(16), "num_vectors": .integer(8)], isNeutral: false, isSmooth: false, isJoined: true, noise: 3),
        MethodCase("UNILORA", ["theta_d_length": .integer(32)], isNeutral: false, isJoined: true),
        MethodCase("TINYLORA", ["u": .integer(4)], isNeutral: false, isJoined: true),
        MethodCase("BEFT", targets: ["q_proj"]),
        MethodCase("TRAINABLE_TOKENS", ["token_indices": .array([.integer(5), .integer(7)])], targets: ["embed_tokens"], isAdditive: false),
        MethodCase("FOURIERFT", ["n_frequency": .integer(40), "scaling": .number(300)], targets: ["q_proj", "c_fc"], isNeutral: false),
        MethodCase("WAVEFT", ["n_frequency": .integer(40), "scaling": .number(2), "wavelet_family": .string("db2")], targets: ["q_proj", "c_fc"]),
        MethodCase("WAVEFT", ["n_frequency": .integer(40), "scaling": .number(2), "use_idwt": .bool(false)]),
        MethodCase("FROD", ["sparse_rate": .number(0.05)]),
        MethodCase("SHIRA", ["r": .integer(2)]),
        MethodCase("SUPERTUNING", ["sparsity": .number(0.9), "r": .integer(2), "lora_alpha": .integer(4)]),
        // One layer: what goes to those below is what PEFT computes, and no derivative.
        MethodCase("C3A", ["block_size": .integer(8)], targets: ["layers.0.self_attn.q_proj"], isNeutral: false, noise: 3),
        MethodCase("PSOFT", ["r": .integer(6)], isJoined: true, noise: 0.1),
        MethodCase("PSOFT", ["r": .integer(6), "psoft_orth": .bool(false), "ab_svd_init": .string("pissa_init")], isJoined: true, noise: 0.1),
        MethodCase("OSF", hasExactGradients: false, noise: 0.1),
        MethodCase("PEANUT", ["r": .integer(4), "depth": .integer(2), "act_fn": .string("tanh")]),
        MethodCase("DEFT", ["r": .integer(4)], targets: ["q_proj", "c_fc"], isSmooth: false, isJoined: true),
        MethodCase("DEFT", ["r": .integer(3), "para": .bool(true), "decomposition_method": .string("qr")], isNeutral: false, isJoined: true),
        MethodCase("GLORA", ["r": .integer(3)]),
        MethodCase("GLORA", ["config_A_B": .string("vector"), "config_C": .string("vector"), "config_D_E": .string("vector")]),
        MethodCase("ADAMSS", ["r": .integer(6), "num_subspaces": .integer(3), "subspace_rank": .integer(2)], isJoined: true),
        MethodCase("ADAMSS", ["r": .integer(40), "use_dynamic_rank": .bool(true), "subspace_rank": .integer(3)], isJoined: true),
        MethodCase("POLY", ["r": .integer(4), "n_tasks": .integer(2), "n_skills": .integer(3), "n_splits": .integer(2)], isAdditive: false, isMergeable: false),
        MethodCase("FULL", targets: ["q_proj", "c_fc"]),
        MethodCase("FULL", ["use_bias": .bool(true)], targets: ["q_proj", "v_proj"]),
        MethodCase("LYCORIS_OFT", ["r": .integer(4), "rescaled": .bool(true)], targets: ["q_proj", "v_proj", "c_fc"]),
        MethodCase("LYCORIS_OFT", ["r": .integer(8), "butterfly": .bool(true), "constraint": .number(0.01)]),
        MethodCase("LYCORIS_GLORA", ["r": .integer(3), "alpha": .number(2)], targets: ["q_proj", "v_proj", "c_fc"]),
        MethodCase("LILY", ["r": .integer(4), "stride_A": .integer(2)], isAdditive: false, isMergeable: false, isPerSample: false),
    ]
}
