"""Two skills, learned apart as bottleneck adapters, fused by trained attention (AdapterFusion): on a test of both, better than either.

    python Benchmarks/fuse_skills.py MODEL.gguf [--steps 120] [--fusion-steps 60]

The skills are those of merge_skills.py: a character, and orders taken down as JSON. The fusion sees a part of the training conversations
of both, mixed; the members stay as they are. Figures: one JSON line each; they are in Benchmarks/LOG.md.
"""

import argparse
import json
import random
import time

from merge_skills import ROOT, answer, orders

from peftswift import Average, Dataset, Fuse, Model

BOTTLENECK = {"peft_type": "BOTTLENECK", "config": "double_seq_bn", "reduction_factor": 16}


def conversations(path):
    return [json.loads(line)["messages"] for line in (ROOT / "examples-data" / path).read_text().splitlines() if line.strip()]


def learn(model, what, data, steps, lr):
    trainer = model.trainer(lr=lr, max_steps=steps, lr_scheduler="cosine", warmup_steps=10, max_grad_norm=1.0)
    begin = time.perf_counter()
    trainer.run(data, progress=False)
    print(json.dumps({"learned": what, "steps": steps, "seconds": round(time.perf_counter() - begin)}), flush=True)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model")
    arguments.add_argument("--steps", type=int, default=120)
    arguments.add_argument("--fusion-steps", type=int, default=60)
    chosen = arguments.parse_args()
    model = Model.from_pretrained(chosen.model, threads=2)
    tokenizer, tests = model.tokenizer, orders(40, 2)
    smith, clerk = conversations("blacksmith.jsonl"), orders(300, 1)
    packed = {"max_length": 256, "packing": True}
    for name, texts in (("smith", smith), ("clerk", clerk)):
        model.add_adapter(name, BOTTLENECK)
        model.set_adapter(name)
        learn(model, name, Dataset.from_messages(tokenizer, texts, **packed), chosen.steps, 1e-3)
    model.add_adapter("smith,clerk", {"peft_type": "ADAPTER_FUSION", "adapters": ["smith", "clerk"]})
    both = smith[:100] + clerk[:100]
    random.Random(0).shuffle(both)
    model.set_adapter(Fuse("smith", "clerk"))
    learn(model, "fusion", Dataset.from_messages(tokenizer, both, **packed), chosen.fusion_steps, 5e-4)
    held_out = {"smith": conversations("blacksmith-heldout.jsonl"), "clerk": tests}
    held_out["both"] = held_out["smith"] + held_out["clerk"]
    held_out = {name: Dataset.from_messages(tokenizer, texts, max_length=256, shuffle=False) for name, texts in held_out.items()}
    for name, block in (("smith", "smith"), ("clerk", "clerk"), ("Average", Average("smith", "clerk")), ("Fuse", Fuse("smith", "clerk"))):
        model.set_adapter(block)
        trainer = model.trainer()
        losses = {test: round(trainer.evaluate(data), 3) for test, data in held_out.items()}
        right = sum(answer(model, block, ask) == told["content"] for ask, told in tests)
        print(json.dumps({"active": name, "loss": losses, "orders right of 40": right}), flush=True)


if __name__ == "__main__":
    main()
