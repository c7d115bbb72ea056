"""Random configurations of the supported families, as transformers computes them and as this library does, and gradients of a LoRA on all
their linear layers.

    python vary_models.py make FOLDER SEED COUNT      needs what make_models.py needs, and peft; COUNT models of each family
    python vary_models.py check FOLDER                needs numpy and the library (PYTHONPATH=bindings/python, PEFTSWIFT_LIBRARY)

Sizes, heads, windows, kinds of layers, rotary scaling, activations, biases, ties and classes are drawn; weights are random, norms' and biases'
too; some rows are padded. What transformers refuses is left out. Ends with `N passed, N failed`.
"""
import json
import os
import random
import sys

TOLERANCE, GRADIENT_TOLERANCE = 3e-4, 2e-3  # of the largest value (of all gradients); small layers with random norms are not kind to f32
GATED = ["silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "quick_gelu", "gelu_fast", "tanh", "sigmoid"]


class Draw:
    def __init__(self, seed):
        self.random = random.Random(seed)

    def one(self, *choices):
        return self.random.choice(choices)

    def chance(self, p):
        return self.random.random() < p

    def rope(self, pairs, kinds=("default", "default", "linear", "yarn", "llama3", "longrope")):
        kind = self.one(*kinds)
        rope = {"rope_type": kind, "rope_theta": self.one(10000.0, 500000.0, 100.0)}
        if kind in ("linear", "yarn", "llama3", "longrope"):
            rope["factor"] = self.one(1.5, 2.0, 8.0)
        if kind in ("yarn", "llama3", "longrope"):
            rope["original_max_position_embeddings"] = self.one(8, 16, 32)
        if kind == "llama3":
            rope.update(low_freq_factor=1.0, high_freq_factor=4.0)
        if kind == "longrope":
            rope.update(short_factor=[1 + self.random.random() for _ in range(pairs)], long_factor=[1 + 4 * self.random.random() for _ in range(pairs)])
        if kind == "yarn":
            for some in ({"beta_fast": 16.0, "beta_slow": 2.0}, {"mscale": 1.0, "mscale_all_dim": 0.5}, {"truncate": False}):
                rope.update(some if self.chance(0.3) else {})
        if kind in ("yarn", "longrope") and self.chance(0.3):
            rope["attention_factor"] = 1.3
        return rope

    def kinds(self, layers):
        return [self.one("full_attention", "sliding_attention") for _ in range(layers)]

    def decoder(self, family):
        heads, head_dim, layers = self.one(1, 2, 4, 6), self.one(4, 8, 16, 20), self.one(1, 2, 3)
        config = dict(
            vocab_size=self.one(50, 96, 131), hidden_size=self.one(heads * head_dim, 24, 40), intermediate_size=self.one(32, 40, 96), num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=self.one(*(h for h in range(1, heads + 1) if heads % h == 0)), head_dim=head_dim,
            max_position_embeddings=self.one(16, 32, 64), rms_norm_eps=self.one(1e-6, 1e-5, 1e-3), tie_word_embeddings=self.chance(0.5),
            bos_token_id=1, eos_token_id=2, pad_token_id=0, rope_parameters=self.rope(head_dim // 2))
        if self.chance(0.5):
            config["hidden_activation" if family in ("gemma2", "gemma3_text") else "hidden_act"] = self.one(*GATED)
        if family in ("llama", "qwen3"):
            config.update(attention_bias=self.chance(0.3))
        if family == "llama":
            config.update(mlp_bias=self.chance(0.3))
        if family in ("mistral", "phi3", "mixtral"):
            config.update(sliding_window=self.one(None, 3, 5))
        if family in ("qwen2", "qwen3"):
            config.update(use_sliding_window=self.chance(0.5), sliding_window=self.one(3, 5), max_window_layers=self.one(0, 1, 2))
            # (transformers' cache fails where layers slide and no window is used.)
        if family == "phi3":
            del config["head_dim"]
            config.update(hidden_size=heads * head_dim, rope_parameters=self.rope(head_dim // 2, ("default", "longrope")))
        if family == "mixtral":
            config.update(num_local_experts=self.one(2, 4, 5), num_experts_per_tok=self.one(1, 2))
        if family in ("gemma2", "gemma3_text"):
            config.update(sliding_window=self.one(3, 4, 100), query_pre_attn_scalar=self.one(head_dim, 16, 256),
                          attn_logit_softcapping=self.one(None, 50.0, 5.0), final_logit_softcapping=self.one(None, 30.0, 3.0))
        if family in ("qwen2", "qwen3", "gemma2", "gemma3_text") and config.get("use_sliding_window", True) and self.chance(0.3):
            config["layer_types"] = self.kinds(layers)
        if family == "gemma3_text":
            config["rope_parameters"] = {"full_attention": config["rope_parameters"], "sliding_attention": self.rope(0, ("default",))}
        return config

    def encoder(self, family):
        heads = self.one(1, 2, 4)
        width, wide, layers, act = heads * self.one(4, 8, 12), self.one(32, 48), self.one(1, 2, 3), self.one("gelu", "relu", "gelu_new", "silu")
        if family == "distilbert":
            return dict(vocab_size=96, dim=width, hidden_dim=wide, n_layers=layers, n_heads=heads, max_position_embeddings=40, sinusoidal_pos_embds=self.chance(0.5), pad_token_id=0)
        return dict(vocab_size=96, hidden_size=width, intermediate_size=wide, num_hidden_layers=layers, num_attention_heads=heads, max_position_embeddings=40, hidden_act=act,
                    type_vocab_size=self.one(1, 2), layer_norm_eps=self.one(1e-12, 1e-5, 1e-3), pad_token_id=int(family == "roberta"))

    def t5(self, _):
        return dict(vocab_size=96, d_model=self.one(16, 24), d_kv=self.one(4, 8), d_ff=self.one(32, 40), num_layers=self.one(1, 2), num_decoder_layers=self.one(1, 3), num_heads=self.one(2, 3),
                    relative_attention_num_buckets=self.one(8, 32), relative_attention_max_distance=self.one(32, 128), layer_norm_epsilon=self.one(1e-6, 1e-3),
                    feed_forward_proj=self.one("relu", "gelu", "gated-gelu", "gated-silu", "gated-relu"), tie_word_embeddings=self.chance(0.5), decoder_start_token_id=0, pad_token_id=0)

    def gpt2(self, _):
        heads = self.one(1, 2, 4)
        return dict(vocab_size=96, n_embd=heads * self.one(4, 8), n_layer=self.one(1, 2, 3), n_head=heads, n_positions=40, n_inner=self.one(None, 24), layer_norm_epsilon=self.one(1e-5, 1e-3),
                    activation_function=self.one("gelu_new", "relu", "gelu", "silu", "tanh"), tie_word_embeddings=self.chance(0.7), bos_token_id=1, eos_token_id=2, pad_token_id=0)

    def picture(self, family):
        heads, patch = self.one(1, 2, 3), self.one(4, 8)
        config = dict(hidden_size=heads * self.one(4, 8), num_hidden_layers=self.one(1, 2), num_attention_heads=heads, image_size=patch * self.one(2, 3, 4), patch_size=patch,
                      num_channels=self.one(1, 3), hidden_act=self.one("gelu", "relu", "gelu_new"), layer_norm_eps=self.one(1e-12, 1e-6, 1e-3), qkv_bias=self.chance(0.7))
        return config | (dict(intermediate_size=self.one(32, 40)) if family == "vit" else dict(mlp_ratio=self.one(2, 4), layerscale_value=self.one(1.0, 0.5)))

    def inputs(self, config, family, torch):
        if family in ("vit", "dinov2"):
            return {"pixel_values": torch.randn(2, config["num_channels"], config["image_size"], config["image_size"])}
        batch, length = self.one(1, 2, 3), self.one(5, 9, 13)
        ids, mask = torch.randint(3, config["vocab_size"], (batch, length)), torch.ones(batch, length, dtype=torch.int64)
        if batch > 1 and self.chance(0.5):
            mask[1, length - self.one(1, 2, 3):] = 0
            ids[mask == 0] = config["pad_token_id"]
        return {"input_ids": ids, "attention_mask": mask}


    def labels(self, config, kind, inputs, torch):
        """What a loss is taken of; nothing for a bare model."""
        if "pixel_values" in inputs:
            return {"labels": torch.randint(0, config.num_labels, (2,))} if "Classification" in kind else {}
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        batch, length = ids.shape
        if "SequenceClassification" in kind:
            return {"labels": torch.randint(0, config.num_labels, (batch,))}
        if "TokenClassification" in kind:
            return {"labels": torch.randint(0, config.num_labels, (batch, length))}
        if "QuestionAnswering" in kind:
            return {key: torch.randint(0, length, (batch,)) for key in ("start_positions", "end_positions")}
        if "ConditionalGeneration" in kind:
            return {"labels": torch.randint(3, 96, (batch, 6))}
        return {} if kind.endswith("Model") and not kind.endswith("LMHeadModel") else {"labels": torch.where(mask == 1, ids, -100)}


def families(t, draw):
    text = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
    for name, prefix in {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "gemma": "Gemma", "gemma2": "Gemma2", "gemma3_text": "Gemma3", "phi3": "Phi3", "mixtral": "Mixtral"}.items():
        yield name, getattr(t, prefix + ("TextConfig" if name == "gemma3_text" else "Config")), draw.decoder, prefix, ("ForCausalLM", "ForCausalLM", *text)
    for name, prefix in {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert"}.items():
        yield name, getattr(t, prefix + "Config"), draw.encoder, prefix, (*text, "Model")
    yield "t5", t.T5Config, draw.t5, "T5", ("ForConditionalGeneration",)
    yield "gpt2", t.GPT2Config, draw.gpt2, "GPT2", ("LMHeadModel", *text)
    yield "vit", t.ViTConfig, draw.picture, "ViT", ("ForImageClassification", "Model")
    yield "dinov2", t.Dinov2Config, draw.picture, "Dinov2", ("ForImageClassification", "Model")


def make(folder, seed, count):
    import torch
    import transformers as t
    from peft import LoraConfig, get_peft_model
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save_file
    draw = Draw(seed)
    for number in range(count):
        for name, config_class, settings, prefix, classes in families(t, draw):
            made = getattr(t, prefix + draw.one(*(c for c in classes if hasattr(t, prefix + c))))
            config, kind = settings(name), made.__name__
            if "Classification" in kind:
                config["num_labels"] = draw.one(2, 3, 5)
            torch.manual_seed(draw.random.randrange(10**6))
            try:
                config = config_class(**config, attn_implementation="eager")
            except Exception as error:  # of whichever kind a configuration's checks are
                print(f"left out: {name}_{number}: {error!r:.150}")
                continue
            model, inputs = made(config).eval(), draw.inputs(config.to_dict(), name, torch)
            inputs |= draw.labels(config, kind, inputs, torch)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim < 2 else 0.15))
                out = model(**inputs)
            expected = {key: out[key].contiguous().clone() for key in ("logits", "loss", "last_hidden_state", "pooler_output", "start_logits", "end_logits") if out.get(key) is not None}
            path = os.path.join(folder, f"{name}_{number}")
            model.save_pretrained(path)
            save_file(inputs, path + "/inputs.safetensors")
            if "loss" in expected:
                adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=3, target_modules="all-linear", init_lora_weights=False))
                adapted.save_pretrained(path + "/adapter")
                adapted(**inputs).loss.backward()
                trained = {parameter: parameter.grad for parameter in adapted.parameters() if parameter.grad is not None}
                state = get_peft_model_state_dict(adapted, state_dict=dict(adapted.named_parameters()))
                expected |= {"grad." + key: trained[parameter].clone() for key, parameter in state.items()}
            save_file(expected, path + "/expected.safetensors")


def check(folder):
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path.insert(0, os.path.join(here, "../../Python"))
    import numpy as np
    import peftswift
    from test_architectures import arrays
    passed = failed = 0
    for name in sorted(os.listdir(folder)):
        path, wrong = os.path.join(folder, name), []
        inputs, expected = arrays(path + "/inputs.safetensors"), arrays(path + "/expected.safetensors")
        try:
            model = peftswift.Model.from_pretrained(path, dtype="float32")
            wrong += [f"unused: {key}" for key in model.describe()["load_report"]["unused"]]
            out = model(**inputs)
            gradients = {key.removeprefix("grad."): want for key, want in expected.items() if key.startswith("grad.")}
            if gradients:
                model.load_adapter(path + "/adapter", is_trainable=True)
                found, most = model.gradients(**inputs), max(np.abs(want).max() for want in gradients.values())
                wrong += [f"keys: {key}" for key in set(found) ^ set(gradients)]
                wrong += [f"{key}: error {np.abs(found[key] - want).max() / most:.2g}" for key, want in gradients.items()
                          if key in found and not np.abs(found[key] - want).max() <= GRADIENT_TOLERANCE * most]
            for key, want in expected.items():
                if key.startswith("grad."):
                    continue
                got, want = np.asarray(getattr(out, key), dtype=np.float64).reshape(want.shape), want.astype(np.float64)
                seen = inputs.get("attention_mask")
                if seen is not None and want.shape[:2] == seen.shape and not name.startswith("t5"):
                    got, want = got[seen == 1], want[seen == 1]  # padding is nobody's
                error = np.abs(got - want).max() / np.abs(want).max()
                wrong += [] if error <= TOLERANCE else [f"{key}: error {error:.2g}"]
        except Exception as error:
            wrong.append(f"{error!r:.250}")
        passed, failed = passed + (not wrong), failed + bool(wrong)
        if wrong:
            print("FAIL", name, json.load(open(path + "/config.json"))["architectures"][0], "; ".join(wrong))
    print(f"{passed} passed, {failed} failed")
    return failed


if __name__ == "__main__":
    if len(sys.argv) == 5 and sys.argv[1] == "make":
        make(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    elif len(sys.argv) == 3 and sys.argv[1] == "check":
        sys.exit(bool(check(sys.argv[2])))
    else:
        sys.exit(__doc__)
