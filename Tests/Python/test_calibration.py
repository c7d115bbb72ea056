"""Starts of LoRA that are computed from calibration batches: EVA and CorDA (their numbers are golden cases; here, what is around them)."""

import numpy as np
import pytest

from conftest import LORA
from peftswift import Model, PeftError


def batches(count=4, length=24, labels=True):
    random = np.random.default_rng(3)
    rows = [random.integers(1, 95, (2, length)) for _ in range(count)]
    return [{"input_ids": ids, **({"labels": ids} if labels else {})} for ids in rows]


EVA = {**LORA, "r": 3, "init_lora_weights": "eva", "eva_config": {"rho": 2.0}}
CORDA = {**LORA, "init_lora_weights": "corda", "corda_config": {"corda_method": "ipm"}}


def test_eva(model, ids, tmp_path):
    base = model(input_ids=ids).logits
    model.add_adapter("a", EVA, calibration=batches(labels=False))
    assert np.allclose(model(input_ids=ids).logits, base, atol=1e-5), "B is zero"
    config, state = model.adapter_config("a"), model.adapter_state_dict("a")
    ranks = {key: value.shape[0] for key, value in state.items() if "lora_A" in key}
    assert sum(ranks.values()) == 3 * 4, "the budget of ranks is spent"
    for key, a in state.items():
        if "lora_A" in key:
            assert np.allclose(a @ a.T, np.eye(len(a)), atol=1e-4), "components are orthonormal"
            name = key.split("base_model.model.")[1].split(".lora_A")[0]
            assert config["rank_pattern"].get(name, 3) == len(a)
    model.save_pretrained(tmp_path / "a", "a")
    model.load_adapter(tmp_path / "a", "b")
    assert all(np.array_equal(value, model.adapter_state_dict("b")[key]) for key, value in state.items())


def test_eva_leaves_out_what_is_not_learned(model):
    given = batches()
    half = [{**b, "labels": np.where(np.arange(24) < 12, -100, b["labels"])} for b in given]
    cut = [{"input_ids": b["input_ids"]} for b in given]
    states = []
    for name, data in (("all", given), ("none", cut), ("half", half)):
        model.add_adapter(name, {**EVA, "eva_config": {"rho": 1.0}}, calibration=data)
        states.append(model.adapter_state_dict(name))
    assert all(np.allclose(states[0][key], states[1][key], atol=1e-5) for key in states[0])
    assert any(not np.allclose(states[0][key], states[2][key], atol=1e-2) for key in states[0])


@pytest.mark.parametrize("method", ["ipm", "kpm"])
def test_corda(model, ids, method, tmp_path):
    base, weights = model(input_ids=ids).logits, model.state_dict()
    model.add_adapter("a", {**CORDA, "corda_config": {"corda_method": method}}, calibration=batches(labels=False))
    assert np.allclose(model(input_ids=ids).logits, base, atol=1e-3), "what the adapter has was taken out of the weights"
    name = "model.layers.0.self_attn.q_proj"
    assert np.abs(model.get_parameter(name + ".weight") - weights[name + ".weight"]).max() > 1e-3
    model.save_pretrained(tmp_path, "a")
    model.delete_adapter("a")
    assert np.array_equal(model.get_parameter(name + ".weight"), weights[name + ".weight"])
    with pytest.raises(PeftError, match="corda"):  # its weights belong to a base that this is not
        model.load_adapter(tmp_path, "a")


@pytest.mark.parametrize("config, word", [
    (EVA, "eva"), (CORDA, "corda"),
    ({**EVA, "eva_config": {"rho": 0.5}}, "rho"), ({**EVA, "eva_config": {"tau": 0}}, "tau"), ({**EVA, "eva_config": {"tua": 1}}, "tua"),
    ({**CORDA, "corda_config": {"corda_method": "xpm"}}, "xpm"), ({**CORDA, "corda_config": {"cache_file": "x"}}, "cache_file"),
    ({**CORDA, "corda_config": {"corda_methods": "ipm"}}, "corda_methods"),
])
def test_refused(model, config, word):
    data = None if config in (EVA, CORDA) else batches()
    with pytest.raises(PeftError, match=word):
        model.add_adapter("a", config, calibration=data)
    with pytest.raises(PeftError):
        model.add_adapter("a", config, calibration=[])
    assert not model.adapter_status()["adapters"]


