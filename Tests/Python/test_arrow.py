"""Arrow: LoRA adapters chosen token by token, against the formula in numpy."""

import numpy as np
import pytest

from conftest import LORA
from peftswift import ArrowConfig, Model, PeftError, create_arrow_model

LAYER = "layers.0"


@pytest.fixture
def perceptron(base_folder):
    """One linear layer after another, whose inputs a test can follow."""
    return Model.from_pretrained(base_folder.parent / "mlp", dtype="float32")


def experts(model, tmp_path, count):
    """Folders of LoRA adapters, and their factors."""
    folders, factors = [], []
    for index in range(count):
        model.add_adapter("e", {"peft_type": "LORA", "r": 3, "lora_alpha": 3 + index, "target_modules": [LAYER]})
        # One direction of each is far stronger than the others, so that fifteen power iterations find it.
        random = np.random.default_rng(index)
        strength = {"lora_A": np.array([[9], [1], [1]]), "lora_B": 1}
        model.load_adapter_state_dict("e", {k: (random.normal(0, 0.3, v.shape) * strength[k.split(".")[-2]]).astype(np.float32)
                                            for k, v in model.adapter_state_dict("e").items()})
        model.save_pretrained(tmp_path / f"e{index}", "e")
        state = model.adapter_state_dict("e")
        factors.append((state[f"base_model.model.{LAYER}.lora_A.weight"], state[f"base_model.model.{LAYER}.lora_B.weight"], (3 + index) / 3))
        model.delete_adapter("e")
        folders.append(tmp_path / f"e{index}")
    return folders, factors


def change(x, factors, k, temperature, general=()):
    """What Arrow adds to x·Wᵀ, token by token."""
    mean = [np.mean([f[i] for f in general], axis=0) if general else 0 for i in (0, 1)]
    factors = [(a - mean[0], b - mean[1], s) for a, b, s in factors]
    prototypes = np.array([np.linalg.svd(b @ a)[2][0] for a, b, _ in factors])
    scores = np.abs(x @ prototypes.T)
    result = np.zeros((len(x), factors[0][1].shape[0]))
    for row, score in enumerate(scores):
        best = np.argsort(-score)[:k]
        weights = np.exp(score[best] / temperature)
        for expert, weight in zip(best, weights / weights.sum()):
            a, b, s = factors[expert]
            result[row] += weight * s * (b @ (a @ x[row]))
    return result


@pytest.mark.parametrize("gks", [False, True])
def test_tokens_choose(perceptron, tmp_path, gks):
    folders, factors = experts(perceptron, tmp_path, 5)
    config = ArrowConfig(top_k=2, router_temperature=0.7, use_gks=gks, rng_seed=3)
    model = create_arrow_model(perceptron, folders[:4], config, folders[4:] if gks else None)
    assert model.active_adapter == "arrow_router" and config.task_adapter_names == ["task_0", "task_1", "task_2", "task_3"]
    width = perceptron.state_dict()[LAYER + ".weight"].shape[1]
    x = np.random.default_rng(5).normal(0, 1, (6, width)).astype(np.float32)
    # The first layer sees x itself: what is added there is what a full change of these rows would be.
    layer = perceptron.layer(LAYER)
    got = layer(x)
    perceptron.disable_adapter_layers()
    wanted = change(x, factors[:4], 2, 0.7, factors[4:] if gks else ())
    assert np.abs(got - layer(x) - wanted).max() < 1e-3 * np.abs(wanted).max()


def test_wrong_experts(perceptron, tmp_path):
    folders, _ = experts(perceptron, tmp_path, 2)
    with pytest.raises(PeftError, match="top_k"):
        create_arrow_model(perceptron, folders, ArrowConfig(top_k=3))
    for name in ("task_0", "task_1"):
        perceptron.delete_adapter(name)
    with pytest.raises(ValueError, match="general"):
        create_arrow_model(perceptron, folders, ArrowConfig(use_gks=True))
    with pytest.raises(PeftError, match="nobody"):
        perceptron.add_adapter("arrow_router", {**LORA, "task_type": None, "target_modules": [LAYER],
                                                "arrow_config": {"task_adapter_names": ["nobody"], "top_k": 1}})
        perceptron.set_adapter("arrow_router")
