"""Trainers and data sets: steps, runs, evaluation, saving, resuming, cancelling."""

import json
import subprocess
import sys
import threading

import numpy as np
import pytest

import peftswift
from conftest import LORA, stir
from peftswift import Context, Dataset, Model, PeftError

LINES = ["the anvil sings at dawn", "iron remembers the hammer", "a good blade is a patient one", "the forge is never cold"]
CONVERSATIONS = [[{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": line}] for i, line in enumerate(LINES * 4)]


@pytest.fixture
def learner(talking):
    talking.add_adapter("default", {**LORA, "r": 8, "lora_alpha": 16, "target_modules": "all-linear"})
    return talking


def data(model, **options):
    return Dataset.from_messages(model.tokenizer, CONVERSATIONS, **{"max_length": 48, "batch_size": 4, "seed": 3, **options})


def adapter(model):
    return {k: v.copy() for k, v in model.adapter_state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_steps_by_hand(learner, ids):
    trainer = learner.trainer(lr=1e-2, eps=1e-6)
    losses = [trainer.step(input_ids=ids, labels=ids) for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]
    step = trainer.last_step
    assert (step.updated, step.step, step.tokens) == (1, 20, ids.size) and step.learning_rate == pytest.approx(1e-2) and step.gradient_norm > 0


def test_labels_are_what_counts(learner, ids):
    labels = np.where(np.arange(ids.shape[1]) < 6, -100, ids)
    out = learner(input_ids=ids, labels=labels)
    logits = out.logits[:, 5:-1].astype(np.float64)
    targets = ids[:, 6:]
    expected = np.mean(np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, targets[..., None], -1)[..., 0])
    assert out.loss == pytest.approx(expected, rel=1e-5)
    assert learner.trainer(lr=0.0).step(input_ids=ids, labels=labels) == pytest.approx(expected, rel=1e-5)


def test_gradients_are_derivatives(learner, ids):
    from conftest import stir

    stir(learner)
    loss, gradients = learner.loss_and_gradients(input_ids=ids, labels=ids)
    state = learner.adapter_state_dict()
    key = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"
    direction = np.random.default_rng(0).normal(size=state[key].shape).astype(np.float32)
    sides = []
    for h in (1e-3, -1e-3):
        learner.load_adapter_state_dict("default", {key: state[key] + np.float32(h) * direction})
        sides.append(learner(input_ids=ids, labels=ids).loss)
    assert float((gradients[key] * direction).sum()) == pytest.approx((sides[0] - sides[1]) / 2e-3, rel=2e-2)


def test_accumulation(learner, ids):
    start = adapter(learner)
    trainer = learner.trainer(lr=1e-2, gradient_accumulation_steps=2)
    trainer.step(input_ids=ids[:1], labels=ids[:1])
    assert trainer.last_step.updated == 0 and same(adapter(learner), start)
    trainer.step(input_ids=ids[1:], labels=ids[1:])
    assert trainer.last_step.updated == 1 and trainer.last_step.step == 1 and not same(adapter(learner), start)


def test_run_reports_and_learns(learner):
    seen = []
    before = learner.trainer().evaluate(data(learner))
    trainer = learner.trainer(lr=2e-2, epochs=6, lr_scheduler="cosine", warmup_steps=2, evaluation_steps=8)
    assert trainer.run(data(learner), data(learner, shuffle=False), progress=lambda p: seen.append((p.step, p.total_steps, p.loss, p.evaluation_loss, p.memory_peak))) is True
    assert [s[0] for s in seen] == list(range(1, 25)) and {s[1] for s in seen} == {24} and all(s[4] > 0 for s in seen)
    assert np.isnan(seen[0][3]) and seen[-1][3] < 0.8 * before, "the evaluation loss fell"
    assert trainer.evaluate(data(learner)) == pytest.approx(seen[-1][3], rel=0.05)


def test_run_writes_a_line(learner, capsys):
    learner.trainer(lr=1e-3, epochs=1).run(data(learner))
    err = capsys.readouterr()
    assert "loss" in err.err and err.out == ""


def test_callback_stops(learner):
    trainer = learner.trainer(lr=1e-3, epochs=100)
    assert trainer.run(data(learner), progress=lambda p: p.step < 3) is False
    assert np.isfinite(learner(input_ids=np.array([[1, 2, 3]])).logits).all()


def test_callback_raises(learner):
    trainer = learner.trainer(lr=1e-3, epochs=100)

    def fail(p):
        if p.step == 2:
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        trainer.run(data(learner), progress=fail)
    assert trainer.run(data(learner), progress=lambda p: False) is False, "the trainer is usable afterwards"


def test_callback_may_not_step(learner, ids):
    trainer, problems = learner.trainer(lr=1e-3, epochs=1), []

    def nested(p):
        try:
            trainer.step(input_ids=ids, labels=ids)
        except PeftError as error:
            problems.append(error.code)

    trainer.run(data(learner), progress=nested)
    assert problems and set(problems) == {-8}


def test_cancel_from_a_thread(learner):
    trainer = learner.trainer(lr=1e-3, epochs=100_000)
    timer = threading.Timer(0.3, trainer.cancel)
    timer.start()
    assert trainer.run(data(learner), progress=False) is False
    timer.join()


def test_control_c():
    """SIGINT during a run comes out of run() as KeyboardInterrupt."""
    program = """
import os, signal, sys, threading
sys.path.insert(0, sys.argv[1])
from conftest import *
import pathlib, tempfile, test_training as t
m = peftswift.Model.from_pretrained(make_talking_model(pathlib.Path(tempfile.mkdtemp())), dtype="float32")
m.add_adapter("default", LORA)
threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    m.trainer(lr=1e-3, epochs=10**6).run(t.data(m), progress=PROGRESS)
except KeyboardInterrupt:
    m(input_ids=np.array([[1, 2]])); print("interrupted, model usable")
"""
    for progress in ("False", "lambda p: True"):
        result = subprocess.run([sys.executable, "-c", program.replace("PROGRESS", progress), str(__file__).rsplit("/", 1)[0]], capture_output=True, text=True, timeout=120)
        assert result.stdout == "interrupted, model usable\n", result.stderr


def test_advance(learner):
    trainer, dataset, calls = learner.trainer(lr=1e-3, max_steps=6), data(learner), 0
    while not trainer.advance(dataset, 0.0):
        calls += 1
        assert trainer.last_step.step == calls
    assert 5 <= calls <= 6


def test_resume_is_exact(talking_folder, tmp_path):
    """20 steps = 10, save, new process's worth of objects, 10."""

    def fresh():
        model = Model.from_pretrained(talking_folder, dtype="float32")
        model.add_adapter("default", {**LORA, "lora_dropout": 0.1}, seed=1)
        return model, model.trainer(lr=1e-2, max_steps=20, lr_scheduler="linear", warmup_steps=3, seed=4), data(model, batch_size=3)

    model, trainer, dataset = fresh()
    trainer.run(dataset, progress=False)
    straight = adapter(model)
    model, trainer, dataset = fresh()
    trainer.run(dataset, progress=lambda p: p.step < 10)
    trainer.save(tmp_path / "run.h5", dataset)
    model, trainer, dataset = fresh()
    trainer.resume(tmp_path / "run.h5", dataset)
    assert trainer.run(dataset, progress=False) is True
    assert same(adapter(model), straight)


def test_resume_refuses_another_run(learner, talking_folder, tmp_path):
    trainer = learner.trainer(lr=1e-2)
    trainer.step(input_ids=np.array([[1, 2, 3]]), labels=np.array([[1, 2, 3]]))
    trainer.save(tmp_path / "run.h5")
    start = adapter(learner)
    with pytest.raises(PeftError, match="lr"):
        learner.trainer(lr=2e-2).resume(tmp_path / "run.h5")
    other = Model.from_pretrained(talking_folder, dtype="float32")
    other.add_adapter("default", {**LORA, "r": 2})
    with pytest.raises(PeftError):
        other.trainer(lr=1e-2).resume(tmp_path / "run.h5")
    with pytest.raises(PeftError):
        learner.trainer(lr=1e-2).resume(tmp_path / "nowhere.h5")
    assert same(adapter(learner), start)


def test_threads_do_not_change_bits(talking_folder):
    results = []
    for threads in (1, 2):
        model = Model.from_pretrained(talking_folder, dtype="float32", threads=threads)
        model.add_adapter("default", {**LORA, "target_modules": "all-linear", "lora_dropout": 0.1}, seed=1)
        model.trainer(lr=1e-2, max_steps=5).run(data(model), progress=False)
        results.append(adapter(model))
    assert same(*results)


def test_plan_is_what_happens(talking_folder):
    context = Context()
    model = Model.from_pretrained(talking_folder, dtype="float32", context=context)
    model.add_adapter("default", LORA)
    trainer = model.trainer(lr=1e-3)
    plan = trainer.plan(batch=4, length=48)
    assert plan["total"] >= plan["activations"] > 0
    ids = np.ones((4, 48), np.int64)
    trainer.step(input_ids=ids, labels=ids)
    categories = context.memory()["categories"]
    for name in ("adapters", "gradients", "optimizer", "activations", "scratch"):
        assert categories[name]["peak"] == pytest.approx(plan[name], rel=0.03), name
    plans = [model.trainer(lr=1e-3, gradient_checkpointing=c).plan(batch=4, length=64)["activations"] for c in (False, True)]
    assert plans[1] < plans[0]


def test_adapters_without_rows_in_a_batch_stay_as_they_are(talking_folder, ids):
    """As torch's set_to_none: no gradient, no update, though moments of steps before would move them."""
    model = Model.from_pretrained(talking_folder, dtype="float32")
    for name in ("a", "b"):
        model.add_adapter(name, LORA, seed=1)
    trainer = model.trainer(adapters=["a", "b"], lr=1e-2, weight_decay=0.1)
    trainer.step(adapter_names=["a", "b"], input_ids=np.repeat(ids[:1], 2, 0), labels=np.repeat(ids[:1], 2, 0))
    a, b = (model.adapter_state_dict(name) for name in ("a", "b"))
    trainer.step(adapter_names=["a", "a"], input_ids=np.repeat(ids[:1], 2, 0), labels=np.repeat(ids[:1], 2, 0))
    assert same(model.adapter_state_dict("b"), b) and not same(model.adapter_state_dict("a"), a)


def test_recomputed_blocks_of_a_few_tokens_learn_the_same(talking_folder):
    """Without dropout and with at most eight rows, a block's first run could take the short way of generation."""
    ids, states = np.ones((1, 6), np.int64), []
    for checkpointing in (False, True):
        model = Model.from_pretrained(talking_folder, dtype="float32")
        model.add_adapter("default", LORA, seed=1)
        trainer = model.trainer(lr=1e-2, gradient_checkpointing=checkpointing, dropout=False)
        before = adapter(model)
        trainer.step(input_ids=ids, labels=ids)
        states.append(adapter(model))
        assert any(not np.array_equal(before[k], states[-1][k]) for k in before if "layers.0" in k)
    assert all(np.array_equal(states[0][k], states[1][k]) for k in states[0])


def test_as_few_blocks_are_recomputed_as_the_budget_allows(talking_folder):
    ids = np.ones((4, 64), np.int64)

    def trained(checkpointing, budget=0):
        model = Model.from_pretrained(talking_folder, dtype="float32", context=Context(memory_budget=budget))
        model.add_adapter("default", LORA, seed=1)
        trainer = model.trainer(lr=1e-3, gradient_checkpointing=checkpointing)
        return trainer.plan(4, 64), trainer.step(input_ids=ids, labels=ids)

    none, loss = trained(False)
    every, _ = trained(True)
    assert none["recomputed_blocks"] == 0 < every["recomputed_blocks"]
    between = (none["total"] + every["total"]) // 2
    some, same_loss = trained("auto", between)
    assert 0 < some["recomputed_blocks"] <= every["recomputed_blocks"] and some["total"] <= between and same_loss == loss
    least, _ = trained("auto", none["total"] - 1)
    assert least["recomputed_blocks"] == 1 < every["recomputed_blocks"]


def test_a_loss_that_is_not_finite_changes_nothing(learner, ids):
    state = adapter(learner)
    key = next(k for k in state if "lora_B" in k)
    broken = {key: np.full_like(state[key], np.inf)}
    with pytest.raises(PeftError):
        learner.load_adapter_state_dict("default", broken)
        learner.trainer(lr=1e-3).step(input_ids=ids, labels=ids)


def test_int8_activations_are_for_models_that_train_in_bf16(talking_folder):
    model = Model.from_pretrained(talking_folder, dtype="float32")
    model.add_adapter("default", LORA)
    with pytest.raises(PeftError, match="int8_activations needs a model that trains in bf16"):
        model.trainer(int8_activations=True)
    with pytest.raises(PeftError, match="int8_activations is 1; it must be true or false"):
        model.trainer(int8_activations=1)
    model = Model.from_pretrained(talking_folder, dtype="bfloat16", context=Context(level="avx2"))
    model.add_adapter("default", LORA)
    with pytest.raises(PeftError, match="AVX512-VNNI"):
        model.trainer(int8_activations=True)


# ---- data sets


def test_only_the_assistant_s_words_are_learned(talking):
    batch = next(iter(data(talking, shuffle=False, batch_size=1)))
    tokenizer, labels = talking.tokenizer, batch["labels"][0]
    words = tokenizer.decode(batch["input_ids"][0][labels != -100])
    assert words in (LINES[0] + "<|end|>", LINES[0])
    all_words = next(iter(data(talking, shuffle=False, batch_size=1, loss_on="all")))["labels"][0]
    assert (all_words != -100).sum() > (labels != -100).sum()


def test_epochs_and_shuffling(talking):
    dataset = data(talking)
    first, second = ([b["input_ids"].copy() for b in dataset] for _ in range(2))
    assert len(first) == 4 and dataset.describe()["batches_per_epoch"] == 4
    assert not all(a.shape == b.shape and np.array_equal(a, b) for a, b in zip(first, second)), "another order in the second epoch"
    again = [b["input_ids"].copy() for b in data(talking)]
    assert all(np.array_equal(a, b) for a, b in zip(first, again)), "the seed decides"


def test_holdout(talking):
    parts = [sum(len(b["input_ids"]) for b in data(talking, holdout=0.25, split=s)) for s in ("train", "holdout")]
    assert sum(parts) == 16 and 0 < parts[1] < 8


def test_files(talking, tmp_path):
    tokenizer = talking.tokenizer
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"prompt": f"p{i}", "completion": f"c{i}"}) for i in range(3)))
    (tmp_path / "a.csv").write_text('prompt,completion\np0,"c, with ""quotes"""\np1,c1\n')
    (tmp_path / "a.txt").write_text("plain words. " * 40)
    assert Dataset.open(tokenizer, tmp_path / "a.jsonl", max_length=32).describe()["records"] == 3
    rows = [b for b in Dataset.open(tokenizer, tmp_path / "a.csv", max_length=64, shuffle=False)]
    assert 'c, with "quotes"' in tokenizer.decode(rows[0]["input_ids"][0]) and len(rows) == 2
    assert Dataset.open(tokenizer, tmp_path / "a.txt", max_length=64).describe()["records"] >= 1
    packed = next(iter(Dataset.open(tokenizer, tmp_path / "a.jsonl", max_length=64, packing=True, shuffle=False)))
    assert packed["input_ids"].shape[0] == 1 and "position_ids" in packed


