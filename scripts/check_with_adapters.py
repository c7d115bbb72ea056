#!/usr/bin/env python3
"""Bottleneck adapters go both ways between this library and AdapterHub's `adapters` with the same outputs.

    python scripts/check_with_adapters.py [--fixtures FOLDER]

Needs `pip install adapters torch` in an environment of its own, and build/libpeftswift.so.1; not part of `make test`. Bases: the golden
kit's tiny models. --fixtures also keeps what the library wrote for BERT, with its outputs: Tests/Python/fixtures_adapters.
"""
import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import adapters
import numpy as np
import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bindings" / "python"))
import peftswift  # noqa: E402

IDS = np.array([[1, 5, 9, 2, 20, 7, 3, 4]])
# ln_before is not here: the library gives its norm two names, and safetensors refuses to save that.
CONFIGS = {
    "double_seq_bn": "double_seq_bn", "seq_bn": "seq_bn", "par_bn": "par_bn", "scaled_par_bn": "scaled_par_bn",
    "gated": adapters.BnConfig(mh_adapter=True, output_adapter=True, reduction_factor=4, non_linearity="gelu", use_gating=True),
    "norms": adapters.BnConfig(mh_adapter=False, output_adapter=True, reduction_factor={"default": 2, "1": 4}, non_linearity="tanh", ln_after=True,
                               original_ln_before=True),
}
HEADS = {"bert": transformers.AutoModel, "t5": transformers.AutoModelForSeq2SeqLM}


def theirs(base):
    model = HEADS.get(base, transformers.AutoModelForCausalLM).from_pretrained(ROOT / "Tests/Golden/data/bases" / base, dtype=torch.float32)
    adapters.init(model)
    return model.eval()


def output(model, base):
    ids = IDS if isinstance(model, peftswift.Model) else torch.tensor(IDS)
    result = model(input_ids=ids, **({"decoder_input_ids": ids[:, :4]} if base == "t5" else {}))
    values = getattr(result, "logits", None)
    values = result.last_hidden_state if values is None else values
    return values if isinstance(values, np.ndarray) else values.detach().numpy()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixtures", type=Path)
    fixtures = parser.parse_args().fixtures
    failures = 0

    def report(what, a, b):
        nonlocal failures
        error = float(np.abs(a - b).max() / np.abs(b).max())
        failures += not error < 1e-5
        print("PASS" if error < 1e-5 else "FAIL", f"{what}: {error:.1e}", flush=True)

    for base in ("llama", "mistral", "gpt2", "bert", "t5"):
        for number, (name, config) in enumerate(CONFIGS.items()):
            folder = Path(tempfile.mkdtemp())
            model = theirs(base)
            model.add_adapter("own", config=config)
            model.set_active_adapters("own")
            torch.manual_seed(number)
            for key, parameter in model.named_parameters():
                if "adapters" in key:
                    parameter.data.add_(torch.randn_like(parameter) * 0.1)
            expected = output(model, base)
            model.save_adapter(str(folder / "theirs"), "own", use_safetensors=True)

            ours = peftswift.Model.from_pretrained(ROOT / "Tests/Golden/data/bases" / base, dtype="float32")
            ours.load_adapter(folder / "theirs", "own")
            report(f"{base}, {name}, theirs in ours", output(ours, base), expected)
            ours.save_pretrained(folder / "ours", "own")
            model = theirs(base)
            model.set_active_adapters(model.load_adapter(str(folder / "ours"), use_safetensors=True))
            report(f"{base}, {name}, ours in theirs", output(model, base), expected)

            if fixtures and base == "bert":
                target = fixtures / name
                target.mkdir(parents=True, exist_ok=True)
                for file in ("adapter_config.json", "adapter.safetensors"):
                    shutil.copy(folder / "theirs" / file, target / file)
                np.save(target / "output.npy", expected)
    print(f"{failures} failures")
    return failures > 0


if __name__ == "__main__":
    sys.exit(main())
