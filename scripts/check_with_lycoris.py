#!/usr/bin/env python3
"""Adapter files go both ways between this library and LyCORIS (`lycoris-lora`), with the same outputs.

    python scripts/check_with_lycoris.py [--fixtures FOLDER]

Needs `pip install lycoris-lora transformers` in an environment of its own, and build/libpeftswift.so.1; not part of `make test`. Base: the
golden kit's tiny Llama (GPT-2 for norms). --fixtures also keeps what LyCORIS wrote, with its outputs: Tests/Python/fixtures_lycoris.

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

BASES = ROOT / "Tests/Golden/data/bases"
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
    "oft": dict(algo="diag-oft", linear_dim=4),
    "oft_rescaled": dict(algo="diag-oft", linear_dim=4, rescaled=True, constraint=0.02),
    "boft": dict(algo="boft", linear_dim=8, rescaled=True),
    "glora": dict(algo="glora", linear_dim=3, linear_alpha=2),
    "ia3": dict(algo="ia3"),
    "norm": dict(algo="lora", linear_dim=3, train_norm=True),
}
#: What LyCORIS cannot make from a file by itself (4.1: arguments or gradients in the way): a network is made and filled.
FILLED = {"oft", "oft_rescaled", "boft", "ia3", "norm", "glora"}


def base(case):
    return AutoModelForCausalLM.from_pretrained(BASES / ("gpt2" if case == "norm" else "llama"), dtype=torch.float32).eval()


def logits(model):
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits.numpy()


def network_of(case, model):
    names = [".*ln_1", ".*ln_f"] if case == "norm" else [".*q_proj", ".*down_proj"]
    inputs = {".*down_proj": {"algo": "ia3", "train_on_input": True}} if case == "ia3" else {}
    LycorisNetwork.apply_preset({"target_module": [], "target_name": names, "name_algo_map": inputs})
    network = create_lycoris(model, 1.0, **CASES[case])
    network.apply_to()
    return network.eval()


def made(case, path):
    """A network of LyCORIS with random values, its file, and its outputs."""
    torch.manual_seed(0)
    model = base(case)
    network = network_of(case, model)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            # Magnitudes and whole weights only move a little.
            is_big = "dora_scale" in name or case == "full"
            parameter.copy_(parameter * (1 + 0.2 * torch.rand_like(parameter)) if is_big else parameter + 0.3 * torch.randn_like(parameter))
    state = {k: v.detach().clone().contiguous() for k, v in network.state_dict().items()}
    save_file(state, str(path))
    return logits(model)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixtures", type=Path)
    options = parser.parse_args()
    worst = 0
    with tempfile.TemporaryDirectory() as scratch:
        for case in CASES:
            file = Path(scratch) / f"{case}.safetensors"
            expected, plain = made(case, file), logits(base(case))
            if options.fixtures:
                options.fixtures.mkdir(parents=True, exist_ok=True)
                save_file(load_file(str(file)) | {"logits": torch.tensor(expected)}, str(options.fixtures / f"{case}.safetensors"))
            model = peftswift.Model.from_pretrained(BASES / ("gpt2" if case == "norm" else "llama"), dtype="float32")
            model.load_adapter(file, "a", is_trainable=True)
            read = np.abs(model(input_ids=IDS).logits - expected).max()
            back = Path(scratch) / "back.safetensors"
            model.save_pretrained(back, "a", format="kohya")
            again = base(case)
            if case in FILLED:
                lacks = network_of(case, again).load_state_dict(load_file(str(back)), strict=False)
                assert not lacks.unexpected_keys and not lacks.missing_keys, lacks
            else:
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
