"""Bottleneck adapters against a BERT in numpy that has them where AdapterHub's `adapters` library does (its modeling.py), and its files."""

import json
import math
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from conftest import GOLDEN, LORA
from peftswift import Model, PeftError

BASE = GOLDEN / "bases" / "bert_cls"
IDS = np.array([[2, 11, 25, 7, 40, 3], [2, 9, 9, 31, 5, 3]])
NORMS = ("adapter_norm_before", "adapter_norm_after")

VARIANTS = {
    "seq_bn": {"config": "seq_bn", "reduction_factor": 8},
    "double_seq_bn": {"config": "double_seq_bn", "reduction_factor": {"0": 4, "default": 16}},
    "par_bn": {"config": "par_bn"},
    "scaled_par_bn": {"config": "scaled_par_bn", "mh_adapter": True},
    "older name": {"config": "pfeiffer", "scaling": "channel", "non_linearity": "tanh"},
    "gated": {"config": "double_seq_bn", "use_gating": True, "scaling": 0.5},
    "gated beside": {"config": "par_bn", "use_gating": True},
    "norms": {"config": "seq_bn", "ln_before": True, "ln_after": True, "mh_adapter": True},
    "residuals": {"config": "seq_bn", "ln_after": True, "adapter_residual_before_ln": True, "residual_before_ln": False, "original_ln_after": False},
    "after the sum": {"config": "seq_bn", "residual_before_ln": "post_add", "non_linearity": "tanh"},
    "adapter plus": {"config": "adapter_plus", "reduction_factor": 8},
    "compacter": {"config": "compacter", "reduction_factor": 8},
    "compacter++ of its own": {"config": "compacter++", "reduction_factor": 4, "phm_dim": 2, "phm_rank": 2, "shared_phm_rule": False, "factorized_phm_rule": True, "phm_bias": False},
    "compacter with shared weights": {"config": "compacter", "reduction_factor": 8, "shared_W_phm": True, "factorized_phm_W": False},
    "nice": {"config": "seq_bn_inv", "non_linearity": "tanh"},
    "glow": {"config": "double_seq_bn", "inv_adapter": "glow", "inv_adapter_reduction_factor": 4},
    "left out": {"config": "seq_bn", "leave_out": [0], "non_linearity": "gelu_new"},
}


def load(path):
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    head = json.loads(data[8:8 + size])
    return {k: np.frombuffer(data[8 + size:][v["data_offsets"][0]:v["data_offsets"][1]], np.float32).reshape(v["shape"]).astype(np.float64)
            for k, v in head.items() if k != "__metadata__"}


def norm(x, weight, bias, eps):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * weight + bias


ERF = np.vectorize(math.erf)
FUNCTIONS = {
    "relu": lambda x: np.maximum(x, 0), "tanh": np.tanh, "swish": lambda x: x / (1 + np.exp(-x)), "gelu": lambda x: x * 0.5 * (1 + ERF(x / math.sqrt(2))),
    "gelu_new": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}


