#!/usr/bin/env python3
"""What a training step of every method that adapts layers costs, beside LoRA's (r = 8): this library's, and PEFT's in the same run.

    methods.py ours MODEL [--only LOHA,BOFT] [--quick]       a JSON line for each method; times alternate with LoRA's, the smallest counts
    methods.py peft HF_FOLDER [--only …] [--quick]           the same of HF PEFT (a Python with Benchmarks/peers/requirements.txt)
    methods.py writing MODEL [--only LORA,OFT]           a JSON line for each: milliseconds for a token of text, beside the base model's; "folded": with
                                                         fold_adapters, and how many seconds making the copies took
    methods.py table MODEL [HF_FOLDER --peers-python PYTHON] [--only …] [--quick]      ours, or both, as the table of LOG.md

Sizes are PEFT's defaults, targets all linear layers (what cannot have them is said), rows of 512 tokens, bf16, two threads. "memory" is what
a step holds beside the weights: ours by the plan, PEFT's by how far the process grows beyond the base model (its peak is reset for each method).
--quick: each method is timed once (after a first step that is not). On a quiet machine of two cores all of ours take some 4 minutes so,
both 12. --only takes the names of the table. PEFTSWIFT_LIBRARY and PYTHONPATH=bindings/python as for run.py; HF_FOLDER is what run.sh
exports to .cache/bench. A method of PEFT that takes more than eight of its LoRA's steps is timed once.
"""

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import time

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA = {"peft_type": "LORA", "r": 8, "target_modules": LINEARS}
#: Beside the defaults: what has none, or does not fit the model's sizes (hidden 576, feed-forward 1536, keys and values 192).
SETTINGS = {
    "LORA dora": {"use_dora": True}, "IA3": {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "ADALORA": {"total_step": 1000}, "C3A": {"block_size": 64}, "LN_TUNING": {"target_modules": ["input_layernorm", "post_attention_layernorm"]},
    "VBLORA": {"vector_length": 64}, "TRAINABLE_TOKENS": {"target_modules": ["embed_tokens"], "token_indices": list(range(100, 120))},
    "BEFT": {"target_modules": ["q_proj", "v_proj"]},
}
METHODS = ["LORA dora", "ADALORA", "IA3", "LOHA", "LOKR", "OFT", "BOFT", "HRA", "MISS", "ROAD", "GRALORA", "DELORA", "HIRA", "LN_TUNING", "VERA", "PVERA", "RANDLORA",
           "VBLORA", "UNILORA", "TINYLORA", "BEFT", "FOURIERFT", "WAVEFT", "FROD", "C3A", "SHIRA", "SUPERTUNING", "PSOFT", "OSF", "PEANUT", "DEFT", "GLORA", "LILY",
           "ADAMSS", "TRAINABLE_TOKENS"]
LENGTH, REPEATS = 512, 3
#: Of the issue: a step of any method beside LoRA's.
TIME, MEMORY = 1.15, 1.10
clock = time.perf_counter


def config(method):
    return {"peft_type": method.split()[0], "target_modules": LINEARS, **SETTINGS.get(method, {})}


def chosen(arguments):
    return [method for method in METHODS if not arguments.only or method in arguments.only.split(",")]


def timed(action):
    begin = clock()
    action()
    return clock() - begin


def compared(method, own, lora, **more):
    """A line of a method whose steps are `own()`, alternated with `lora()`; `more` that is a function is asked afterwards."""
    first, usual = timed(own), timed(lora)
    if first > 8 * usual:
        times = [(first, usual)]
    else:
        times = [(timed(own), timed(lora) if REPEATS > 1 else usual) for _ in range(REPEATS)]
    seconds, beside = (min(column) for column in zip(*times))
    more = {key: value() if callable(value) else value for key, value in more.items()}
    print(json.dumps({"method": method, "seconds": round(seconds, 3), "lora": round(beside, 3), "ratio": round(seconds / beside, 2), **more}), flush=True)


def ours(arguments):
    import numpy as np
    import peftswift

    # LoRA on a model of its own, so that neither is counted with the other.
    model, other = (peftswift.Model.from_pretrained(arguments.model, dtype="bfloat16", threads=2) for _ in range(2))
    ids = np.random.default_rng(0).integers(100, 49000, (1, LENGTH))

    def trainer(model, name):
        trainer = model.trainer(adapters=[name], lr=1e-4)
        return lambda: trainer.step(input_ids=ids, labels=ids), trainer.plan(1, LENGTH)["total"]

    other.add_adapter("it", LORA)
    lora, least = trainer(other, "it")
    lora()
    for method in chosen(arguments):
        try:
            model.add_adapter("it", config(method))
        except peftswift.PeftError as error:
            print(json.dumps({"method": method, "error": str(error)}), flush=True)
            continue
        step, most = trainer(model, "it")
        compared(method, step, lora, memory=round(most / least, 2))
        del step
        model.delete_adapter("it")


def writing(arguments):
    """A token of text with each method, as it is and folded, alternated with a session of the base model."""
    import numpy as np
    import peftswift

    model = peftswift.Model.from_pretrained(arguments.model, threads=2)
    prompt, tokens = np.random.default_rng(0).integers(100, 31000, 16), 32

    def session(adapters, **options):
        session = model.session(context_length=512, ignore_eos=True, adapters=adapters, **options)
        beginning = timed(lambda: session.append(prompt))

        def write():
            session.rewind(len(prompt))
            begin = clock()
            for _ in session.tokens(tokens):
                pass
            return (clock() - begin) / tokens * 1e3

        write()
        return write, beginning

    base, _ = session([])
    for method in ["LORA", *METHODS]:
        if arguments.only and method not in arguments.only.split(","):
            continue
        model.add_adapter("it", LORA if method == "LORA" else config(method))
        (own, usual), (folded, beginning) = session(["it"]), session(["it"], fold_adapters=True)
        milliseconds, copied, beside = (min(column) for column in zip(*((own(), folded(), base()) for _ in range(2 * REPEATS))))
        print(json.dumps({"method": method, "ms": round(milliseconds, 2), "folded": round(copied, 2), "base": round(beside, 2), "ratio": round(milliseconds / beside, 2),
                          "folded_ratio": round(copied / beside, 2), "making_s": round(beginning - usual, 2)}), flush=True)
        del own, folded
        model.delete_adapter("it")


def peft(arguments):
    import peft as hf
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(2)
    ids = torch.randint(100, 49000, (1, LENGTH))

    def memory(peak):
        """Bytes of the process: now, given back what is free, or at most since that was asked last."""
        with open("/proc/self/status") as status:
            value = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM" if peak else "VmRSS"))
        return value

    def tidy():
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")

    def stepper(**settings):
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.bfloat16)
        tidy()
        start = memory(False)
        model = hf.get_peft_model(base, hf.get_peft_config({"task_type": "CAUSAL_LM", **settings})).train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

        def step():
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        def grown():
            """A step's peak above the base model, by itself."""
            tidy()
            step()
            return memory(True) - start
        return step, grown

    lora, grown = stepper(**LORA)
    lora()
    least = grown()
    for method in chosen(arguments):
        try:
            own, grown = stepper(**config(method))
            compared(method, own, lora, memory=lambda: round(grown() / least, 2))
            del own, grown
        except Exception as error:  # whatever a method of PEFT cannot do
            print(json.dumps({"method": method, "error": f"{type(error).__name__}: {error}"[:200]}), flush=True)


