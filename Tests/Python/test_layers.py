"""Networks of a host: graphs over numpy's memory, and single layers in a training loop of one's own."""

import numpy as np
import pytest

import peftswift
from peftswift import Model

R = np.random.default_rng(4)
MLP = {"model_type": "graph", "layers": [{"name": "policy.0", "kind": "Linear"}, {"kind": "Tanh"}, {"name": "policy.2", "kind": "Linear"}]}
WEIGHTS = {name: R.normal(size=shape).astype(np.float32) for name, shape in [("policy.0.weight", (16, 6)), ("policy.0.bias", (16,)), ("policy.2.weight", (3, 16)), ("policy.2.bias", (3,))]}
LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": "policy\\..*"}


def mlp(adapter=LORA):
    model = Model.from_arrays(MLP, WEIGHTS)
    if adapter:
        model.add_adapter("default", adapter, seed=3)
    return model


def test_graph_over_host_memory():
    weights = {name: array.copy() for name, array in WEIGHTS.items()}
    model = Model.from_arrays(MLP, weights)
    x = R.normal(size=(5, 6)).astype(np.float32)

    def want():
        return np.tanh(x @ weights["policy.0.weight"].T + weights["policy.0.bias"]) @ weights["policy.2.weight"].T + weights["policy.2.bias"]

    assert np.allclose(model(x=x).logits, want(), atol=1e-5)
    weights["policy.2.bias"][:] = 7  # biases and weights are where the host has them
    weights["policy.0.weight"] *= 2
    assert np.allclose(model(x=x).logits, want(), atol=1e-5)


@pytest.mark.parametrize("adapter", [LORA, LORA | {"use_dora": True}, {"peft_type": "IA3", "target_modules": "policy\\..*", "feedforward_modules": []}])
def test_own_loop_is_the_trainers(adapter):
    """Layer by layer, with the host's own tanh and softmax: the parameters of whole steps."""
    whole, own = mlp(adapter), mlp(adapter)
    x, labels = R.normal(size=(8, 6)).astype(np.float32), R.integers(0, 3, 8)
    options = dict(lr=0.05, optimizer="adamw", max_grad_norm=0.5)
    trainer, mine = whole.trainer(**options), own.trainer(**options)
    for _ in range(4):
        loss = trainer.step(x=x, labels=labels)
        hidden, first = own.layer("policy.0").forward(x, mine)
        h = np.tanh(hidden)
        logits, last = own.layer("policy.2").forward(h, mine)
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        assert np.isclose(-np.log(p[np.arange(8), labels]).mean(), loss, rtol=1e-4)
        dh = last.backward((p - np.eye(3)[labels]) / 8)
        assert first.backward(dh * (1 - h * h)).shape == x.shape
        step = mine.update()
        assert step.updated and np.isclose(step.gradient_norm, trainer.last_step.gradient_norm, rtol=1e-3)
    a, b = whole.adapter_state_dict(), own.adapter_state_dict()
    assert a.keys() == b.keys() and all(np.allclose(a[key], b[key], rtol=1e-3, atol=1e-5) for key in a)
    assert not np.allclose(own.layer("policy.0")(x), x @ WEIGHTS["policy.0.weight"].T + WEIGHTS["policy.0.bias"])


def test_convolutions_and_embeddings_by_themselves():
    model = Model.from_arrays(
        {"model_type": "graph", "layers": [{"name": "conv", "kind": "Conv2d", "padding": 1, "stride": 2}, {"name": "table", "kind": "Embedding"}]},
        {"conv.weight": R.normal(size=(4, 2, 3, 3)).astype(np.float32), "table.weight": R.normal(size=(10, 5)).astype(np.float32)})
    model.add_adapter("default", {"peft_type": "LORA", "r": 2, "target_modules": ["conv", "table"], "init_lora_weights": False}, seed=1)
    trainer = model.trainer(lr=0.1)
    x = R.normal(size=(2, 2, 5, 6)).astype(np.float32)
    layer = model.layer("conv")
    y, run = layer.forward(x, trainer)
    assert y.shape == (2, 4, 3, 3)
    dy = R.normal(size=y.shape).astype(np.float32)
    dx = run.backward(dy)
    for place in [(0, 0, 0, 0), (1, 1, 4, 5), (0, 1, 2, 3)]:  # finite differences
        step = np.zeros_like(x)
        step[place] = 1e-2
        slope = ((layer(x + step) - layer(x - step)) * dy).sum() / 2e-2
        assert np.isclose(dx[place], slope, rtol=1e-2, atol=1e-3)
    with pytest.raises(peftswift.PeftError, match="run already"):
        run.backward(dy)
    ids = np.array([[1, 9, 3]])
    rows, run = model.layer("table").forward(ids, trainer)
    assert rows.shape == (3, 5) and run.backward(np.ones_like(rows)) is None
    gradients = trainer.gathered_gradients()
    assert len(gradients) == 4 and all(np.abs(g).max() > 0 for g in gradients.values())
    trainer.gathered_gradients(clear=True)
    assert all(np.abs(g).max() == 0 for g in trainer.gathered_gradients().values())
    with pytest.raises(ValueError, match="token id 10"):
        model.layer("table")([[10]])