@pytest.mark.parametrize("text, options, words", [
    ("", {}, "no text|no record"),
    ("\n\n \n", {"format": "jsonl"}, "no text|no record"),
    ('{"text": "fine"}\n{"text": broken\n', {"format": "jsonl"}, "line 2|2"),
    ('{"words": "no known key"}\n', {"format": "jsonl"}, "messages|text"),
    ('{"messages": []}\n', {"format": "jsonl"}, "messages|line 1"),
    ('{"messages": [{"role": "user"}]}\n', {"format": "jsonl"}, "content"),
    ('{"text": 7}\n', {"format": "jsonl"}, "text"),
    ("[1, 2]\n", {"format": "jsonl"}, "line 1|object"),
    ("a,b\n1,2\n", {"format": "csv"}, "text|prompt"),
    ('text\n"never closed\n', {"format": "csv"}, "quote|line"),
])
def test_bad_data(talking, text, options, words):
    with pytest.raises(PeftError, match=words):
        for _ in Dataset.from_text(talking.tokenizer, text, **options):
            pass


def test_bad_lines_are_skipped_when_asked(talking):
    text = '{"text": "fine"}\nnot json\n{"text": "also fine"}\n'
    dataset = Dataset.from_text(talking.tokenizer, text, format="jsonl", on_bad_line="skip")
    assert sum(len(b["input_ids"]) for b in dataset) == 2 and dataset.describe()["skipped_lines"] == 1


