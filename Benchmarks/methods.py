#!/usr/bin/env python3
"""What a training step of every method that adapts layers costs, beside LoRA's (r = 8): this library's, and PEFT's in the same run.

    methods.py ours MODEL [--only LOHA,BOFT]       a JSON line for each method; times alternate with LoRA's, the smallest counts
    methods.py peft HF_FOLDER [--only …]           the same of HF PEFT (a Python with Benchmarks/peers/requirements.txt)
    methods.py table MODEL HF_FOLDER --peers-python PYTHON [--only …]      both, as the table of LOG.md

Sizes are PEFT's defaults, targets all linear layers (what cannot have them is said), rows of 512 tokens, bf16, two threads. "memory" is what
the step holds beside the weights. PEFTSWIFT_LIBRARY and PYTHONPATH=bindings/python as for run.py.
"""

import argparse
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
           "TRAINABLE_TOKENS"]
LENGTH, REPEATS = 512, 3
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
    """A line of a method whose steps are `own()`, alternated with `lora()`."""
    own(), lora()
    times = [(timed(own), timed(lora)) for _ in range(REPEATS)]
    seconds, beside = (min(column) for column in zip(*times))
    print(json.dumps({"method": method, "seconds": round(seconds, 3), "lora": round(beside, 3), "ratio": round(seconds / beside, 2), **more}), flush=True)


def ours(arguments):
    import numpy as np
    import peftswift

    model = peftswift.Model.from_pretrained(arguments.model, dtype="bfloat16", threads=2)
    ids = np.random.default_rng(0).integers(100, 49000, (1, LENGTH))

    def trainer(name):
        trainer = model.trainer(adapters=[name], lr=1e-4)
        return lambda: trainer.step(input_ids=ids, labels=ids), trainer.plan(1, LENGTH)["total"]

    model.add_adapter("lora", LORA)
    lora, least = trainer("lora")
    for method in chosen(arguments):
        try:
            model.add_adapter("it", config(method))
        except peftswift.PeftError as error:
            print(json.dumps({"method": method, "error": str(error)}), flush=True)
            continue
        step, most = trainer("it")
        compared(method, step, lora, memory=round(most / least, 2))
        del step
        model.delete_adapter("it")


def peft(arguments):
    import peft as hf
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(2)
    ids = torch.randint(100, 49000, (1, LENGTH))

    def stepper(**settings):
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.bfloat16)
        model = hf.get_peft_model(base, hf.get_peft_config({"task_type": "CAUSAL_LM", **settings})).train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

        def step():
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return step

    lora = stepper(**LORA)
    for method in chosen(arguments):
        try:
            compared(method, stepper(**config(method)), lora)
        except Exception as error:  # whatever a method of PEFT cannot do
            print(json.dumps({"method": method, "error": f"{type(error).__name__}: {error}"[:200]}), flush=True)


def table(arguments):
    only = ["--only", arguments.only] if arguments.only else []

    def run(python, work, model):
        output = subprocess.run([python, __file__, work, model, *only], stdout=subprocess.PIPE, text=True, check=True).stdout
        return {line["method"]: line for line in map(json.loads, output.splitlines())}

    us, them = run(sys.executable, "ours", arguments.model), run(arguments.peers_python, "peft", arguments.peers_model)
    print("| method | seconds | beside LoRA | memory beside LoRA | PEFT: seconds | beside LoRA | PEFT's seconds / ours |\n|---|---|---|---|---|---|---|")
    for method in chosen(arguments):
        a, b = us[method], them[method]
        left = f"{a['seconds']:.2f} | {a['ratio']:.2f} | {a['memory']:.2f}" if "seconds" in a else f"{a['error']} | | "
        right = f"{b['seconds']:.2f} | {b['ratio']:.2f} | " if "seconds" in b else f"{b['error']} | | "
        print(f"| {method} | {left} | {right}" + (f"{b['seconds'] / a['seconds']:.2f} |" if "seconds" in a and "seconds" in b else "|"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=["ours", "peft", "table"])
    parser.add_argument("model")
    parser.add_argument("peers_model", nargs="?")
    parser.add_argument("--only", help="methods, separated by commas")
    parser.add_argument("--peers-python", help="table: a Python with Benchmarks/peers/requirements.txt")
    parser.add_argument("--processor", action="store_true", help="ours: seconds of the processors instead of the clock's, where others use them too")
    arguments = parser.parse_args()
    if arguments.processor:
        global clock
        clock = time.process_time
    globals()[arguments.work](arguments)


if __name__ == "__main__":
    main()