def bottleneck(config, state, place, hidden, residual, join):
    """One place: Adapter.pre_forward, forward, post_forward and ParallelAdapter's."""
    get = lambda name: state[f"{place}.adapters.{name}"].astype(np.float64)

    def layer(x, name):
        if f"{place}.adapters.{name}.weight" in state:
            return x @ get(name + ".weight").T + get(name + ".bias")
        position = "_down" if "down" in name else "_up"

        def part(own, shared):
            left, right = [(f"{place}.adapters.{name}.{own}{end}", f"bert.shared_parameters.{shared}{end}") for end in ("_left", "_right")]
            values = [next((state[key].astype(np.float64) for key in keys if key in state), None) for keys in (left, right)]
            whole = next((state[key] for key in (f"{place}.adapters.{name}.{own}", f"bert.shared_parameters.{shared}") if key in state), None)
            return whole.astype(np.float64) if whole is not None else values[0] @ values[1]

        y = x @ sum(np.kron(a, w) for a, w in zip(part("phm_rule", "phm_rule"), part("W", "W" + position)))
        return y + get(name + ".b") if config["phm_bias"] else y

    if not any(key.startswith(f"{place}.adapters.") for key in state):
        return join(hidden)

    def branch(x):
        inner = norm(x, get("adapter_norm_before.weight"), get("adapter_norm_before.bias"), 1e-5) if config["ln_before"] else x
        up = layer(FUNCTIONS[config["non_linearity"]](layer(inner, f"adapter_down.{int(config['ln_before'])}")), "adapter_up")
        up = up * (config["scaling"] if not isinstance(config["scaling"], str) else get("scaling"))
        if config["use_gating"]:
            up = up * (1 / (1 + np.exp(-layer(x, "gate")))).mean(1, keepdims=True)
        return up

    last = lambda x: norm(x, get("adapter_norm_after.weight"), get("adapter_norm_after.bias"), 1e-5) if config["ln_after"] else x
    if config["is_parallel"]:
        out = last(branch(residual)) + hidden
    else:
        x = join(hidden) if config["original_ln_before"] else hidden
        kept = {True: hidden, False: x, "post_add": hidden + residual}[config["residual_before_ln"]]
        out = last(branch(x) + kept) if config["adapter_residual_before_ln"] else last(branch(x)) + kept
    return join(out) if config["original_ln_after"] else out