def test_saved_and_merged(tmp_path):
    model = mlp()
    trainer = model.trainer(lr=0.1)
    x = R.normal(size=(4, 6)).astype(np.float32)
    for _ in range(3):
        trainer.step(x=x, labels=np.array([0, 1, 2, 0]))
    model.save_pretrained(tmp_path)
    other = mlp(None)
    other.load_adapter(tmp_path)
    want = model(x=x).logits
    assert np.array_equal(other(x=x).logits, want)
    other.merge_adapter()
    assert np.allclose(other(x=x).logits, want, atol=1e-5)
    assert not np.array_equal(other.state_dict()["policy.0.weight"], WEIGHTS["policy.0.weight"])


def test_mistakes_are_named():
    model = mlp()
    trainer = model.trainer(lr=0.1)
    with pytest.raises(LookupError, match="policy.9"):
        model.layer("policy.9")(np.zeros((1, 6), np.float32))
    with pytest.raises(ValueError, match="rows of 6"):
        model.layer("policy.0")(np.zeros((1, 7), np.float32))
    with pytest.raises(ValueError, match="integers|f32"):
        model.layer("policy.0")(np.zeros((1, 6), np.int64))
    _, run = model.layer("policy.0").forward(np.zeros((2, 6), np.float32), trainer)
    with pytest.raises(ValueError, match="dy has 3"):
        run.backward(np.zeros(3))
    with pytest.raises(ValueError, match="another model"):
        mlp().layer("policy.0").forward(np.zeros((2, 6), np.float32), trainer)
    run.backward(np.full((2, 16), np.inf))
    with pytest.raises(peftswift.PeftError, match="norm of the gradients"):
        trainer.update()


@pytest.mark.parametrize("layers, word", [
    ([], "layers"), (["x"], "kind"), ([{"kind": "Softplus"}], "Softplus"), ([{"name": "a", "kind": "Linear"}], "a.weight"),
    ([{"name": "w", "kind": "Linear", "input": "y"}], "no node"), ([{"kind": "Add", "input": "x"}], "two or more"),
    ([{"name": "w", "kind": "Conv2d"}], "4 sizes"), ([{"kind": "MaxPool2d", "kernel": 2, "padding": 2}], "padding"),
    ([{"kind": "MaxPool2d"}], "kernel"), ([{"kind": "AvgPool1d", "kernel": -3}], "kernel"), ([{"name": "w", "kind": "Linear"}, {"name": "w", "kind": "ReLU"}], "already"),
    ([{"name": "g", "kind": "GroupNorm", "groups": 4}], "groups"), ([{"name": "c", "kind": "Conv1d", "groups": 3}], "groups"),
])
def test_bad_graphs(layers, word):
    weights = {"w.weight": np.zeros((3, 4), np.float32), "g.weight": np.zeros(6, np.float32), "c.weight": np.zeros((4, 2, 3), np.float32)}
    with pytest.raises(peftswift.PeftError, match=word):
        Model.from_arrays({"model_type": "graph", "layers": layers}, weights)


def test_wrong_pictures():
    model = Model.from_arrays({"model_type": "graph", "layers": [{"name": "c", "kind": "Conv2d"}, {"kind": "MaxPool2d", "kernel": 4}, {"name": "f", "kind": "Linear"}]},
                              {"c.weight": np.zeros((2, 1, 3, 3), np.float32), "f.weight": np.zeros((3, 8), np.float32)})
    for shape, word in [((1, 2, 9, 9), "reads 1 values"), ((1, 1, 2, 9), "kernel"), ((1, 1, 5, 5), "window"), ((1, 1, 9), "2 sizes"), ((1, 1, 9, 9), "reads 8")]:
        with pytest.raises(ValueError, match=word):
            model(x=np.zeros(shape, np.float32))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_maxima_leave_padding_out(dtype):
    x = -1 - np.abs(np.random.default_rng(0).normal(size=(2, 3, 5, 4))).astype(np.float32)  # zeros would win
    model = Model.from_arrays({"model_type": "graph", "layers": [{"kind": "MaxPool2d", "kernel": 3, "stride": 2, "padding": 1}]}, {}, dtype=dtype)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    want = np.stack([padded[:, :, i:i + 3, j:j + 3].max((2, 3)) for i in (0, 2, 4) for j in (0, 2)], -1)
    assert np.abs(model(x=x).logits.reshape(want.shape) - want).max() < (1e-6 if dtype == "float32" else 0.02)
