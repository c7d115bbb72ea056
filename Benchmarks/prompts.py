#!/usr/bin/env python3
"""Jobs of methods that adapt no layer: what a step costs beside LoRA's, a persona as a prefix, prompt tuning on Reuters R8.

    prompts.py steps   MODEL                 each method's training step beside LoRA's, alternated
    prompts.py steps-peft HF_FOLDER          the same by HF PEFT of the methods it has, in an environment with peft and torch
    prompts.py rows    MODEL                 three adapters learning at once beside one
    prompts.py sessions MODEL                eight sessions with eight methods step together: the tokens of each alone, and the time
    prompts.py gates   MODEL                 a token of UniPELT, its gates means over all of the text and over each call
    prompts.py persona MODEL                 what switching a prefix costs, and what it saves
    prompts.py r8      MODEL R8_FOLDER       prompt tuning: accuracy before and after (.cache/, by scripts/fetch_inputs.py)
    prompts.py r8-peft HF_FOLDER R8_FOLDER   the same by HF PEFT, in an environment with peft and torch; --state FILE: in pieces of --seconds

PEFTSWIFT_LIBRARY and PYTHONPATH=bindings/python as for run.py. Figures: one JSON line each.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

import peftswift
from peftswift._library import c_names, lib

LORA = {"peft_type": "LORA", "r": 8, "target_modules": "all-linear"}
METHODS = {
    "PROMPT_TUNING": {"num_virtual_tokens": 20}, "P_TUNING": {"num_virtual_tokens": 20}, "MULTITASK_PROMPT_TUNING": {"num_virtual_tokens": 20, "num_tasks": 3},
    "CPT": {"task_type": "CAUSAL_LM", "cpt_token_ids": list(range(100, 120)), "cpt_tokens_type_mask": [1, 2, 3, 4] * 5},
    "PREFIX_TUNING": {"num_virtual_tokens": 20}, "PREFIX_TUNING projected": {"num_virtual_tokens": 20, "prefix_projection": True},
    "CARTRIDGE": {"num_virtual_tokens": 20}, "ADAPTION_PROMPT": {"adapter_len": 10, "adapter_layers": 30},
    "BOTTLENECK double_seq_bn": {"config": "double_seq_bn"}, "BOTTLENECK seq_bn": {"config": "seq_bn"}, "BOTTLENECK par_bn": {"config": "par_bn"},
    "BOTTLENECK seq_bn_inv": {"config": "seq_bn_inv"}, "BOTTLENECK compacter": {"config": "compacter", "reduction_factor": 36},
    "ADAPTER_FUSION": {"adapters": ["BOTTLENECK double_seq_bn", "BOTTLENECK 2"]},
}


def say(**line):
    print(json.dumps(line), flush=True)


def timed(action, clock=time.perf_counter):
    begin = clock()
    action()
    return clock() - begin


def steps(arguments):
    """Rows of 512 tokens. Times are alternated with LoRA's; the smallest of each counts: seconds, or with one thread (for a machine with
    other work) the processor's."""
    rng, clock = np.random.default_rng(0), time.process_time if arguments.threads == 1 else time.perf_counter
    model = peftswift.Model.from_pretrained(arguments.model, dtype="bfloat16", threads=arguments.threads)
    model.add_adapter("lora", LORA)
    trainers = {"LORA": model.trainer(adapters=["lora"], lr=1e-4)}
    model.add_adapter("BOTTLENECK 2", {"peft_type": "BOTTLENECK", "config": "double_seq_bn"})
    chosen = arguments.methods.split(",") if arguments.methods else [*METHODS, "XLORA"]
    for name, config in METHODS.items():
        if name not in chosen and name not in METHODS["ADAPTER_FUSION"]["adapters"]:
            continue
        model.add_adapter(name, {"peft_type": name.split()[0], **config})
        trainers[name] = model.trainer(adapters=[name], lr=1e-4)
    with tempfile.TemporaryDirectory() as folder:
        for index in range(2):
            model.add_adapter(f"e{index}", LORA, seed=index)
            model.save_pretrained(f"{folder}/{index}", f"e{index}")
        model.add_adapter("XLORA", {"peft_type": "XLORA", "adapters": {"0": f"{folder}/0", "1": f"{folder}/1"}})
    trainers["XLORA"] = model.trainer(adapters=["XLORA"], lr=1e-4)
    trainers = {name: trainer for name, trainer in trainers.items() if name in ["LORA", *chosen]}
    ids = rng.integers(100, 49000, (1, 512))
    inputs = {"input_ids": ids, "labels": ids}
    times = {name: [] for name in trainers}
    for _ in range(arguments.rounds):
        for name, trainer in trainers.items():
            extra = {"task_ids": np.array([1])} if name.startswith("MULTI") else {}
            times[name].append(timed(lambda: trainer.step(**inputs, **extra), clock))
    for name, own in times.items():
        say(method=name, seconds=round(min(own), 3), beside_lora=round(min(own) / min(times["LORA"]), 3))