def test_gradients_need_labels(model):
    with pytest.raises(PeftError, match="labels"):
        model.add_adapter("a", {**LORA, "init_lora_weights": "lora_ga", "lora_ga_config": {}}, calibration=batches(labels=False))


# ---- QPiSSA: the residual is quantised (nothing is calibrated, but the base changes as above)

NF4 = np.array([-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
                0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0])


def nf4(w):
    """QLoRA's rounding in numpy: blocks of 64 values, the nearest of sixteen levels."""
    blocks = w.reshape(-1, 64)
    scale = np.abs(blocks).max(1, keepdims=True)
    return (NF4[np.abs((blocks / scale)[..., None] - NF4).argmin(-1)] * scale).reshape(w.shape)


def qpissa(w, rank, turns):
    """arXiv:2404.02948, algorithm 1, in f64: the part of W that the adapter has, and what is quantised of the rest."""
    def principal(m):
        u, s, vh = np.linalg.svd(m, full_matrices=False)
        return (u[:, :rank] * s[:rank]) @ vh[:rank]
    part = principal(w)
    for _ in range(turns - 1):
        part = principal(w - nf4(w - part))
    return part, nf4(w - part)


@pytest.mark.parametrize("turns", [1, 3])
def test_qpissa(base_folder, ids, turns, tmp_path):
    model = Model.from_pretrained(base_folder, dtype="float32", bitsandbytes_cpu=False)
    before, name = model(input_ids=ids).logits, "model.layers.0.self_attn.q_proj"
    w = np.array(model.get_parameter(name + ".weight"), np.float64)
    model.add_adapter("a", {**LORA, "init_lora_weights": "qpissa", "loftq_config": {"loftq_bits": 4, "loftq_iter": turns}})
    assert model.describe()["formats"]["nf4"] == 4
    state = model.adapter_state_dict("a")
    a, b = (next(value for key, value in state.items() if name in key and f"lora_{which}" in key) for which in "AB")
    part, rest = qpissa(w, len(a), turns)
    stored = np.array(model.get_parameter(name + ".weight"))
    assert np.abs(2 * b @ a - part).max() < 2e-3 * np.abs(part).max()
    assert np.isclose(stored, rest, atol=1e-4).mean() > 0.99  # a value between two levels may fall to either
    assert np.linalg.norm(stored + 2 * b @ a - w) < 0.9 * np.linalg.norm(nf4(w) - w)
    after = model(input_ids=ids).logits
    assert np.abs(after - before).max() < 1.5
    model.save_pretrained(tmp_path / "a", "a")
    model.delete_adapter("a")
    assert np.array_equal(model.get_parameter(name + ".weight"), w.astype(np.float32))
    model.load_adapter(tmp_path / "a", "b")
    model.set_adapter("b")
    assert np.array_equal(model(input_ids=ids).logits, after)


def test_qpissa_in_eight_bits_is_nearly_exact_and_learns(model, ids):
    before = model(input_ids=ids).logits
    model.add_adapter("a", {**LORA, "init_lora_weights": "qpissa", "loftq_config": {"loftq_bits": 8}})
    model.set_adapter("a")
    assert 0 < np.abs(model(input_ids=ids).logits - before).max() < 0.1
    trainer = model.trainer(lr=1e-2, lr_scheduler="constant")
    losses = [trainer.step(input_ids=ids, labels=ids) for _ in range(20)]
    assert losses[-1] < losses[0] / 1.3


@pytest.mark.parametrize("changes, words", [
    ({"loftq_config": {"loftq_bits": 3}}, "loftq_bits"), ({"loftq_config": {"loftq_iter": 0}}, "loftq_iter"), ({"loftq_config": {"bits": 4}}, "bits"), ({"r": 33}, "33"),
])
def test_qpissa_refused(model, ids, changes, words):
    before = model(input_ids=ids).logits
    with pytest.raises(PeftError, match=words):
        model.add_adapter("a", {**LORA, "init_lora_weights": "qpissa", **changes})
    assert np.array_equal(model(input_ids=ids).logits, before)
    model.add_adapter("a", LORA)  # the name is free
