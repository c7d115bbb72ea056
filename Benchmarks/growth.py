#!/usr/bin/env python3
"""How a LoRA step grows with the model: tokens a second, peak memory and cost beside the multiplications it takes.

    growth.py CACHE_FOLDER [--seq 512] [--only 135M,360M]

Models have the shapes of SmolLM2-135M and -360M, TinyLlama-1.1B and Llama-3.2-3B with random bf16 weights (written to CACHE_FOLDER once), LoRA
r = 8 on all linear layers, two threads; each is a process of its own (engine.py). 7B (Llama-2) is planned only: its file is a hole.
PEFTSWIFT_LIBRARY and PYTHONPATH=bindings/python as for run.py.
"""

import argparse
import json
import struct
import subprocess
import sys
from pathlib import Path

#: hidden, feed-forward, layers, heads, heads of keys and values, width of a head, vocabulary, tied head
SHAPES = {
    "135M": (576, 1536, 30, 9, 3, 64, 49152, True), "360M": (960, 2560, 32, 15, 5, 64, 49152, True), "1.1B": (2048, 5632, 22, 32, 4, 64, 32000, False),
    "3B": (3072, 8192, 28, 24, 8, 128, 128256, True), "7B": (4096, 11008, 32, 32, 32, 128, 32000, False),
}


def tensors(shape):
    hidden, wide, layers, heads, kv, width, vocabulary, tied = shape
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for i in range(layers):
        p = f"model.layers.{i}."
        for name, rows in (("q_proj", heads * width), ("k_proj", kv * width), ("v_proj", kv * width)):
            yield f"{p}self_attn.{name}.weight", (rows, hidden)
        yield f"{p}self_attn.o_proj.weight", (hidden, heads * width)
        for name, size in (("gate_proj", (wide, hidden)), ("up_proj", (wide, hidden)), ("down_proj", (hidden, wide))):
            yield f"{p}mlp.{name}.weight", size
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{p}{name}.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    if not tied:
        yield "lm_head.weight", (vocabulary, hidden)


def write(folder, shape, is_real):
    """config.json and model.safetensors; weights are one random megabyte over and over, norms ones."""
    import numpy as np

    if (folder / "config.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    hidden, wide, layers, heads, kv, width, vocabulary, tied = shape
    header, offset = {}, 0
    for name, size in tensors(shape):
        count = 2 * int(np.prod(size))
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [offset, offset + count]}
        offset += count
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    values = (np.random.default_rng(0).normal(0, 0.02, 1 << 19).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        if is_real:
            for name, size in tensors(shape):
                left = 2 * int(np.prod(size))
                source = b"\x80\x3f" * (left // 2) if len(size) == 1 else values
                while left > 0:
                    left -= file.write(source[:left])
        file.truncate(8 + len(text) + offset)
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": wide, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv, "head_dim": width, "vocab_size": vocabulary, "tie_word_embeddings": tied,
        "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 8192, "torch_dtype": "bfloat16"}))


def work(shape, length):
    """Multiply-adds for a token: every frozen product forward and to its input, attention forward and (2.5 times that) backward."""
    hidden, wide, layers, heads, kv, width, vocabulary, tied = shape
    linear = layers * hidden * (2 * heads * width + 2 * kv * width + 3 * wide) + vocabulary * hidden
    return 2 * linear + 3.5 * layers * heads * width * length  # causal: half of 2 · length keys


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--seq", type=int, default=512)
    parser.add_argument("--only", default=",".join(SHAPES))
    arguments = parser.parse_args()
    engine, first = Path(__file__).with_name("engine.py"), None
    print("| model | tok/s | peak MB | of it weights | plan MB | multiply-adds a token | cost for each, beside the first |\n|---|---|---|---|---|---|---|")
    for name in arguments.only.split(","):
        shape, is_real = SHAPES[name], name != "7B"
        folder = arguments.cache / f"growth-{name}"
        write(folder, shape, is_real)
        command = [sys.executable, engine, "train" if is_real else "plan", folder, "--compute", "bfloat16", "--seq", str(arguments.seq), "--repeats", "2", "--seconds", "1"]
        line = json.loads(subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True).stdout)
        weights, effort = (folder / "model.safetensors").stat().st_size >> 20, work(shape, arguments.seq)
        if is_real:
            cost = 1 / line["tok_s"] / effort
            first = first or cost
            print(f"| {name} | {line['tok_s']:g} | {line['peak_mb']} | {weights} | {line['plan_mb']} | {effort / 1e9:.2f}·10⁹ | {cost / first:.2f} |", flush=True)
        else:
            print(f"| {name} | | | {weights} | {line['plan_mb']} | {effort / 1e9:.2f}·10⁹ | planned only |", flush=True)


if __name__ == "__main__":
    main()
