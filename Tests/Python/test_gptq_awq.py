"""Folders of GPTQ and AWQ: packed here by the layouts that AutoGPTQ and AutoAWQ document, with weights that are then known exactly."""

import json
import shutil

import numpy as np
import pytest

import peftswift
from conftest import GOLDEN
from peftswift import Model, PeftError
from test_quantization import save, tensors

RNG = np.random.default_rng(3)
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # nibble k of a word is output AWQ_ORDER[k] of its eight
LAYER = "model.layers.0.mlp.down_proj"


def packed(values, axis, order=range(8)):
    """Four-bit numbers, eight in a word along an axis."""
    values = np.moveaxis(values.astype(np.uint32), axis, -1)
    words = np.zeros((*values.shape[:-1], values.shape[-1] // 8), np.uint32)
    for nibble, place in enumerate(order):
        words |= values[..., place::8] << np.uint32(4 * nibble)
    return np.ascontiguousarray(np.moveaxis(words, -1, axis)).view(np.int32)


def quantized(weight, method, group, zeros="mixed", act_order=False):
    """[out, in] f32 to the parts of a file, and the values they stand for."""
    outputs, inputs = weight.shape
    groups = inputs // group
    index = np.arange(inputs) // group
    if act_order:
        index = RNG.permutation(index)
    scale = np.stack([np.abs(weight[:, index == g]).max(1) / 7 for g in range(groups)]).astype(np.float16)
    zero = np.full((groups, outputs), 8) if zeros == "middle" else RNG.integers(1, 16, (groups, outputs))
    codes = np.clip(np.rint(weight.T / scale.astype(np.float32)[index]) + zero[index], 0, 15)
    values = (scale.astype(np.float32)[index] * (codes - zero[index])).T
    if method == "awq":
        return {"qweight": packed(codes, 1, AWQ_ORDER), "qzeros": packed(zero, 1, AWQ_ORDER), "scales": scale}, values
    stored = zero if method == "gptq_v2" else zero - 1
    return {"qweight": packed(codes, 0), "qzeros": packed(stored, 1), "scales": scale, "g_idx": index.astype(np.int32)}, values


def folder(path, method, **options):
    shutil.copytree(GOLDEN / "bases" / "llama", path)
    arrays, expected = tensors(path), {}
    for name in [n for n in arrays if n.endswith("_proj.weight")]:
        parts, expected[name] = quantized(arrays.pop(name), method, 32, **options)
        arrays.update({name.replace("weight", part): value for part, value in parts.items()})
    save(path, arrays)
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = ({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True} if method == "awq" else
                                     {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": method, "desc_act": options.get("act_order", False)})
    (path / "config.json").write_text(json.dumps(config))
    return expected


@pytest.mark.parametrize("method, options, formats", [
    ("gptq", {"zeros": "middle"}, "q4_0"), ("gptq", {}, "q5_0"), ("gptq_v2", {}, "q5_0"), ("awq", {}, "q5_0"), ("awq", {"zeros": "middle"}, "q4_0")])
def test_values_are_exact(method, options, formats, tmp_path, ids):
    expected = folder(tmp_path / "model", method, **options)
    model = Model.from_pretrained(tmp_path / "model", dtype="float32")
    assert model.describe()["formats"] == {"f32": 7, formats: 14} and model.describe()["load_report"]["unused"] == []
    for name, values in expected.items():
        assert np.array_equal(model.get_parameter(name), values.astype(np.float32)), name
    model.add_adapter("default", {"peft_type": "LORA", "r": 2, "target_modules": "all-linear"})
    trainer = model.trainer(lr=1e-2, lr_scheduler="constant")
    losses = [trainer.step(input_ids=ids, labels=ids) for _ in range(8)]
    assert losses[-1] < losses[0]


def test_groups_in_no_order(tmp_path):
    expected = folder(tmp_path / "model", "gptq", act_order=True)
    model = Model.from_pretrained(tmp_path / "model", dtype="float32")
    assert model.describe()["formats"]["f16"] >= 2  # (layers with one group only are in order)
    for name, values in expected.items():
        assert np.allclose(model.get_parameter(name), values, rtol=6e-4, atol=1e-7), name


def change(name, damage):
    def apply(arrays, config):
        arrays[f"{LAYER}.{name}"] = damage(arrays[f"{LAYER}.{name}"])
    return apply


def setting(**changes):
    return lambda arrays, config: config["quantization_config"].update(changes)


@pytest.mark.parametrize("method, damage, words", [
    ("gptq", change("qweight", lambda x: x[:-1]), "down_proj"), ("gptq", change("qzeros", lambda x: x[:, :-1]), "qzeros"), ("gptq", change("scales", lambda x: x[:, :-8]), "scales"),
    ("gptq", change("scales", lambda x: x * np.float16(np.inf)), "finite"), ("gptq", change("scales", lambda x: x.astype(np.float32)), "scales"),
    ("gptq", change("g_idx", lambda x: x - 1), "g_idx"), ("gptq", change("g_idx", lambda x: x + 1000), "g_idx"), ("gptq", change("g_idx", lambda x: x[1:]), "g_idx"),
    ("gptq", change("qweight", lambda x: x.astype(np.int64)), "qweight"), ("gptq", lambda a, c: a.pop(LAYER + ".qzeros"), "qzeros"), ("gptq", lambda a, c: a.pop(LAYER + ".scales"), "scales"),
    ("gptq", setting(bits=8), "8 bits"), ("gptq", setting(checkpoint_format="marlin"), "marlin"), ("awq", setting(version="gemv"), "gemv"),
    ("awq", change("qweight", lambda x: x[:, :0]), "fit"), ("awq", change("scales", lambda x: np.concatenate([x] * 3)[:7]), "fit"),
])
def test_damaged_folders_are_refused(method, damage, words, tmp_path):
    folder(tmp_path / "model", method)
    arrays, config = tensors(tmp_path / "model"), json.loads((tmp_path / "model" / "config.json").read_text())
    damage(arrays, config)
    save(tmp_path / "model", arrays)
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(PeftError, match=words):
        Model.from_pretrained(tmp_path / "model")
