#!/usr/bin/env python3
"""QLoRA on several weight formats, and in cheaper arithmetic: does an adapter learn on rounded numbers what it learns on f32?

    python3 scripts/fetch_inputs.py austen smollm2
    PYTHONPATH=bindings/python python3 Benchmarks/qlora.py [--steps 100] [--only nf4,q8_0]

LoRA of rank 8 on all linear layers of SmolLM2-135M, AdamW, the same batches (2 rows of 128 tokens of Northanger Abbey), the same seed; the loss of
rows that were not trained on, before and after, computed in f32 but for the arithmetic named; and how far the losses of the steps were from
f32's, the largest of all means of twenty. f32 is the file's Q4_1 unpacked, which q4_1 therefore holds exactly.
"""
import argparse
import os
import time
from pathlib import Path

import numpy as np

import peftswift

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path(os.environ.get("PEFTSWIFT_CACHE", ROOT / ".cache"))
MODEL = CACHE / "SmolLM2-135M-Instruct.Q4_1.gguf"
#: Quantisation, arithmetic, options of the trainer.
BASES = {"f32": ({"scheme": "f32"}, "float32", {}), "nf4": ({"scheme": "nf4"}, "float32", {}), "q8_0": ({"scheme": "q8_0"}, "float32", {}),
         "q4_1 (as the file has it)": (None, "float32", {}), "q4_1 in bf16": (None, "bfloat16", {}),
         "q4_1 in bf16, forward in int8": (None, "bfloat16", {"int8_activations": True}),
         "int8, outlier columns from 6": ({"scheme": "int8", "llm_int8_threshold": 6.0}, "float32", {}),
         "nf4, double quantisation": ({"scheme": "nf4", "double_quant": True}, "float32", {}), "q4_0": ({"scheme": "q4_0"}, "float32", {})}
LORA = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    only = [name for name in options.only.split(",") if name]
    text = (CACHE / "austen-northangerabbey.txt").read_text()
    print(f"| base | loss before | after {options.steps} steps | above f32's | steps from f32's | seconds |\n|---|---|---|---|---|---|")
    reached = curve = None
    for name, (rules, dtype, extra) in BASES.items():
        if only and not any(name.startswith(part) for part in only):
            continue
        model = peftswift.Model.from_pretrained(MODEL, dtype=dtype, quantization=rules)
        ids = np.array(model.tokenizer.encode(text[:400000]))
        rows = ids[: len(ids) // 128 * 128].reshape(-1, 128)
        train, held = rows[: 2 * options.steps].reshape(-1, 2, 128), rows[-16:]

        def loss():
            return float(np.mean([model(input_ids=held[i : i + 4], labels=held[i : i + 4]).loss for i in range(0, 16, 4)]))

        before = loss()
        model.add_adapter("default", LORA, seed=1)
        model.set_adapter("default")
        trainer, started = model.trainer(lr=1e-3, lr_scheduler="constant", **extra), time.perf_counter()
        steps = np.array([trainer.step(input_ids=batch, labels=batch) for batch in train])
        means = np.convolve(steps, np.ones(20) / 20, mode="valid") if len(steps) >= 20 else steps
        seconds, after = time.perf_counter() - started, loss()
        reached, curve = (after, means) if name == "f32" else (reached, curve)
        apart = "" if curve is None else f"{np.max(np.abs(means / curve - 1)):.2%}"
        print(f"| {name} | {before:.4f} | {after:.4f} | {'' if reached is None else f'{after - reached:+.4f}'} | {apart} | {seconds:.0f} |", flush=True)


main()
