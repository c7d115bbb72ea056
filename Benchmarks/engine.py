#!/usr/bin/env python3
"""One measurement of libpeftswift in a process of its own, as a JSON line: what peers/peers.py does for the peers.

    engine.py train MODEL --batch 1 --seq 512 [--compute bfloat16] [--level avx2] [--checkpointing on]
    engine.py plan|prompt|decode|sessions|start MODEL [--lora] [--adapters 8]

Everything goes through the C interface (the binding adds a few microseconds a call). MODEL is a GGUF file or a Hugging Face folder.
A line has "tok_s" (the best repeat), "tok_s_median" and "peak_mb" (VmHWM: everything this process had in memory at once, Python,
numpy and the mapped model file included).
"""
import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bindings" / "python"))
import numpy as np  # noqa: E402
import peftswift  # noqa: E402
from peftswift._library import c_names, lib  # noqa: E402

LORA = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "task_type": "CAUSAL_LM"}


def memory(key="VmHWM"):
    """Megabytes of a line of /proc/self/status."""
    line = next(line for line in open("/proc/self/status") if line.startswith(key))
    return round(int(line.split()[1]) / 1024)


def report(seconds=None, tokens=0, **more):
    line = {"peak_mb": memory(), **more}
    if seconds:
        line |= {"tok_s": round(tokens / min(seconds), 1), "tok_s_median": round(tokens / statistics.median(seconds), 1)}
    print(json.dumps(line), flush=True)


def repeated(arguments, action, afterwards=lambda: None):
    """Times of `action`: at least `--repeats` of them, more while `--seconds` are not over. `afterwards` is not timed."""
    times, start = [], time.perf_counter()
    while len(times) < arguments.repeats or time.perf_counter() - start < arguments.seconds:
        begin = time.perf_counter()
        action()
        times.append(time.perf_counter() - begin)
        afterwards()
    return times


def open_model(arguments):
    context = peftswift.Context(threads=arguments.threads, level=arguments.level, memory_budget=arguments.budget << 20)
    return peftswift.Model.from_pretrained(arguments.model, dtype=arguments.compute, context=context)


def add_adapter(model, name, seed):
    """An adapter with values everywhere, as a trained one has."""
    model.add_adapter(name, LORA, seed=seed)
    random = np.random.default_rng(seed)
    model.load_adapter_state_dict(name, {k: random.normal(0, 0.01, v.shape).astype(np.float32) for k, v in model.adapter_state_dict(name).items()})


def random_ids(*shape):
    return np.random.default_rng(0).integers(100, 31000, shape)  # every vocabulary has them


def train(arguments):
    model = open_model(arguments)
    model.add_adapter("default", LORA)
    options = {"auto": "auto", "on": True, "off": False}
    trainer = model.trainer(optimizer="adamw", lr=1e-4, gradient_checkpointing=options[arguments.checkpointing], int8_activations=arguments.int8)
    ids = random_ids(arguments.batch, arguments.seq)
    plan = trainer.plan(arguments.batch, arguments.seq)
    trainer.step(input_ids=ids, labels=ids)
    times = repeated(arguments, lambda: trainer.step(input_ids=ids, labels=ids))
    report(times, ids.size, plan_mb=round(plan["total"] / 2**20), budget_peak_mb=round(model.context.memory()["peak"] / 2**20))


def plan(arguments):
    """What a step would hold, without doing one."""
    model = open_model(arguments)
    model.add_adapter("default", LORA)
    report(plan_mb=round(model.trainer(optimizer="adamw", lr=1e-4).plan(arguments.batch, arguments.seq)["total"] / 2**20))


def session(model, arguments, **options):
    return model.session(context_length=max(2048, arguments.context + 256), ignore_eos=True, **options)


def prompt(arguments):
    model = open_model(arguments)
    if arguments.lora:
        add_adapter(model, "default", 0)
    ids = random_ids(arguments.seq)

    def read():
        with session(model, arguments) as s:
            s.append(ids)

    read()
    report(repeated(arguments, read), len(ids))