def table(arguments):
    flags = (["--only", arguments.only] if arguments.only else []) + (["--quick"] if arguments.quick else [])

    def run(python, work, model):
        output = subprocess.run([python, __file__, work, model, *flags], stdout=subprocess.PIPE, text=True, check=True).stdout
        return {line["method"]: line for line in map(json.loads, output.splitlines())}

    def cells(line):
        return [f"{line[key]:.2f}" for key in ("seconds", "ratio", "memory")] if "seconds" in line else [line["error"].replace("|", "/"), "", ""]

    us = run(sys.executable, "ours", arguments.model)
    them = run(arguments.peers_python, "peft", arguments.peers_model) if arguments.peers_model else {}
    more = ["PEFT: seconds", "beside LoRA", "memory beside LoRA", "PEFT's seconds / ours"] if them else []
    header = ["method", "seconds", "beside LoRA", "memory beside LoRA", *more]
    print("| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|")
    for method in chosen(arguments):
        row = [method, *cells(us[method])]
        if them:
            both = "seconds" in us[method] and "seconds" in them[method]
            row += [*cells(them[method]), f"{them[method]['seconds'] / us[method]['seconds']:.2f}" if both else ""]
        print("| " + " | ".join(row) + " |")
    ran = [line for line in us.values() if "seconds" in line]
    for key, most, what in (("ratio", TIME, "time"), ("memory", MEMORY, "memory")):
        over = [f"{line['method']} {line[key]:.2f}" for line in ran if line[key] > most]
        print(f"\n{what}: {len(ran) - len(over)} of {len(ran)} within {most:.2f} of LoRA's" + (f"; above: {', '.join(over)}" if over else ""))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=["ours", "writing", "peft", "table"])
    parser.add_argument("model")
    parser.add_argument("peers_model", nargs="?")
    parser.add_argument("--only", help="methods, separated by commas")
    parser.add_argument("--peers-python", help="table: a Python with Benchmarks/peers/requirements.txt")
    parser.add_argument("--processor", action="store_true", help="ours: seconds of the processors instead of the clock's, where others use them too")
    parser.add_argument("--quick", action="store_true", help="time each once")
    arguments = parser.parse_args()
    if (arguments.peers_model is None) != (arguments.peers_python is None):
        parser.error("PEFT's half of the table needs HF_FOLDER and --peers-python")
    if arguments.quick:
        global REPEATS
        REPEATS = 1
    if arguments.processor:
        global clock
        clock = time.process_time
    globals()[arguments.work](arguments)


if __name__ == "__main__":
    main()
