"""Two skills, learned apart, become one adapter by every way of combining; each is scored on both.

    python Benchmarks/merge_skills.py MODEL.gguf [--epochs 3] [--folder FOLDER] [--peers-python PYTHON]

The skills: a character (examples-data/blacksmith*.jsonl, by the loss on held-out conversations) and orders taken down as JSON (made here;
by held-out loss and by how many of the answers are right to the letter). With --peers-python (torch, transformers, peft) HF PEFT combines the
same two folders over a model of the same shape, and the seconds stand beside each other. What it prints is in Benchmarks/LOG.md.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bindings" / "python"))
from peftswift import Dataset, Model  # noqa: E402

WAYS = [("linear", {}), ("cat", {}), ("svd", {}), ("ties", {"density": 0.5}), ("ties_svd", {"density": 0.5}), ("dare_linear", {"density": 0.7}),
        ("dare_ties", {"density": 0.7}), ("dare_ties_svd", {"density": 0.7}), ("magnitude_prune", {"density": 0.5}), ("magnitude_prune_svd", {"density": 0.5}),
        ("della", {"density": 0.7}), ("della_linear", {"density": 0.7}), ("breadcrumbs", {"density": 0.9}), ("breadcrumbs_ties", {"density": 0.9}), ("slerp", {})]
PEERS = ["linear", "cat", "svd", "ties", "ties_svd", "dare_ties_svd", "magnitude_prune_svd"]
LORA = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def orders(count, seed):
    """Conversations: an order in words, and what the clerk writes down."""
    pick = random.Random(seed)
    numbers = dict(zip("two three four five six seven eight nine ten twelve".split(), [2, 3, 4, 5, 6, 7, 8, 9, 10, 12]))
    goods = "apples nails candles eggs onions blankets lanterns bricks pears ropes buckets jars hinges loaves".split()
    people = "Mara Tobin Elsa Quill Jonas Petra Odo Wren Silas Runa Ivo Nell".split()
    days = "Monday Tuesday Wednesday Thursday Friday Saturday".split()
    forms = ["{n} {g} for {p} on {d}, please.", "{p} needs {n} {g} by {d}.", "Could you send {n} {g} to {p} on {d}?", "On {d} {p} will fetch {n} {g}.",
             "Put {n} {g} aside for {p}, {d} is fine."]
    result = []
    for _ in range(count):
        n, g, p, d = pick.choice(list(numbers)), pick.choice(goods), pick.choice(people), pick.choice(days)
        said = pick.choice(forms).format(n=n, g=g, p=p, d=d)
        written = json.dumps({"item": g, "amount": numbers[n], "for": p, "day": d})
        result.append([{"role": "user", "content": "Order: " + said[0].upper() + said[1:]}, {"role": "assistant", "content": written}])
    return result


def train(model, name, data, epochs, folder):
    if (folder / name).exists():
        return model.load_adapter(folder / name, name, is_trainable=True)
    model.add_adapter(name, LORA)
    model.set_adapter(name)
    started = time.perf_counter()
    model.trainer(lr=1e-3, epochs=epochs, lr_scheduler="cosine", warmup_steps=10).run(data, progress=False)
    print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    model.save_pretrained(folder / name, name)


def answer(model, adapter, message):
    session = model.session(adapters=[adapter] if isinstance(adapter, str) else adapter, temperature=0, context_length=256)
    session.append_chat([message])
    return "".join(session.stream(48)).strip()


class Scores:
    def __init__(self, model, smith, clerk, questions):
        self.model, self.smith, self.clerk, self.questions = model, smith, clerk, questions

    def of(self, names, weights=None):
        self.model.set_adapter(names, weights)
        self.model.set_requires_grad(names if isinstance(names, str) else names[0])  # a trainer evaluates, and wants something to train
        trainer = self.model.trainer()
        losses = [trainer.evaluate(data) for data in (self.smith, self.clerk)]
        right = sum(answer(self.model, names, ask) == told["content"] for ask, told in self.questions) if isinstance(names, str) else None
        return *losses, right


def row(name, scores, more=""):
    smith, clerk, right = scores
    print(f"| {name} | {smith:.3f} | {clerk:.3f} | {'' if right is None else right} | {more} |", flush=True)


def peers(python, folder, base):
    """Seconds and memory of HF PEFT for the same folders, over a model of the same shape."""
    program = f"""
import resource, time, torch
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM
torch.set_num_threads(2)
model = LlamaForCausalLM(LlamaConfig.from_dict({base!r}))
model = PeftModel.from_pretrained(model, {str(folder / 'smith')!r}, adapter_name='smith')
model.load_adapter({str(folder / 'clerk')!r}, adapter_name='clerk')
for way in {PEERS!r}:
    before = time.perf_counter()
    model.add_weighted_adapter(['smith', 'clerk'], [1.0, 1.0], way, combination_type=way, **({{}} if way in ('linear', 'cat', 'svd') else {{'density': 0.5}}))
    print(way, time.perf_counter() - before, flush=True)
    model.delete_adapter(way)
"""
    output = subprocess.run([python, "-c", program], capture_output=True, text=True)
    if output.returncode:
        print(output.stderr[-2000:], file=sys.stderr)
    return {line.split()[0]: float(line.split()[1]) for line in output.stdout.splitlines() if line.count(" ") == 1}


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model")
    arguments.add_argument("--epochs", type=int, default=3)
    arguments.add_argument("--folder", help="where the two adapters are kept, and looked for")
    arguments.add_argument("--peers-python")
    chosen = arguments.parse_args()
    model = Model.from_pretrained(chosen.model)
    folder, tokenizer, tests = Path(chosen.folder or tempfile.mkdtemp()), model.tokenizer, orders(40, 2)
    packed = {"max_length": 256, "packing": True}
    train(model, "smith", Dataset.open(tokenizer, ROOT / "examples-data" / "blacksmith.jsonl", **packed), chosen.epochs, folder)
    train(model, "clerk", Dataset.from_messages(tokenizer, orders(300, 1), **packed), chosen.epochs, folder)
    scores = Scores(model, Dataset.open(tokenizer, ROOT / "examples-data" / "blacksmith-heldout.jsonl", max_length=256, shuffle=False),
                    Dataset.from_messages(tokenizer, tests, max_length=256, shuffle=False), tests)
    theirs = peers(chosen.peers_python, folder, model.config) if chosen.peers_python else {}
    print("| | smith: loss | clerk: loss | right of 40 | rank error / seconds (PEFT's) |\n|---|---|---|---|---|")
    row("the base model", scores.of(["smith"], [0.0]))
    row("smith alone", scores.of("smith"))
    row("clerk alone", scores.of("clerk"))
    row("both active", scores.of(["smith", "clerk"]))
    for way, options in WAYS:
        started = time.perf_counter()
        report = model.add_weighted_adapter(["smith", "clerk"], [1.0, 1.0], "both", way, **options)
        seconds = time.perf_counter() - started
        row(way + "".join(f", {key} {value}" for key, value in options.items()), scores.of("both"),
            f"{report['error']:.3f} / {seconds:.2f}" + (f" ({theirs[way]:.1f})" if way in theirs else ""))
        model.delete_adapter("both")


if __name__ == "__main__":
    main()
