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
    return {"learned": what, "steps": steps, "seconds": round(time.perf_counter() - begin)}


def taught(model, steps, fusion_steps, report=lambda line: None):
    """Teaches both skills and what weighs them. Gives what is compared: blocks by name."""
    smith, clerk = conversations("blacksmith.jsonl"), orders(300, 1)
    packed = {"max_length": 256, "packing": True}
    for name, texts in (("smith", smith), ("clerk", clerk)):
        model.add_adapter(name, BOTTLENECK)
        model.set_adapter(name)
        report(learn(model, name, Dataset.from_messages(model.tokenizer, texts, **packed), steps, 1e-3))
    model.add_adapter("smith,clerk", {"peft_type": "ADAPTER_FUSION", "adapters": ["smith", "clerk"]})
    both = smith[:100] + clerk[:100]
    random.Random(0).shuffle(both)
    model.set_adapter(Fuse("smith", "clerk"))
    report(learn(model, "fusion", Dataset.from_messages(model.tokenizer, both, **packed), fusion_steps, 5e-4))
    return {"smith": "smith", "clerk": "clerk", "Average": Average("smith", "clerk"), "Fuse": Fuse("smith", "clerk")}


def losses(model, block, orders_kept):
    """Of held-out conversations: of each skill, and of both together."""
    told = {"smith": conversations("blacksmith-heldout.jsonl"), "clerk": orders_kept}
    told["both"] = told["smith"] + told["clerk"]
    model.set_adapter(block)
    trainer = model.trainer()
    return {name: trainer.evaluate(Dataset.from_messages(model.tokenizer, texts, max_length=256, shuffle=False)) for name, texts in told.items()}


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model")
    arguments.add_argument("--steps", type=int, default=120)
    arguments.add_argument("--fusion-steps", type=int, default=60)
    chosen = arguments.parse_args()
    model, tests = Model.from_pretrained(chosen.model, threads=2), orders(40, 2)
    for name, block in taught(model, chosen.steps, chosen.fusion_steps, lambda line: print(json.dumps(line), flush=True)).items():
        scores = {test: round(loss, 3) for test, loss in losses(model, block, tests).items()}
        right = sum(answer(model, block, ask) == told["content"] for ask, told in tests)
        print(json.dumps({"active": name, "loss": scores, "orders right of 40": right}), flush=True)


if __name__ == "__main__":
    main()
