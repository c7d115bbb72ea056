"""Starts of LoRA that are computed from calibration batches: EVA and CorDA (their numbers are golden cases; here, what is around them)."""

import numpy as np
import pytest

from conftest import LORA
from peftswift import PeftError


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