def decode(arguments):
    """128 tokens after a prompt of --context tokens, or after a question in words."""
    model = open_model(arguments)
    if arguments.lora:
        add_adapter(model, "default", 0)
    sampling = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "repetition_penalty": 1.1, "seed": 1} if arguments.sampled else {}
    s, ids, count = session(model, arguments, prompt_lookup_num_tokens=arguments.lookup, **sampling), random_ids(arguments.context), 128
    if arguments.question:
        s.append_chat([{"role": "user", "content": arguments.question}])
        ids = s.token_ids()
    else:
        s.append(ids)

    def write():
        s.rewind(len(ids) - 1)
        s.append(ids[-1:])
        for _ in s.tokens(count):
            pass

    report(repeated(arguments, write), count)


def sessions(arguments):
    """Sessions with an adapter each that step together, and each by a thread of its own: tokens a second of all together."""
    model, count = open_model(arguments), 32
    all_sessions = []
    for i in range(arguments.adapters):
        add_adapter(model, f"character{i}", i)
        all_sessions.append(session(model, arguments, adapters=[f"character{i}"]).append(random_ids(16)))

    def together():
        for _ in range(count):
            peftswift.Session.step(all_sessions)

    def side_by_side():
        threads = [threading.Thread(target=lambda s=s: list(s.tokens(count))) for s in all_sessions]
        [t.start() for t in threads]
        [t.join() for t in threads]

    tokens = count * len(all_sessions)
    times = repeated(arguments, together)
    [s.rewind(16) for s in all_sessions]
    side = repeated(arguments, side_by_side)
    report(times, tokens, tok_s_threads=round(tokens / min(side), 1))


def start(arguments):
    """Milliseconds from the file to the first token; microseconds to switch the adapter of a session; milliseconds to load one."""

    def first_token():
        model = open_model(arguments)
        s = session(model, arguments)
        s.append([1, 2, 3, 4])
        next(s.tokens(1))

    opening = repeated(arguments, first_token)
    model = open_model(arguments)
    folder = Path(tempfile.mkdtemp())
    for name in ("a", "b"):
        add_adapter(model, name, ord(name))
        model.save_pretrained(folder / name, name)
        model.delete_adapter(name)
    loading = repeated(arguments, lambda: model.load_adapter(folder / "a", "x"), lambda: model.delete_adapter("x"))
    [model.load_adapter(folder / name, name) for name in ("a", "b")]
    s = session(model, arguments)
    names = [c_names([name])[0] for name in ("a", "b")]
    rounds = 2000

    def switch():
        for i in range(rounds):
            lib.peft_session_set_adapters(s, names[i & 1], None, 1, None)

    switching = repeated(arguments, switch)
    report(first_token_ms=round(min(opening) * 1e3, 1), adapter_load_ms=round(min(loading) * 1e3, 2), adapter_switch_us=round(min(switching) / rounds * 1e6, 2))


def export(arguments):
    """Writes the model as a Hugging Face folder of bf16 weights (not a measurement)."""
    open_model(arguments).export(arguments.to, dtype="bfloat16")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=["train", "plan", "prompt", "decode", "sessions", "start", "export"])
    parser.add_argument("model")
    parser.add_argument("to", nargs="?")
    parser.add_argument("--compute", default="auto", choices=["auto", "float32", "bfloat16", "int8"])
    parser.add_argument("--level", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budget", type=int, default=0, help="MB")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seq", type=int, default=512)
    parser.add_argument("--checkpointing", default="off", choices=["auto", "on", "off"])
    parser.add_argument("--int8", action="store_true", help="train: int8_activations")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--sampled", action="store_true", help="decode: drawn as a chat is, not the most likely token")
    parser.add_argument("--lookup", type=int, default=0, help="prompt_lookup_num_tokens")
    parser.add_argument("--context", type=int, default=16, help="decode: tokens that stand before")
    parser.add_argument("--question", help="decode: what the text answers")
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    globals()[arguments.work](arguments)


if __name__ == "__main__":
    main()
