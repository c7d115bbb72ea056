"""Models with an adapter merged into them as Hugging Face folders: transformers opens them and computes the same."""

import json

import numpy as np
import pytest

from conftest import GOLDEN, stir
from peftswift import Model
from test_architectures import FIXTURES, NAMES, arrays

BASES = ["bert", "bert_cls", "bert_qa", "bert_tok", "gpt2", "llama", "llama_cls", "llama_tied", "mistral", "mixtral", "qwen2", "qwen3", "roberta_cls", "t5", "t5_gated", "vit"]


@pytest.mark.parametrize("folder", [*(GOLDEN / "bases" / name for name in BASES), *(FIXTURES / name for name in NAMES if not name.startswith("graph"))], ids=lambda f: f.name)
def test_transformers_opens_a_merged_model(folder, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = Model.from_pretrained(folder, dtype="float32")
    config, random = json.loads((folder / "config.json").read_text()), np.random.default_rng(0)
    if (folder / "inputs.safetensors").exists():
        inputs = {key: value for key, value in arrays(folder / "inputs.safetensors").items() if key not in ("start_positions", "end_positions")}
    elif config["model_type"] == "vit":
        inputs = {"pixel_values": random.normal(size=(2, 3, config["image_size"], config["image_size"])).astype(np.float32)}
    else:
        inputs = {"input_ids": random.integers(3, config["vocab_size"], (2, 9))}
        inputs["attention_mask"] = np.array([[1] * 9, [1] * 6 + [0] * 3])
        if config["model_type"] == "t5":
            inputs["labels"] = inputs["input_ids"]
    before = model(**inputs)
    model.add_adapter("default", {"peft_type": "LORA", "r": 2, "target_modules": "all-linear", "init_lora_weights": False})
    stir(model)
    model.merge_adapter()
    model.export(tmp_path / "merged")
    theirs = getattr(transformers, config["architectures"][0]).from_pretrained(tmp_path / "merged", dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        want = theirs(**{key: torch.as_tensor(np.array(value)) for key, value in inputs.items()})
    out, seen = model(**inputs), inputs.get("attention_mask")
    compared = [key for key in ("logits", "start_logits", "end_logits", "last_hidden_state") if want.get(key) is not None and hasattr(out, key)][:2]
    assert compared
    for key in compared:
        got, expected = np.asarray(getattr(out, key), np.float64), want[key].numpy()
        assert got.shape == expected.shape and np.abs(got - getattr(before, key)).max() > 1e-2 * np.abs(got).max()
        if seen is not None and got.ndim > 1 and got.shape[1] == seen.shape[1] and "labels" not in inputs:
            got, expected = got[seen == 1], expected[seen == 1]  # padding is nobody's
        assert np.abs(got - expected).max() <= 2e-4 * np.abs(expected).max(), key