def coupled(x, config, state):
    """The invertible adapter behind the embeddings."""
    if not config.get("inv_adapter"):
        return x

    def subnet(name, x):
        get = lambda part: state[f"bert.invertible_adapters.{name}.{part}"].astype(np.float64)
        return FUNCTIONS[config["non_linearity"]](x @ get("0.weight").T + get("0.bias")) @ get("2.weight").T + get("2.bias")

    first, second = x[..., :x.shape[-1] // 2], x[..., x.shape[-1] // 2:]
    if config["inv_adapter"] == "nice":
        first = first + subnet("F", second)
        return np.concatenate([first, second + subnet("G", first)], -1)

    def glow(x, made):
        s, t = np.split(made, 2, -1)
        return np.exp(5 * 0.636 * np.arctan(s / 5)) * x + t

    first = glow(first, subnet("s2", second))
    return np.concatenate([first, glow(second, subnet("s1", first))], -1)


def bert(w, config, state, ids):
    model = json.loads((BASE / "config.json").read_text())
    heads, eps = model["num_attention_heads"], model["layer_norm_eps"]
    linear = lambda x, name: x @ w[name + ".weight"].T + w[name + ".bias"]
    normed = lambda x, name: norm(x, w[name + ".weight"], w[name + ".bias"], eps)
    e = "bert.embeddings."
    x = w[e + "word_embeddings.weight"][ids] + w[e + "position_embeddings.weight"][: ids.shape[1]] + w[e + "token_type_embeddings.weight"][0]
    x = normed(x, e + "LayerNorm")
    x = coupled(x, config, state)
    for number in range(model["num_hidden_layers"]):
        p = f"bert.encoder.layer.{number}."
        split = lambda y: y.reshape(*y.shape[:2], heads, -1).transpose(0, 2, 1, 3)
        q, k, v = (split(linear(x, f"{p}attention.self.{n}")) for n in ("query", "key", "value"))
        scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(q.shape[-1])
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        attended = ((scores / scores.sum(-1, keepdims=True)) @ v).transpose(0, 2, 1, 3).reshape(x.shape)
        residual = x
        join = lambda y: normed(y + residual, p + "attention.output.LayerNorm")
        x = bottleneck(config, state, p + "attention.output", linear(attended, p + "attention.output.dense"), residual, join)
        inner, middle = FUNCTIONS["gelu"](linear(x, p + "intermediate.dense")), x
        join = lambda y: normed(y + middle, p + "output.LayerNorm")
        x = bottleneck(config, state, p + "output", linear(inner, p + "output.dense"), middle, join)
    return linear(np.tanh(linear(x[:, 0], "bert.pooler.dense")), "classifier")


def shaken(model, name, seed=3):
    random = np.random.default_rng(seed)
    state = {k: (v + random.normal(0, 0.2, v.shape)).astype(np.float32) for k, v in model.adapter_state_dict(name).items()}
    model.load_adapter_state_dict(name, state)
    return state


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_computes_what_the_formulas_say(variant):
    model = Model.from_pretrained(BASE, dtype="float32")
    model.add_adapter("a", {"peft_type": "BOTTLENECK", **VARIANTS[variant]})
    state = shaken(model, "a")
    expected = bert(load(BASE / "model.safetensors"), model.adapter_config("a"), state, IDS)
    assert np.abs(model(input_ids=IDS).logits - expected).max() < 2e-5 * max(1, np.abs(expected).max())
    model.disable_adapter_layers()
    plain = bert(load(BASE / "model.safetensors"), {}, {}, IDS)
    assert np.abs(model(input_ids=IDS).logits - plain).max() < 2e-5 and np.abs(plain - expected).max() > 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
def test_derivatives_are_those_of_differences(variant):
    model = Model.from_pretrained(BASE, dtype="float32")
    model.add_adapter("a", {"peft_type": "BOTTLENECK", **VARIANTS[variant]})
    state, inputs = shaken(model, "a"), {"input_ids": IDS, "labels": np.array([0, 1])}
    gradients = model.gradients(**inputs)
    weights, config = load(BASE / "model.safetensors"), model.adapter_config("a")

    def loss(values):
        logits = bert(weights, config, values, IDS)
        return np.mean([np.log(np.exp(row).sum()) - row[label] for row, label in zip(logits, inputs["labels"])])

    random = np.random.default_rng(5)
    for key, gradient in gradients.items():
        direction = random.normal(size=gradient.shape)
        moved = [{**state, key: state[key].astype(np.float64) + sign * 1e-5 * direction} for sign in (1, -1)]
        slope = (loss(moved[0]) - loss(moved[1])) / 2e-5
        assert abs((gradient * direction).sum() - slope) < 2e-4 * abs(slope) + 2e-5, key


def test_files_are_the_librarys(tmp_path):
    model = Model.from_pretrained(BASE, dtype="float32")
    model.add_adapter("skill", {"peft_type": "BOTTLENECK", "config": "double_seq_bn"})
    shaken(model, "skill")
    expected = model(input_ids=IDS).logits
    model.save_pretrained(tmp_path / "a", "skill")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["config"]["mh_adapter"] is True and config["config"]["non_linearity"] == "swish" and config["name"] == "skill" and "peft_type" not in config
    keys = load(tmp_path / "a" / "adapter.safetensors")
    assert {k for k in keys if ".layer.0." in k} == {
        f"bert.encoder.layer.0.{place}.adapters.skill.{part}" for place in ("attention.output", "output")
        for part in ("adapter_down.0.weight", "adapter_down.0.bias", "adapter_up.weight", "adapter_up.bias")}
    other = Model.from_pretrained(BASE, dtype="float32")
    other.load_adapter(tmp_path / "a", adapter_name="renamed")
    assert np.abs(other(input_ids=IDS).logits - expected).max() == 0
    model.save_pretrained(tmp_path / "a.h5", "skill")
    other.load_adapter(tmp_path / "a.h5", adapter_name="again")
    other.set_adapter("again")
    assert np.abs(other(input_ids=IDS).logits - expected).max() == 0
    (tmp_path / "a" / "adapter.safetensors").rename(tmp_path / "a" / "pytorch_adapter.bin")
    with pytest.raises(PeftError, match="pickle"):
        other.load_adapter(tmp_path / "a", adapter_name="x")


@pytest.mark.parametrize("base", ["llama", "gpt2", "t5", "roberta_cls"])
def test_other_families_train_and_write_alike(base):
    model = Model.from_pretrained(GOLDEN / "bases" / base, dtype="float32")
    model.add_adapter("a", {"peft_type": "BOTTLENECK", "config": "double_seq_bn", "cross_adapter": True, "reduction_factor": 4})
    shaken(model, "a")
    labels = np.array([0, 1]) if base == "roberta_cls" else IDS
    trainer = model.trainer(lr=1e-2)
    losses = [trainer.step(input_ids=IDS, labels=labels) for _ in range(8)]
    assert losses[-1] < losses[0]
    if base == "t5":
        assert any("decoder.block.1.layer.1.adapters.adapter_up" in key for key in model.adapter_state_dict("a"))
    if base in ("llama", "gpt2"):
        out = model.generate(IDS, max_new_tokens=5, eos_token_id=None)
        for row in out:
            for length in range(IDS.shape[1], len(row)):
                assert model(input_ids=row[None, :length]).logits[0, -1].argmax() == row[length]


def test_several_and_rows():
    model = Model.from_pretrained(GOLDEN / "bases" / "llama", dtype="float32")
    configs = {"a": {"peft_type": "BOTTLENECK", "config": "seq_bn"}, "b": {"peft_type": "BOTTLENECK", "config": "par_bn"}, "l": LORA,
               "p": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3}}
    for name, config in configs.items():
        model.add_adapter(name, config)
        shaken(model, name)
    names = ["a", "__base__", "b", "l", "p", "b"]
    ids = np.arange(36).reshape(6, 6) % 90
    mixed = model(input_ids=ids, adapter_names=names).logits
    for row, name in enumerate(names):
        if name == "__base__":
            model.disable_adapter_layers()
        else:
            model.enable_adapter_layers()
            model.set_adapter(name)
        assert np.abs(model(input_ids=ids[row:row + 1]).logits - mixed[row:row + 1]).max() < 1e-4, name
    model.enable_adapter_layers()
    model.set_adapter(["a", "b", "l", "p"])  # one behind the other, beside LoRA and a prefix
    together = model(input_ids=ids).logits
    model.set_adapter(["b", "a", "l", "p"])
    assert np.abs(model(input_ids=ids).logits - together).max() > 1e-3
    trainer = model.trainer(adapters=["a", "b", "l", "p"], lr=1e-2)
    losses = [trainer.step(adapter_names=["a", "a", "b", "l", "p", "b"], input_ids=ids, labels=ids) for _ in range(6)]
    assert losses[-1] < losses[0]
    with pytest.raises(PeftError, match="no weights can hold"):
        model.merge_adapter(["a"])