def steps_peft(arguments):
    """Forward, backward and optimizer on the same 512 tokens in bf16, of each method in a model of its own."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    lora = peft.LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    base = lambda: AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.bfloat16)
    with tempfile.TemporaryDirectory() as folder:
        model = peft.get_peft_model(base(), lora)
        for index in range(2):
            model.save_pretrained(f"{folder}/{index}")
        frozen = base()
        frozen.config.use_cache = False
        models = {
            "LORA": model, "PROMPT_TUNING": peft.get_peft_model(base(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=20)),
            "PREFIX_TUNING": peft.get_peft_model(base(), peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=20)),
            "XLORA": peft.get_peft_model(frozen, peft.XLoraConfig(task_type="CAUSAL_LM", hidden_size=frozen.config.hidden_size, adapters={str(i): f"{folder}/{i}" for i in range(2)})),
        }
    chosen = arguments.methods.split(",") if arguments.methods else list(models)
    models = {name: model for name, model in models.items() if name in ["LORA", *chosen]}
    ids = torch.tensor(np.random.default_rng(0).integers(100, 49000, (1, 512)))
    optimizers = {name: torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4) for name, model in models.items()}
    times = {name: [] for name in models}

    def step(name):
        models[name](input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
        optimizers[name].step()
        optimizers[name].zero_grad()

    for _ in range(arguments.rounds):
        for name, model in models.items():
            model.train()
            times[name].append(timed(lambda: step(name), clock))
    for name, own in times.items():
        say(method=name, by="PEFT", seconds=round(min(own), 3), beside_lora=round(min(own) / min(times["LORA"]), 3))


def rows(arguments):
    """Three adapters of one batch, and one adapter on the same rows."""
    rng = np.random.default_rng(0)
    model = peftswift.Model.from_pretrained(arguments.model, dtype="bfloat16", threads=2)
    for name in ("lora", "b", "c"):
        model.add_adapter(name, LORA)
    ids = rng.integers(100, 49000, (3, 128))
    one, three = model.trainer(adapters=["lora"], lr=1e-4), model.trainer(adapters=["lora", "b", "c"], lr=1e-4)
    alone, together = [], []
    for _ in range(5):
        alone.append(timed(lambda: one.step(input_ids=ids, labels=ids)))
        together.append(timed(lambda: three.step(adapter_names=["lora", "b", "c"], input_ids=ids, labels=ids)))
    say(what="three adapters in one batch beside one on the same rows", ratio=round(min(together) / min(alone), 3))


def sessions(arguments):
    """Greedy answers of eight methods whose weights are shaken, alone and together; in f32: with rounded activations a near tie may fall
    either way."""
    model = peftswift.Model.from_pretrained(arguments.model, dtype="float32", threads=2)
    prompt = {"num_virtual_tokens": 8}
    configs = {
        "LORA": LORA, "DORA": {**LORA, "use_dora": True}, "IA3": {"peft_type": "IA3"}, "BOTTLENECK": {"peft_type": "BOTTLENECK", "config": "double_seq_bn"},
        "PROMPT_TUNING": {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", **prompt}, "PREFIX_TUNING": {"peft_type": "PREFIX_TUNING", "task_type": "CAUSAL_LM", **prompt},
        "ROAD": {"peft_type": "ROAD", "target_modules": ["q_proj", "v_proj"]}, "VERA": {"peft_type": "VERA", "r": 64, "target_modules": ["q_proj"]},
    }
    rng = np.random.default_rng(0)
    for name, config in configs.items():
        model.add_adapter(name, config)
        state = model.adapter_state_dict(name)
        model.load_adapter_state_dict(name, {key: value + 0.02 * rng.standard_normal(value.shape).astype(np.float32) for key, value in state.items() if "vera_A" not in key and "vera_B" not in key})
    question = model.tokenizer.encode("<|im_start|>user\nTell me about the sea.<|im_end|>\n<|im_start|>assistant\n")
    begun = lambda: [model.session(adapters=[name], context_length=256, temperature=0, ignore_eos=True).append(question) for name in configs]
    alone, together = begun(), begun()
    expected, seconds = [], []
    for session in alone:
        begin = time.perf_counter()
        expected.append(list(session.tokens(32)))
        seconds.append(time.perf_counter() - begin)
    made, begin = [[] for _ in together], time.perf_counter()
    for _ in range(32):
        for tokens, (token, _) in zip(made, peftswift.Session.step(together)):
            tokens.append(token)
    elapsed = time.perf_counter() - begin
    say(what="8 sessions, 8 methods, 32 tokens each", same_tokens=[a == b for a, b in zip(made, expected)], different_answers=len({tuple(tokens) for tokens in expected}),
        seconds_together=round(elapsed, 2), seconds_one_after_the_other=round(sum(seconds), 2))


def gates(arguments):
    model = peftswift.Model.from_pretrained(arguments.model, threads=2)
    for part, config in peftswift.unipelt().items():
        model.add_adapter(part, config)
    text = model.tokenizer.encode("It was a dark and stormy night, and the lamps of the village had long gone out. " * 12)[:200]
    for adapters, options in (([], {}), (list(peftswift.unipelt()), {"gates": "text"}), (list(peftswift.unipelt()), {"gates": "call"})):
        session = model.session(adapters=adapters, context_length=512, temperature=0, ignore_eos=True, **options).append(text)
        seconds = timed(lambda: list(session.tokens(24)))
        say(what="tokens behind 200", adapters=adapters, **options, milliseconds_each=round(1000 * seconds / 24, 1))


PERSONAS = {
    "smith": "You are Gerda, the blacksmith of a small village in the mountains. You speak in short, rough sentences and always talk about iron, fire and prices.",
    "pirate": "You are Captain Flint, an old pirate who has lost his ship. You speak of the sea, of gold and of rum in every sentence, and you call everybody a landlubber.",
}


def persona(arguments):
    model = peftswift.Model.from_pretrained(arguments.model, threads=2)
    tokenizer = model.tokenizer
    texts = {name: f"<|im_start|>system\n{text}<|im_end|>\n" for name, text in PERSONAS.items()}
    counts = {name: len(tokenizer.encode(text)) for name, text in texts.items()}
    for name, text in texts.items():
        model.add_adapter(name, {"peft_type": "CARTRIDGE", "num_virtual_tokens": counts[name]})
        model.fill_adapter(name, text)
    question = tokenizer.encode("<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n")
    session = model.session(context_length=512, temperature=0)
    switches, starts, plain, with_text, answers = [], [], [], [], {}
    for index in range(40):
        name = ["smith", "pirate"][index % 2]
        switches.append(timed(lambda: model.set_adapter(name)))
        session.rewind(0)
        starts.append(timed(lambda: session.append(question)))
        if index < 2:
            answers[name] = session.generate(40)
    model.disable_adapter_layers()
    for name in ["smith", "pirate"] * 5:
        session.rewind(0)
        plain.append(timed(lambda: session.append(question)))
        session.rewind(0)
        with_text.append(timed(lambda: session.append(tokenizer.encode(texts[name]) + question)))
    for name, answer in answers.items():
        say(persona=name, virtual_tokens=counts[name], answer=answer.strip())
    # As a C host calls it.
    handle = session._as_parameter_
    names = [c_names([name])[0] for name in PERSONAS]

    def alternate():
        for index in range(2000):
            lib.peft_session_set_adapters(handle, names[index & 1], None, 1, None)

    in_a_row = min(timed(alternate) for _ in range(5)) / 2000
    microseconds = lambda values: round(1e6 * statistics.median(values), 1)
    say(what="switching the persona, µs", in_a_row=round(1e6 * in_a_row, 1), between_answers=microseconds(switches))
    say(what="reading the question, µs", behind_a_prefix=microseconds(starts), alone=microseconds(plain), behind_the_text=microseconds(with_text))


CLASSES = ["acq", "crude", "earn", "grain", "interest", "money-fx", "ship", "trade"]
WORDS = [" company", " oil", " profit", " wheat", " interest", " money", " ship", " trade"]


R8_PROMPT = {"num_virtual_tokens": 20, "prompt_tuning_init": "TEXT",
             "prompt_tuning_init_text": "Read the news and say its topic: company, oil, profit, wheat, interest, money, ship or trade."}


class Topics:
    """Reuters R8 as texts that a topic's word follows."""

    def __init__(self, encode, arguments):
        self.encode, self.folder, self.arguments = encode, Path(arguments.folder), arguments
        self.words = [encode(word)[0] for word in WORDS]
        assert len(set(self.words)) == 8
        self.test = list(self.batches("reuters-r8-test.jsonl", arguments.tests, 1))

    def examples(self, name, count, seed):
        rows = [json.loads(line) for line in (self.folder / name).read_text().splitlines()]
        for index in np.random.default_rng(seed).permutation(len(rows))[:count]:
            label, text = rows[index]["label"], rows[index]["text"]
            yield CLASSES.index(label), self.encode(text)[:56] + self.encode("\nTopic:")

    def batches(self, name, count, seed, size=16):
        items = list(self.examples(name, count, seed))
        for start in range(0, len(items), size):
            part = items[start:start + size]
            width = max(len(ids) for _, ids in part) + 1
            ids, mask, labels = (np.full((len(part), width), fill) for fill in (2, 0, -100))
            for row, (label, text) in enumerate(part):
                ids[row, :len(text) + 1], mask[row, :len(text) + 1] = text + [self.words[label]], 1
                labels[row, len(text)] = self.words[label]
            yield [label for label, _ in part], {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def training(self):
        return self.batches("reuters-r8-train.jsonl", self.arguments.steps * 16, 0)

    def accuracy(self, logits):
        """Of test texts; `logits` gives those of a batch, virtual tokens in front or not."""
        right = count = 0
        for labels, batch in self.test:
            made = logits({key: batch[key] for key in ("input_ids", "attention_mask")})
            first = made.shape[1] - batch["input_ids"].shape[1]
            for row, label in enumerate(labels):
                place = first + int((batch["labels"][row] != -100).argmax()) - 1
                right += int(np.argmax(made[row, place, self.words]) == label)
                count += 1
        return round(right / count, 3)

    def say(self, what, before, after, losses, seconds):
        say(what=f"prompt tuning on R8, {self.arguments.tests} test texts, {what}", before=before, after=after, steps=len(losses),
            loss=[round(float(np.mean(part)), 3) for part in (losses[:5], losses[-5:])], seconds=round(seconds))


def r8(arguments):
    model = peftswift.Model.from_pretrained(arguments.model, dtype=arguments.dtype, threads=2)
    topics = Topics(model.tokenizer.encode, arguments)
    logits = lambda inputs: model(**inputs).logits
    model.add_adapter("p", {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", **R8_PROMPT})
    before = topics.accuracy(logits)
    trainer = model.trainer(lr=arguments.lr, max_steps=arguments.steps, lr_scheduler="linear", warmup_steps=5, max_grad_norm=1.0)
    begin = time.perf_counter()
    losses = [trainer.step(**batch) for _, batch in topics.training()]
    seconds = time.perf_counter() - begin
    topics.say("this library", before, topics.accuracy(logits), losses, seconds)


def r8_peft(arguments):
    """The same texts, start, schedule and steps."""
    import torch
    from peft import PromptTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, get_linear_schedule_with_warmup

    torch.set_num_threads(2)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    topics = Topics(lambda text: tokenizer(text, add_special_tokens=False)["input_ids"], arguments)
    base = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=getattr(torch, arguments.dtype))
    model = get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", tokenizer_name_or_path=arguments.model, **R8_PROMPT))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=arguments.lr, weight_decay=0)
    schedule = get_linear_schedule_with_warmup(optimizer, 5, arguments.steps)

    def logits(inputs):
        with torch.no_grad():
            return model(**{key: torch.tensor(value) for key, value in inputs.items()}).logits.float().numpy()

    start, losses, spent = time.perf_counter(), [], 0
    file = Path(arguments.state) if arguments.state else None
    if file and file.exists():
        known = torch.load(file, weights_only=False)
        losses, spent = known["losses"], known["spent"]
        model.load_state_dict(known["model"], strict=False)
        optimizer.load_state_dict(known["optimizer"])
        schedule.load_state_dict(known["schedule"])
    for number, (_, batch) in enumerate(topics.training()):
        if number < len(losses):
            continue
        begin = time.perf_counter()
        loss = model(**{key: torch.tensor(value) for key, value in batch.items()}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses, spent = losses + [loss.item()], spent + time.perf_counter() - begin
        if file and time.perf_counter() - start > arguments.seconds:
            learned = {key: value for key, value in model.state_dict().items() if "prompt_encoder" in key}
            torch.save({"losses": losses, "spent": spent, "model": learned, "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}, file)
            return say(what="to be continued", steps=len(losses))
    topics.say("PEFT", None, topics.accuracy(logits), losses, spent)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=["steps", "steps-peft", "rows", "sessions", "gates", "persona", "r8", "r8-peft"])
    parser.add_argument("model")
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--methods", help="of steps: some of them, with commas between")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="of steps and steps-peft")
    parser.add_argument("--tests", type=int, default=400)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="r8, r8-peft")
    parser.add_argument("--state")
    parser.add_argument("--seconds", type=int, default=240)
    arguments = parser.parse_args()
    {"steps": steps, "steps-peft": steps_peft, "rows": rows, "sessions": sessions, "gates": gates, "persona": persona, "r8": r8, "r8-peft": r8_peft}[arguments.job](arguments)


if __name__ == "__main__":
    main()
