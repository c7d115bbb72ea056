"""Composed adapters: against outputs of AdapterHub's `adapters` (scripts/check_with_adapters.py --fixtures), against rows alone, in training and sessions."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from conftest import GOLDEN, LORA
from peftswift import Average, BatchSplit, Fuse, Model, Parallel, PeftError, PeftLookupError, PeftValueError, Session, Split, Stack

COMPOSED = Path(__file__).parent / "fixtures_adapters" / "composed"
IDS = np.arange(24).reshape(4, 6) % 90
BOTTLENECK = {"peft_type": "BOTTLENECK", "config": "double_seq_bn", "reduction_factor": 4}
# As in scripts/check_with_adapters.py, with true weights.
BLOCKS = {
    "Stack": Stack("a", "c"), "Fuse": Fuse("a", "b"), "Fuse of seq_bn": Fuse("c", "d"), "Fuse, temperature": Fuse("a2", "b"),
    "Fuse without key": Fuse("a", "a2"), "Stack of Fuse": Stack("c", Fuse("a", "b")),
    "Fuse of Stack": Fuse(Stack("c", "a"), "b"), "Average": Average("a", "b", weights=[0.3, 0.7]), "Average of Stack": Average(Stack("a", "b"), "a2", weights=[0.4, 0.6]),
    "Split": Split("a", "b", splits=[3, 5]), "BatchSplit": BatchSplit("a", "b", batch_sizes=[2, 1]),
    "BatchSplit of blocks": BatchSplit(Stack("a", "b"), Stack("b", "a2"), batch_sizes=[1, 2]), "Parallel": Parallel("a", "b", Stack("a2", "b")),
    "Stack of Parallel": Stack("a2", Parallel("a", "b")),
}


def opened(base, adapters, seed=3):
    model = Model.from_pretrained(GOLDEN / "bases" / base, dtype="float32")
    for number, (name, config) in enumerate(adapters.items()):
        model.add_adapter(name, config)
        random = np.random.default_rng(seed + number)
        model.load_adapter_state_dict(name, {k: (v + random.normal(0, 0.15, v.shape)).astype(np.float32) for k, v in model.adapter_state_dict(name).items()})
    return model


def logits(model, ids, block=None, **inputs):
    if block is not None:
        model.set_adapter(block)
    return model(input_ids=ids, **inputs).logits


@pytest.fixture(scope="module")
def composed():
    model = Model.from_pretrained(GOLDEN / "bases" / "bert", dtype="float32")
    for folder in sorted(COMPOSED.iterdir(), key=lambda path: path.name.count(",")):
        if folder.is_dir():
            model.load_adapter(folder, folder.name)
    return model


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_the_librarys(composed, name):
    expected = np.load(COMPOSED / "outputs.npz")
    composed.set_adapter(BLOCKS[name])
    made = composed(input_ids=expected["ids"]).last_hidden_state
    assert made.shape == expected[name].shape and np.abs(made - expected[name]).max() < 2e-5 * np.abs(expected[name]).max()


def test_a_fusion_is_written_as_the_library_writes_it(composed, tmp_path):
    for name in ("a,b", "c,d", "a2,b", "a,a2"):
        composed.save_pretrained(tmp_path / name, name)
        theirs, ours = (json.loads((folder / name / "adapter_fusion_config.json").read_text()) for folder in (COMPOSED, tmp_path))
        assert theirs["config"] == {**ours["config"], "dropout_prob": theirs["config"]["dropout_prob"]} and theirs["adapter_names"] == ours["adapter_names"]
        weights = [(folder / name / "model_adapter_fusion.safetensors").read_bytes() for folder in (COMPOSED, tmp_path)]
        heads = [json.loads(data[8:8 + int.from_bytes(data[:8], "little")]) for data in weights]
        assert set(heads[0]) - {"__metadata__"} == set(heads[1]) - {"__metadata__"}
    shutil.copytree(tmp_path / "a,b", tmp_path / "x")
    (tmp_path / "x" / "model_adapter_fusion.safetensors").rename(tmp_path / "x" / "pytorch_model_adapter_fusion.bin")
    with pytest.raises(PeftError, match="pickle"):
        composed.load_adapter(tmp_path / "x", "x")
    alone = Model.from_pretrained(GOLDEN / "bases" / "bert", dtype="float32")
    with pytest.raises(PeftLookupError, match="'a'"):
        alone.load_adapter(tmp_path / "a,b", "a,b")


@pytest.mark.parametrize("base", ["llama", "gpt2"])
def test_rows_of_different_blocks_are_those_alone(base):
    adapters = {"a": BOTTLENECK, "b": {**BOTTLENECK, "config": "seq_bn"}, "a,b": {"peft_type": "ADAPTER_FUSION", "adapters": ["a", "b"]},
                "l": {**LORA, "target_modules": None}, "i": {"peft_type": "IA3"}, "p": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3}}
    model = opened(base, adapters)
    blocks = [Fuse("a", "b"), Average("l", "i", "a", weights=[2, 1, 1]), Stack("p", "l"), "i"]
    together = logits(model, IDS, BatchSplit(*blocks, batch_sizes=1))
    for row, block in enumerate(blocks):
        alone = logits(model, IDS[row:row + 1], block)
        assert np.abs(together[row:row + 1] - alone).max() < 1e-4, block
        assert np.abs(logits(model, IDS[row:row + 1], []) - alone).max() > 1e-3, block
    parallel = logits(model, IDS, Parallel("l", "i"))
    assert parallel.shape[0] == 8 and np.abs(parallel[4:] - logits(model, IDS, "i")).max() < 1e-4
    split = logits(model, IDS, Split("l", "i", splits=[2, 4]))
    assert np.abs(split[:, :2] - logits(model, IDS, "l")[:, :2]).max() < 1e-4 and np.abs(split - logits(model, IDS, "l")).max() > 1e-3


def test_average_of_lora_is_linear_in_its_weights():
    model = opened("llama", {"a": LORA, "b": LORA})
    averaged = logits(model, IDS, Average("a", "b", weights=[3, 1]))
    model.set_adapter(["a", "b"], [0.75, 0.25])
    assert np.abs(averaged - model(input_ids=IDS).logits).max() < 1e-5
    differing = logits(model, IDS, Average("a", "b", weights=[1, -0.5], normalize_weights=False))
    model.set_adapter(["a", "b"], [1, -0.5])
    assert np.abs(differing - model(input_ids=IDS).logits).max() < 1e-5


@pytest.mark.parametrize("base", ["llama", "gpt2"])
def test_cached_generation_is_the_uncached(base):
    model = opened(base, {"a": BOTTLENECK, "b": BOTTLENECK, "l": {**LORA, "target_modules": None}, "a,b": {"peft_type": "ADAPTER_FUSION", "adapters": ["a", "b"]}})
    blocks = [Fuse("a", "b"), Average("a", "b"), Stack("l", Fuse("a", "b")), Split("a", "l", splits=[4, 5]), "a,b"]
    for block in blocks:
        model.set_adapter(block)
        out = model.generate(IDS[:1, :5], max_new_tokens=6, eos_token_id=None)[0]
        for length in range(5, len(out)):
            # The Split's border is in what is generated too.
            if isinstance(block, Split) and length <= 4:
                continue
            assert model(input_ids=out[None, :length]).logits[0, -1].argmax() == out[length], block
    # Eight sessions with different blocks step together.
    model.set_adapter([])
    sessions = [model.session(adapters=block, temperature=0, ignore_eos=True, context_length=16).append(IDS[0].tolist()) for block in [*blocks[:4], ["a"], ["l"], [], ["a", "l"]]]
    alone = [model.session(adapters=block, temperature=0, ignore_eos=True, context_length=16).append(IDS[0].tolist()) for block in [*blocks[:4], ["a"], ["l"], [], ["a", "l"]]]
    expected = [list(session.tokens(5)) for session in alone]
    made = [[] for _ in sessions]
    for _ in range(5):
        for tokens, (token, _) in zip(made, Session.step(sessions)):
            tokens.append(token)
    assert made == expected
    assert sessions[0].describe()["composition"]["type"] == "Fuse"


def test_a_fusion_learns_and_its_members_stay(tmp_path):
    model = opened("llama", {"a": BOTTLENECK, "b": BOTTLENECK, "a,b": {"peft_type": "ADAPTER_FUSION", "adapters": ["a", "b"]}})
    model.set_adapter(Fuse("a", "b"))
    assert all("adapter_fusion_layer" in key for key in model.trainable_parameters())
    before = {name: model.adapter_state_dict(name) for name in ("a", "b", "a,b")}
    trainer = model.trainer(lr=1e-2)
    losses = [trainer.step(input_ids=IDS, labels=IDS) for _ in range(8)]
    assert losses[-1] < losses[0]
    for name, state in before.items():
        changed = [key for key, value in model.adapter_state_dict(name).items() if not np.array_equal(value, state[key])]
        assert bool(changed) == (name == "a,b")
    # Interrupted and taken up again.
    trainer.save(tmp_path / "run.h5")
    ahead = trainer.step(input_ids=IDS, labels=IDS)
    again = opened("llama", {"a": BOTTLENECK, "b": BOTTLENECK, "a,b": {"peft_type": "ADAPTER_FUSION", "adapters": ["a", "b"]}})
    again.set_adapter(Fuse("a", "b"))
    other = again.trainer(lr=1e-2)
    other.resume(tmp_path / "run.h5")
    assert other.step(input_ids=IDS, labels=IDS) == ahead


def test_the_temperature_falls_with_each_step_and_is_saved(tmp_path):
    adapters = {"a": BOTTLENECK, "b": BOTTLENECK, "a,b": {"peft_type": "ADAPTER_FUSION", "adapters": ["a", "b"], "temperature": True}}
    model = opened("llama", adapters)
    model.set_adapter(Fuse("a", "b"))
    assert model.adapter_config("a,b")["temperature"] is True
    trainer = model.trainer(lr=1e-2)
    for _ in range(3):
        trainer.step(input_ids=IDS, labels=IDS)
    assert abs(model.adapter_config("a,b")["temperature"] - 49.85) < 1e-4
    model.save_pretrained(tmp_path / "a,b", "a,b")
    trainer.save(tmp_path / "run.h5")
    again = opened("llama", adapters)
    again.delete_adapter("a,b")
    again.load_adapter(tmp_path / "a,b", "a,b")
    again.set_adapter(Fuse("a", "b"))
    assert np.array_equal(again(input_ids=IDS).logits, model(input_ids=IDS).logits)
    # Taken up again it goes on falling; a warmer one chooses otherwise, and at 1 it is none.
    other = opened("llama", adapters)
    other.set_adapter(Fuse("a", "b"))
    taken = other.trainer(lr=1e-2)
    taken.resume(tmp_path / "run.h5")
    assert taken.step(input_ids=IDS, labels=IDS) == trainer.step(input_ids=IDS, labels=IDS)
    assert abs(other.adapter_config("a,b")["temperature"] - 49.8) < 1e-4
    plain = opened("llama", {**adapters, "a,b": {**adapters["a,b"], "temperature": False}})
    cool = opened("llama", {**adapters, "a,b": {**adapters["a,b"], "temperature": 1.02}})
    assert np.abs(logits(plain, IDS, "a,b") - logits(opened("llama", adapters), IDS, "a,b")).max() > 1e-4
    cool.set_adapter("a,b")
    step = cool.trainer(lr=0)
    step.step(input_ids=IDS, labels=IDS)
    assert cool.adapter_config("a,b")["temperature"] is False and np.abs(cool(input_ids=IDS).logits - logits(plain, IDS, "a,b")).max() < 1e-6


def test_parallel_trains_several_at_once():
    configs = {"a": LORA, "b": BOTTLENECK}
    model = opened("llama", configs)
    model.set_adapter(Parallel("a", "b"))
    gradients = model.gradients(input_ids=IDS, labels=IDS)
    for name in configs:
        model.set_adapter(name)
        alone = model.gradients(input_ids=IDS, labels=IDS)
        for key, gradient in alone.items():
            assert np.abs(gradients[f"{name}|{key}"] * 2 - gradient).max() < 1e-5 * max(1, np.abs(gradient).max()), key


def test_what_cannot_be_is_refused_by_name():
    model = opened("llama", {"a": BOTTLENECK, "b": BOTTLENECK, "l": LORA, "p": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3}})
    for block, error, word in [
        (Stack(), PeftValueError, "Stack of 0"), (Stack("a", "nobody"), PeftLookupError, "nobody"), (Fuse("a", "b"), PeftLookupError, "a,b"), (Stack("a", "a"), PeftValueError, "twice"),
        (Average("a", "l", weights=[1]), PeftValueError, "weights"), (Average("a", "p"), PeftError, "\"p\""), (Split("a", "b", splits=[1, 2, 3]), PeftValueError, "splits"),
        (BatchSplit("a", "b", batch_sizes=0), PeftValueError, "batch_sizes"), (Average(Parallel("a", "b"), "l"), PeftError, "Parallel"), (Fuse(Average("a", "b"), "l"), PeftError, "Fuse"),
    ]:
        before = model.adapter_status()
        with pytest.raises(error, match=word):
            model.set_adapter(block)
        assert model.adapter_status() == before
    model.set_adapter(BatchSplit("a", "b", batch_sizes=[1, 2]))
    with pytest.raises(PeftValueError, match="batch_sizes"):
        model(input_ids=IDS)
    with pytest.raises(PeftError, match="session"):
        model.session(adapters=BatchSplit("a", "b", batch_sizes=[1, 1]))
    with pytest.raises(PeftError, match="composition"):
        model.delete_adapter("a")
    with pytest.raises(PeftError, match="composition"):
        model.merge_adapter()
    model.set_adapter(Split("a", "b", splits=[6, 1]))
    with pytest.raises(PeftValueError, match="Split"):
        model(input_ids=IDS)
    assert model.adapter_status()["composition"] == {"type": "Split", "children": ["a", "b"], "kwargs": {"splits": [6, 1]}}
    model.rename_adapter("a", "first")
    assert model.adapter_status()["composition"]["children"] == ["first", "b"]