@pytest.mark.parametrize("changes, word", [
    ({"config": "nothing"}, "double_seq_bn"), ({"reduction_factor": 0}, "reduction_factor"), ({"reduction_factor": {"1": 4}}, "default"), ({"reduction_factor": 1e-9}, "reduction_factor"),
    ({"non_linearity": "sinus"}, "gelu"), ({"mh_adapter": False, "output_adapter": False}, "place"), ({"leave_out": [0, 1]}, "place"), ({"scaling": "much"}, "learned"),
    ({"phm_layer": True, "reduction_factor": 16}, "phm_dim"), ({"phm_layer": True, "phm_dim": 5}, "phm_dim"), ({"phm_layer": True, "phm_c_init": "zeros"}, "phm_c_init"),
    ({"phm_layer": True, "shared_W_phm": True, "reduction_factor": {"default": 4, "1": 8}}, "shared_W_phm"), ({"inv_adapter": "flow"}, "nice"),
    ({"inv_adapter": "nice", "inv_adapter_reduction_factor": 0}, "inv_adapter_reduction_factor"), ({"stochastic_depth": 1.5}, "stochastic_depth"), ({"residual_before_ln": "later"}, "post_add"),
    ({"init_weights": "zero"}, "houlsby"), ({"leave_out": "all"}, "leave_out"), ({"dropout": 2}, "dropout"),
])
def test_bad_settings_are_named(changes, word):
    model = Model.from_pretrained(BASE, dtype="float32")
    with pytest.raises(PeftError, match=word):
        model.add_adapter("a", {"peft_type": "BOTTLENECK", "config": "seq_bn", **changes})
    with pytest.raises(PeftError, match="BOTTLENECK"):
        Model.from_pretrained(GOLDEN / "bases" / "mlp", dtype="float32").add_adapter("a", {"peft_type": "BOTTLENECK"})