def test_data_wider_than_the_model_is_an_error(talking):
    talking.add_adapter("default", LORA)
    with pytest.raises(PeftError):
        talking.trainer(lr=1e-3).step(input_ids=np.full((1, 3), 200), labels=np.full((1, 3), 200))
    foreign = peftswift.Tokenizer.from_pretrained(str(__file__).rsplit("/", 2)[0] + "/Fixtures/Tokenizers/smollm.json")
    with pytest.raises(PeftError, match="96|vocabulary"):
        talking.trainer(lr=1e-3).run(Dataset.from_text(foreign, "some words of another vocabulary " * 9, max_length=32), progress=False)


def test_steps_follow_the_models_mode(talking_folder):
    """As in a loop of one's own in torch, dropout acts after ``train()``; asked for or not, it can be set too."""
    ids = np.random.default_rng(0).integers(1, 90, (2, 8))

    def first_loss(mode, **options):
        model = Model.from_pretrained(talking_folder, dtype="float32")
        model.add_adapter("default", {**LORA, "lora_dropout": 0.5}, seed=1)
        stir(model)
        model.train(mode)
        return model.trainer(lr=1e-3, **options).step(input_ids=ids, labels=ids)

    plain = first_loss(False)
    assert first_loss(False, seed=5) == plain and first_loss(True, dropout=False) == plain
    drawn = {first_loss(True, seed=5), first_loss(True, seed=6), first_loss(False, dropout=True, seed=7)}
    assert len(drawn) == 3 and plain not in drawn
