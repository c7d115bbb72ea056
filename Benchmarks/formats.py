#!/usr/bin/env python3
"""A model in every weight format: size, perplexity on a fixed text, and what the weights lost.

    python3 scripts/fetch_inputs.py austen smollm2
    PYTHONPATH=bindings/python python3 Benchmarks/formats.py [--tokens 8192] [--only nf4,q8_0]

The text is the beginning of Northanger Abbey in windows of 512 tokens. Formats whose blocks do not fit a layer's rows (K formats: 256 values;
SmolLM2's rows have 576) go through a GGUF file, where such rows get what llama.cpp takes instead. `--speed`: encoding beside bitsandbytes
(needs torch and bitsandbytes). `--cache`: keys and values of sessions in each of their types.
"""
import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

import peftswift

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path(os.environ.get("PEFTSWIFT_CACHE", ROOT / ".cache"))
MODEL = CACHE / "SmolLM2-135M-Instruct.Q4_1.gguf"
LINEAR = [("f32", {}), ("bf16", {}), ("f8_e4m3", {}), ("f8_e5m2", {}), ("int8", {}), ("blockwise8", {}), ("q8_0", {}), ("q5_1", {}), ("q5_0", {}), ("q4_1", {}),
          ("q4_0", {}), ("iq4_nl", {}), ("nf4", {}), ("nf4", {"double_quant": True}), ("nf4", {"block_size": 32}), ("nf4", {"block_size": 256}), ("fp4", {}),
          ("fp4", {"double_quant": True})]
FILES = ["Q5_K_M", "Q4_K_M", "q6_K", "q5_K", "q4_K", "q3_K", "q2_K", "tq2_0"]


def perplexity(model, ids):
    losses = [model(input_ids=row[None], labels=row[None]).loss for row in ids]
    return float(np.exp(np.mean(losses)))


def line(name, model, ids):
    described = model.describe()
    layers = (described["quantization"] or {"layers": []})["layers"]
    lost = float(np.mean([layer["relative"] for layer in layers])) if layers else 0.0
    print(f"| {name} | {described['bytes'] / 1e6:.1f} | {perplexity(model, ids):.3f} | {lost:.4f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--only", default="")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--cache", action="store_true")
    options = parser.parse_args()
    if options.speed:
        return speed()
    if options.cache:
        return cache()
    only = [name for name in options.only.split(",") if name]
    context = peftswift.Context()
    model = peftswift.Model.from_pretrained(MODEL, dtype="float32", context=context)
    text = (CACHE / "austen-northangerabbey.txt").read_text()[:60000]
    ids = np.array(model.tokenizer.encode(text)[: options.tokens]).reshape(-1, 512)
    print("| format | MB | perplexity | lost (mean of layers) |\n|---|---|---|---|")
    line("as the file has it (q4_1)", model, ids)
    for scheme, settings in LINEAR:
        if only and scheme not in only:
            continue
        model = peftswift.Model.from_pretrained(MODEL, dtype="float32", context=context)
        model.quantize(scheme, **settings)
        line(scheme + "".join(f", {key} {value}" for key, value in settings.items()), model, ids)
    source = peftswift.Model.from_pretrained(MODEL, context=context)
    with tempfile.TemporaryDirectory() as folder:
        for mix in FILES:
            if only and mix not in only:
                continue
            source.export(Path(folder) / "model.gguf", dtype=mix)
            line(f"{mix} (GGUF)", peftswift.Model.from_pretrained(Path(folder) / "model.gguf", dtype="float32", context=context), ids)


def cache():
    """Perplexity of 128 tokens behind 512 that were read at once, in four places; how long greedy text stays that of f32 keys; bytes; speed at 1536 tokens."""
    model = peftswift.Model.from_pretrained(MODEL, dtype="float32")
    text = (CACHE / "austen-northangerabbey.txt").read_text()[:200000]
    ids = model.tokenizer.encode(text)
    starts, plain = [0, 9000, 18000, 27000], []
    print("| keys and values | bytes a token | perplexity | greedy tokens as f32's, of 128 | tok/s behind 1536 |\n|---|---|---|---|---|")
    for kind in ("f32", "bf16", "q8_0"):
        losses, same = [], []
        for place, start in enumerate(starts):
            session = model.session(context_length=2048, kv_cache_type=kind, ignore_eos=True).append(ids[start : start + 512])
            for token in ids[start + 512 : start + 640]:
                logits = np.asarray(session.logits(), np.float64)
                losses.append(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[token])
                session.append([token])
            session.rewind(512)
            greedy = list(session.tokens(128))
            plain += [greedy] if kind == "f32" else []
            same.append(next((i for i, (a, b) in enumerate(zip(greedy, plain[place])) if a != b), len(greedy)))
        session = model.session(context_length=2048, kv_cache_type=kind, ignore_eos=True).append(ids[:1536])
        list(session.tokens(4))
        began = time.perf_counter()
        list(session.tokens(32))
        speed, held = 32 / (time.perf_counter() - began), session.describe()
        print(f"| {kind} | {held['cache_bytes'] / 2048:.0f} | {np.exp(np.mean(losses)):.4f} | {', '.join(map(str, same))} | {speed:.1f} |", flush=True)


def speed():
    """Encoding a matrix of 4096 × 4096 (67 MB of f32), best of three, one thread and all; GB/s of f32 read."""
    import bitsandbytes.functional as F
    import torch
    array = np.random.default_rng(0).normal(size=(4096, 4096)).astype(np.float32)
    tensor = torch.from_numpy(array)
    theirs = {"nf4": lambda: F.quantize_4bit(tensor, blocksize=64, quant_type="nf4"), "fp4": lambda: F.quantize_4bit(tensor, blocksize=64, quant_type="fp4"),
              "blockwise8": lambda: F.quantize_blockwise(tensor, blocksize=256), "int8": lambda: F.int8_vectorwise_quant(tensor.half())}
    print("| | this library, 1 thread | 2 threads | bitsandbytes, 1 thread | 2 threads |\n|---|---|---|---|---|")
    for scheme in ("nf4", "fp4", "blockwise8", "int8", "q8_0", "q4_0", "q4_K", "q6_K"):
        cells = []
        for threads in (1, 2):
            context = peftswift.Context(threads=threads)
            tensors = peftswift.Tensors.from_arrays(context, {"w": array})
            options = peftswift._library.encoded_json({"scheme": scheme})
            cells.append(best(lambda: peftswift.Tensors.make("peft_tensors_quantize", tensors, options)))
        for threads in (1, 2):
            torch.set_num_threads(threads)
            cells.append(best(theirs[scheme]) if scheme in theirs else None)
        print(f"| {scheme} | " + " | ".join("" if cell is None else f"{array.nbytes / cell / 1e9:.2f}" for cell in cells) + " |", flush=True)


def best(work, runs=3):
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


main()