def test_gated_sessions_read_anew():
    """The gate is a mean over the whole text: with each token, all before it changes."""
    model = Model.from_pretrained(GOLDEN / "bases" / "llama", dtype="float32")
    model.add_adapter("a", {"peft_type": "BOTTLENECK", "config": "double_seq_bn", "use_gating": True})
    model.add_adapter("p", {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3})
    for name in ("a", "p"):
        shaken(model, name)
    for active in ("a", ["p", "a"]):
        model.set_adapter(active)
        out = model.generate(IDS[:1], max_new_tokens=6, eos_token_id=None)[0]
        for length in range(IDS.shape[1], len(out)):
            assert model(input_ids=out[None, :length]).logits[0, -1].argmax() == out[length]
    sessions = [model.session(adapters=["a"], temperature=0).append([1, 2, 3]) for _ in range(2)]
    sessions[1].set_adapters([])
    assert len(list(sessions[0].tokens(2))) == 2
    with pytest.raises(PeftError, match="use_gating"):
        sessions[0].step(sessions)


def test_stochastic_depth_leaves_adapters_out_while_training():
    model = Model.from_pretrained(GOLDEN / "bases" / "llama", dtype="float32")
    for name, p in (("none", 0.0), ("half", 0.5), ("all", 1.0)):
        model.add_adapter(name, {"peft_type": "BOTTLENECK", "config": "double_seq_bn", "stochastic_depth": p})
        shaken(model, name)
    logits = lambda name: (model.set_adapter(name), model(input_ids=IDS).logits)[1]
    assert np.array_equal(logits("half"), logits("none"))
    base, whole = logits([]), logits("none")
    model.train()
    assert np.abs(logits("all") - base).max() < 1e-5 and np.abs(whole - base).max() > 1e-3
    some = [logits("half") for _ in range(4)]
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(some, some[1:]))


def test_pictures():
    model = Model.from_pretrained(GOLDEN / "bases" / "vit", dtype="float32")
    model.add_adapter("a", {"peft_type": "BOTTLENECK", "config": "double_seq_bn", "reduction_factor": 4})
    pictures = np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)
    before = model(pixel_values=pictures).logits
    shaken(model, "a")
    assert np.abs(model(pixel_values=pictures).logits - before).max() > 1e-3
    trainer = model.trainer(lr=1e-2)
    losses = [trainer.step(pixel_values=pictures, labels=np.array([0, 1])) for _ in range(8)]
    assert losses[-1] < losses[0]
    with pytest.raises(PeftError, match="embeddings of tokens"):
        model.add_adapter("b", {"peft_type": "BOTTLENECK", "config": "seq_bn_inv"})


FIXTURES = Path(__file__).parent / "fixtures_adapters"  # made by scripts/check_with_adapters.py: what the library itself wrote and computed


@pytest.mark.parametrize("name", sorted(folder.name for folder in FIXTURES.iterdir() if (folder / "adapter.safetensors").exists()))
@pytest.mark.parametrize("prefix", ["", "bert."])
def test_what_the_library_wrote(name, prefix, tmp_path):
    """Also what it wrote of a model with a head, whose names begin with the base model's."""
    data = (FIXTURES / name / "adapter.safetensors").read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    head = json.dumps({key if key == "__metadata__" else prefix + key: value for key, value in json.loads(data[8:8 + size]).items()}).encode()
    (tmp_path / "adapter.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + data[8 + size:])
    shutil.copy(FIXTURES / name / "adapter_config.json", tmp_path)
    model = Model.from_pretrained(GOLDEN / "bases" / "bert", dtype="float32")
    model.load_adapter(tmp_path, "own")
    expected = np.load(FIXTURES / name / "output.npy")
    assert np.abs(model(input_ids=np.array([[1, 5, 9, 2, 20, 7, 3, 4]])).last_hidden_state - expected).max() < 1e-5 * np.abs(expected).max()
