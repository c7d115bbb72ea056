#!/usr/bin/env python3
"""Adapter files go both ways between this library and LyCORIS (`lycoris-lora`), with the same outputs.

    python scripts/check_with_lycoris.py [--fixtures FOLDER]

Needs `pip install lycoris-lora transformers` in an environment of its own, and build/libpeftswift.so.1; not part of `make test`. Base: the
golden kit's tiny Llama. --fixtures also keeps what LyCORIS wrote, with its outputs: Tests/Python/fixtures_lycoris.

LyCORIS 4.1 multiplies LoHa by alpha/rank twice (loha.py: get_weight, then get_diff_weight); all others, and older files, mean once. Here
alpha is the rank for LoHa, so that both agree.
"""
import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from lycoris import LycorisNetwork, create_lycoris, create_lycoris_from_weights
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bindings" / "python"))
import peftswift  # noqa: E402

BASE = ROOT / "Tests/Golden/data/bases/llama"
IDS = np.array([[1, 5, 9, 2, 20, 7, 3, 4]])
CASES = {
    "locon": dict(algo="lora", linear_dim=3, linear_alpha=2),
    "locon_dora": dict(algo="lora", linear_dim=3, linear_alpha=2, dora_wd=True),
    "loha": dict(algo="loha", linear_dim=3, linear_alpha=3),
    "loha_dora": dict(algo="loha", linear_dim=3, linear_alpha=3, dora_wd=True),
    "lokr": dict(algo="lokr", linear_dim=2, linear_alpha=3, factor=4),
    "lokr_full": dict(algo="lokr", linear_dim=10000, linear_alpha=1),
    "lokr_both": dict(algo="lokr", linear_dim=1, linear_alpha=2, factor=8, decompose_both=True),
    "lokr_dora": dict(algo="lokr", linear_dim=2, linear_alpha=3, factor=4, dora_wd=True),
    "full": dict(algo="full"),
}


def base():
    return AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()


def logits(model):
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits.numpy()


def made(case, path):
    """A network of LyCORIS with random values, its file, and its outputs."""
    torch.manual_seed(0)
    LycorisNetwork.apply_preset({"target_module": [], "target_name": [".*q_proj", ".*down_proj"]})
    model = base()
    network = create_lycoris(model, 1.0, **CASES[case])
    network.apply_to()
    network.eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            # Magnitudes and whole weights only move a little.
            is_big = "dora_scale" in name or case == "full"
            parameter.copy_(parameter * (1 + 0.2 * torch.rand_like(parameter)) if is_big else parameter + 0.3 * torch.randn_like(parameter))
    state = {k: v.detach().clone().contiguous().float() for k, v in network.state_dict().items()}
    save_file(state, str(path))
    return logits(model)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixtures", type=Path)
    options = parser.parse_args()
    worst, plain = 0, logits(base())
    with tempfile.TemporaryDirectory() as scratch:
        for case in CASES:
            file = Path(scratch) / f"{case}.safetensors"
            expected = made(case, file)
            if options.fixtures:
                options.fixtures.mkdir(parents=True, exist_ok=True)
                save_file(load_file(str(file)) | {"logits": torch.tensor(expected)}, str(options.fixtures / f"{case}.safetensors"))
            model = peftswift.Model.from_pretrained(BASE, dtype="float32")
            model.load_adapter(file, "a", is_trainable=True)
            read = np.abs(model(input_ids=IDS).logits - expected).max()
            back = Path(scratch) / "back.safetensors"
            model.save_pretrained(back, "a", format="kohya")
            again = base()
            network, _ = create_lycoris_from_weights(1.0, str(back), again)
            network.apply_to()
            network.eval()
            written = np.abs(logits(again) - expected).max()
            print(f"{case:12} read {read:.1e}   written {written:.1e}   moves the outputs by {np.abs(expected - plain).max():.2f}")
            worst = max(worst, read, written)
    print(f"worst {worst:.1e}")
    return int(worst > 1e-3)


if __name__ == "__main__":
    sys.exit(main())
