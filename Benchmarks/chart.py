#!/usr/bin/env python3
"""Draws a run's figures: chart.py RESULTS.json CHART.png (needs matplotlib)."""
import json
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

PANELS = [
    ("Training, tokens a second\n(LoRA r=8 on all linears, S=512)", "tok_s", [
        ("libpeftswift LoRA, bf16", "lora bf16 B1"), ("libpeftswift QLoRA, Q4_1", "qlora q4_1 B1"), ("HF PEFT, bf16", "peft bf16 B1"),
        ("HF PEFT + bitsandbytes NF4", "bitsandbytes nf4 B1"), ("libpeftswift LoRA, f32", "lora f32 B1"), ("HF PEFT, f32", "peft f32 B1")]),
    ("Peak memory of training, MB", "peak_mb", [
        ("libpeftswift LoRA, bf16", "lora bf16 B1"), ("libpeftswift QLoRA, Q4_1", "qlora q4_1 B1"), ("… with recompute", "qlora q4_1 B1 recompute"),
        ("HF PEFT, bf16", "peft bf16 B1"), ("HF PEFT + bitsandbytes NF4", "bitsandbytes nf4 B1")]),
    ("Reading a prompt of 512, tokens a second", "tok_s", [
        ("libpeftswift, Q4_1", "prompt"), ("llama.cpp, Q4_1", "llama.cpp prompt 512"), ("transformers, bf16", "transformers bf16 prompt 512")]),
    ("Writing, tokens a second", "tok_s", [
        ("libpeftswift, Q4_1", "decode"), ("… with a LoRA", "decode lora"), ("llama.cpp, Q4_1", "llama.cpp decode 128"), ("transformers, bf16", "transformers bf16 decode 64")]),
]


def main():
    results = json.load(open(sys.argv[1]))
    figures = results["figures"]
    panels = [(title, key, [(label, figures[job][key]) for label, job in bars if job in figures]) for title, key, bars in PANELS]
    fig, axes = plt.subplots(len(panels), 1, figsize=(8, 8.5), height_ratios=[max(len(bars), 1) for _, _, bars in panels])
    for axis, (title, _, bars) in zip(axes, panels):
        labels, values = [b[0] for b in bars][::-1], [b[1] for b in bars][::-1]
        ours = [label.startswith(("libpeftswift", "…")) for label in labels]
        drawn = axis.barh(labels, values, color=["#2f6db5" if o else "#b8bcc2" for o in ours], height=0.7)
        axis.bar_label(drawn, fmt="%.0f", padding=3, fontsize=9)
        axis.set_title(title, loc="left", fontsize=10)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
        axis.xaxis.set_visible(False)
        axis.margins(x=0.12)
    fig.suptitle(f"SmolLM2-135M-Instruct, {results['machine']['processor']}, {results['machine']['processors']} processors", fontsize=11)
    fig.tight_layout()
    fig.savefig(sys.argv[2], dpi=130)


if __name__ == "__main__":
    main()
