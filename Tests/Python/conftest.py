"""What the tests of the Python binding share: tiny models, an adapter, and (when it was fetched) the real model.

    python -m pytest Tests/Python            # needs pytest, numpy and build/libpeftswift.so.1 (make library)

The tiny models are the golden kit's bases, some with a tokenizer of single characters so that text can be trained on.
`scripts/fetch_inputs.py` fetches the real one; without it the tests that want it are skipped and say so.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
if not os.environ.get("PEFTSWIFT_INSTALLED"):  # set: test the package that is installed
    sys.path.insert(0, str(ROOT / "bindings" / "python"))

import peftswift  # noqa: E402

GOLDEN = ROOT / "Tests" / "Golden" / "data"
REAL_MODEL = Path(os.environ.get("PEFTSWIFT_CACHE", ROOT / ".cache")) / "SmolLM2-135M-Instruct.Q4_1.gguf"
LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}

#: 95 printable characters of ASCII (one stands for "end"): the vocabulary of 96 that the tiny bases have.
CHARACTERS = [chr(i) for i in range(32, 127)]


def character_tokenizer():
    """A tokenizer.json whose tokens are single characters; <|end|> is 95."""
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": None, "post_processor": None,
        "added_tokens": [{"id": 95, "content": "<|end|>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}],
        "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "dropout": None, "unk_token": "?", "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
                  "byte_fallback": False, "ignore_merges": False, "vocab": {c: i for i, c in enumerate(CHARACTERS)}, "merges": []},
    }


TEMPLATE = ("{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}<|end|>{% endfor %}"
            "{% if add_generation_prompt %}a:{% endif %}")


def make_talking_model(folder, base="llama"):
    """A golden base with a tokenizer and a chat template."""
    shutil.copytree(GOLDEN / "bases" / base, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    config["eos_token_id"] = 95
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(character_tokenizer()))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "pad_token": "<|end|>", "chat_template": TEMPLATE}))
    return folder


@pytest.fixture(scope="session")
def base_folder():
    return GOLDEN / "bases" / "llama"


@pytest.fixture(scope="session")
def adapter_folder():
    return GOLDEN / "cases" / "lora_basic" / "adapter"


@pytest.fixture(scope="session")
def talking_folder(tmp_path_factory):
    return make_talking_model(tmp_path_factory.mktemp("talking"))


@pytest.fixture
def model(base_folder):
    return peftswift.Model.from_pretrained(base_folder, dtype="float32")


@pytest.fixture
def talking(talking_folder):
    return peftswift.Model.from_pretrained(talking_folder, dtype="float32")


@pytest.fixture
def trained(model):
    """A model with an adapter that does something, named "default" and active."""
    model.add_adapter("default", LORA)
    model.set_adapter("default")
    stir(model)
    return model


@pytest.fixture(scope="session")
def real_model_path():
    if not REAL_MODEL.exists():
        pytest.skip(f"{REAL_MODEL} is not there: scripts/fetch_inputs.py fetches it")
    return REAL_MODEL


def stir(model, name="default", seed=0):
    """Random values in every tensor of an adapter, so that it changes the output."""
    random = np.random.default_rng(seed)
    model.load_adapter_state_dict(name, {k: random.normal(0, 0.3, v.shape).astype(np.float32) for k, v in model.adapter_state_dict(name).items()})


@pytest.fixture
def ids():
    return np.random.default_rng(1).integers(1, 95, (2, 12))
