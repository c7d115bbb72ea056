#!/usr/bin/env python3
"""Adapters go both ways between this library and Hugging Face PEFT with the same logits.

    python scripts/check_with_peft.py [--model SmolLM2-135M-Instruct.Q4_1.gguf]

Needs PEFT, transformers, torch and gguf (Benchmarks/peers/requirements.txt, in an environment of its own) and build/libpeftswift.so.1;
not part of `make test`. Bases: the golden kit's tiny models, and with --model the real one, which PEFT sees dequantised.

For each configuration: we make and train an adapter, PEFT loads it; PEFT makes one, we load it; both must give the same logits, and a
folder that one has written must be rewritten by the other with the same tensors. Ours merged and exported must open in transformers.
"""
import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bindings" / "python"))
import peftswift  # noqa: E402

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CONFIGS = {
    "plain": dict(r=4, target_modules=["q_proj", "v_proj"]),
    "all-linear, rank stabilised": dict(r=4, lora_alpha=16, target_modules="all-linear", use_rslora=True),
    "dora": dict(r=4, target_modules=["q_proj", "down_proj"], use_dora=True),
    "patterns": dict(r=4, target_modules=LINEARS, rank_pattern={"q_proj": 2, "mlp.*": 6}, alpha_pattern={"up_proj": 32}),
    "embedding and head": dict(r=4, target_modules=["embed_tokens", "lm_head", "q_proj"]),
    "modules to save": dict(r=4, target_modules=["v_proj"], modules_to_save=["lm_head"]),
    "a regular expression, some layers out": dict(r=4, target_modules=r".*\.(0|1)\.self_attn\.(q|k)_proj", exclude_modules=r".*\.1\..*k_proj"),
    "biases": dict(r=4, target_modules=["q_proj"], lora_bias=True, bias="lora_only"),
    "pissa": dict(r=4, target_modules=["q_proj", "o_proj"], init_lora_weights="pissa"),
    "tokens": dict(r=4, target_modules=["q_proj"], trainable_token_indices=[3, 5]),
}
TINY = {"llama": [name for name in CONFIGS if name != "biases"], "llama3l": ["biases"], "llama_tied": ["plain", "dora"], "qwen2": ["plain", "all-linear, rank stabilised"], "qwen3": ["plain", "dora"], "mistral": ["plain", "patterns"]}


class Base:
    """A model as both programs open it."""

    def __init__(self, ours, theirs, vocabulary, tolerance):
        self.ours, self.theirs, self.tolerance = ours, theirs, tolerance
        self.ids = np.random.default_rng(0).integers(1, vocabulary, (2, 12))

    def open(self):
        return peftswift.Model.from_pretrained(self.ours, dtype="float32")

    def peft(self):
        return transformers.AutoModelForCausalLM.from_pretrained(self.theirs, dtype=torch.float32, attn_implementation="eager").eval()

    def our_logits(self, model):
        return model(input_ids=self.ids).logits

    def their_logits(self, model):
        with torch.no_grad():
            return model(torch.tensor(self.ids)).logits.numpy()


def compare(what, a, b, tolerance):
    error = float(np.abs(a - b).max() / np.abs(b).max())
    if not error < tolerance:
        raise AssertionError(f"{what}: {error:.1e} apart, {tolerance:.0e} is allowed")
    return error


def same_files(one, other):
    a, b = (load_file(Path(x) / "adapter_model.safetensors") for x in (one, other))
    if a.keys() != b.keys():
        raise AssertionError(f"keys differ: {sorted(a.keys() ^ b.keys())[:4]}")
    for key in a:
        if not np.array_equal(a[key], b[key]):
            raise AssertionError(f"{key} changed when it was written again")


def ours_in_peft(base, config, folder):
    model = base.open()
    model.add_adapter("default", {"peft_type": "LORA", "task_type": "CAUSAL_LM", **config}, seed=1)
    trainer = model.trainer(lr=1e-2, eps=1e-4)
    for _ in range(3):
        trainer.step(input_ids=base.ids, labels=base.ids)
    expected = base.our_logits(model)
    model.save_pretrained(folder / "ours")
    loaded = PeftModel.from_pretrained(base.peft(), folder / "ours").eval()
    loaded.save_pretrained(folder / "ours again")
    same_files(folder / "ours", folder / "ours again")
    worst = compare("ours in PEFT", base.their_logits(loaded), expected, base.tolerance)
    model.merge_and_unload()
    if not base.ours.is_file():  # merging into the blocks of a quantised file rounds again: only what comes out can be compared
        worst = max(worst, compare("ours merged", base.our_logits(model), expected, base.tolerance))
    model.export(folder / "merged")
    merged = transformers.AutoModelForCausalLM.from_pretrained(folder / "merged", dtype=torch.float32).eval()
    return max(worst, compare("ours merged, in transformers", base.their_logits(merged), base.our_logits(model), base.tolerance))


def theirs_in_ours(base, config, folder):
    torch.manual_seed(0)
    model = get_peft_model(base.peft(), LoraConfig(task_type="CAUSAL_LM", **config))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * parameter.data.std().nan_to_num(0).clamp(min=0.1) * torch.randn_like(parameter)
    expected = base.their_logits(model.eval())
    model.save_pretrained(folder / "theirs")
    ours = base.open()
    ours.load_adapter(folder / "theirs", is_trainable=True)
    ours.set_adapter("default")
    ours.save_pretrained(folder / "theirs again")
    same_files(folder / "theirs", folder / "theirs again")
    return compare("theirs in ours", base.our_logits(ours), expected, base.tolerance)


def dequantised(path, folder):
    """The GGUF file as PEFT can use it: read by transformers' own loader, written as plain f32."""
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    config = type(model.config)(**{k: v for k, v in model.config.to_dict().items() if k != "quantization_config"})
    plain = type(model)(config)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)
    return folder


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="also on this GGUF file")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    scratch = Path(tempfile.mkdtemp())
    bases = [(name, Base(ROOT / "Tests/Golden/data/bases" / name, ROOT / "Tests/Golden/data/bases" / name, 96, 2e-4), configs) for name, configs in TINY.items()]
    if arguments.model:
        bases.append((arguments.model.name, Base(arguments.model.resolve(), dequantised(arguments.model.resolve(), scratch / "hf"), 49000, 2e-4),
                      ["plain", "all-linear, rank stabilised", "dora"]))
    failures = 0
    for name, base, configs in bases:
        for config in configs:
            for direction in (ours_in_peft, theirs_in_ours):
                folder = Path(tempfile.mkdtemp(dir=scratch))
                try:
                    error = direction(base, CONFIGS[config], folder)
                    print(f"PASS {name}, {config}, {direction.__name__.replace('_', ' ')}: {error:.1e}", flush=True)
                except Exception as error:
                    failures += 1
                    print(f"FAIL {name}, {config}, {direction.__name__.replace('_', ' ')}: {type(error).__name__}: {error}", flush=True)
    print(f"{failures} failures")
    return failures > 0


if __name__ == "__main__":
    sys.exit(main())
