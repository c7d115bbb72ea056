"""Seconds and peak memory of combining two LoRAs of rank 8 on all linear layers, beside HF PEFT on the same folders.

    python Benchmarks/merge_speed.py MODEL.gguf [--steps 30] [--folder FOLDER] [--peers-python PYTHON]

The adapters learn for a few steps on different texts, so that their changes have the spectra of learned ones. Memory: the most that was held
above what the model and the adapters take; of PEFT, how far the process grew.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import merge_skills  # noqa: E402  (puts the binding on the path)
from peftswift import Context, Dataset, Model

WAYS = [("svd", {}), ("ties_svd", {"density": 0.5}), ("dare_ties_svd", {"density": 0.5}), ("magnitude_prune_svd", {"density": 0.5}), ("della", {"density": 0.5}),
        ("breadcrumbs", {"density": 0.9}), ("breadcrumbs_ties", {"density": 0.9})]


def peers(python, folder, base):
    program = f"""
import resource, time, torch
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM
torch.set_num_threads(2)
model = PeftModel.from_pretrained(LlamaForCausalLM(LlamaConfig.from_dict({base!r})), {str(folder / 'a')!r}, adapter_name='a')
model.load_adapter({str(folder / 'b')!r}, adapter_name='b')
for way in ['svd', 'ties_svd', 'dare_ties_svd', 'magnitude_prune_svd']:
    held, before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    model.add_weighted_adapter(['a', 'b'], [1.0, 1.0], way, combination_type=way, **({{}} if way == 'svd' else {{'density': 0.5}}))
    print(way, time.perf_counter() - before, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held) / 1024, flush=True)
    model.delete_adapter(way)
"""
    output = subprocess.run([python, "-c", program], capture_output=True, text=True)
    if output.returncode:
        print(output.stderr[-2000:], file=sys.stderr)
    return {parts[0]: tuple(map(float, parts[1:])) for parts in map(str.split, output.stdout.splitlines()) if len(parts) == 3}


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model")
    arguments.add_argument("--steps", type=int, default=30)
    arguments.add_argument("--folder")
    arguments.add_argument("--peers-python")
    chosen = arguments.parse_args()
    context = Context(threads=2)
    model, folder = Model.from_pretrained(chosen.model, context=context), Path(chosen.folder or tempfile.mkdtemp())
    texts = {"a": Dataset.open(model.tokenizer, merge_skills.ROOT / "examples-data" / "blacksmith.jsonl", max_length=128, packing=True),
             "b": Dataset.from_messages(model.tokenizer, merge_skills.orders(100, 1), max_length=128, packing=True)}
    for name, data in texts.items():
        if (folder / name).exists():
            model.load_adapter(folder / name, name)
            continue
        model.add_adapter(name, merge_skills.LORA)
        model.set_adapter(name)
        model.trainer(lr=2e-3, max_steps=chosen.steps).run(data, progress=False)
        model.save_pretrained(folder / name, name)
    theirs = peers(chosen.peers_python, folder, model.config) if chosen.peers_python else {}
    print("| | seconds | peak, MB | rank error | PEFT: seconds | grew by, MB |\n|---|---|---|---|---|---|")
    for way, options in WAYS:
        context.trim()
        held, started = context.memory()["live"], time.perf_counter()
        report = model.add_weighted_adapter(["a", "b"], [1.0, 1.0], "both", way, **options)
        seconds, peak = time.perf_counter() - started, context.memory()["peak"] - held
        model.delete_adapter("both")
        other = "{:.1f} | {:.0f}".format(*theirs[way]) if way in theirs else " | "
        print(f"| {way} | {seconds:.2f} | {peak / 1e6:.1f} | {report['error']:.3f} | {other} |", flush=True)


if __name__ == "__main__":
    main()
