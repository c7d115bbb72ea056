"""Models become GGUF files: as they are, in other types, with adapters merged."""

import json
import os

import numpy as np
import pytest

import tiny_gguf
from conftest import CHARACTERS, GOLDEN, LORA, REAL_MODEL, stir
from peftswift import Model, PeftError
from test_quantization import tensors


@pytest.fixture
def source(tmp_path):
    base = GOLDEN / "bases" / "llama"
    tokens = ["Ġ" if c == " " else "ab" if c == "~" else c for c in CHARACTERS] + ["<|end|>"]
    return tiny_gguf.write(tmp_path / "tiny.gguf", json.loads((base / "config.json").read_text()), tensors(base), tokens)


def test_as_it_is(source, ids, tmp_path):
    model = Model.from_pretrained(source, dtype="float32")
    model.export(tmp_path / "again.gguf")
    again = Model.from_pretrained(tmp_path / "again.gguf", dtype="float32")
    assert np.array_equal(model(input_ids=ids).logits, again(input_ids=ids).logits)
    assert again.describe()["formats"] == model.describe()["formats"] and again.config == model.config
    assert again.tokenizer.encode("abab") == model.tokenizer.encode("abab")


@pytest.mark.parametrize("dtype, format, most", [("q8_0", "q8_0", 0.1), ("q4_0", "q4_0", 1.5), ("Q4_K_M", "q5_0", 1), ("q6_K", "q8_0", 0.1), ("iq4_nl", "iq4_nl", 1.5), ("f16", "f16", 0.01)])
def test_types_and_what_takes_their_place(source, ids, tmp_path, dtype, format, most):
    model = Model.from_pretrained(source, dtype="float32")
    model.export(tmp_path / "other.gguf", dtype=dtype)
    other = Model.from_pretrained(tmp_path / "other.gguf", dtype="float32")
    formats = other.describe()["formats"]
    assert formats[format] >= 8 and set(formats) <= {format, "f32", "q8_0"}
    difference = np.abs(other(input_ids=ids).logits - model(input_ids=ids).logits).max()
    assert difference < most
    with pytest.raises(PeftError, match="nf4"):
        model.export(tmp_path / "none.gguf", dtype="nf4")
    with pytest.raises(PeftError, match="Q9"):
        model.export(tmp_path / "none.gguf", dtype="Q9_K")
    assert not (tmp_path / "none.gguf").exists()


def test_a_merged_adapter_goes_along(source, ids, tmp_path):
    model = Model.from_pretrained(source, dtype="float32")
    model.add_adapter("default", LORA)
    stir(model, "default")
    model.merge_adapter(dtype="q8_0")
    merged = model(input_ids=ids).logits
    model.export(tmp_path / "merged.gguf")
    again = Model.from_pretrained(tmp_path / "merged.gguf", dtype="float32")
    assert np.array_equal(again(input_ids=ids).logits, merged)


def test_only_of_a_gguf_file(base_folder, source, tmp_path):
    with pytest.raises(PeftError, match="GGUF"):
        Model.from_pretrained(base_folder).export(tmp_path / "never.gguf")
    model = Model.from_pretrained(source, quantization={"scheme": "nf4", "block_size": 32})
    with pytest.raises(PeftError, match="nf4"):
        model.export(tmp_path / "never.gguf")
    assert not (tmp_path / "never.gguf").exists()
    model.export(tmp_path / "q8.gguf", dtype="q8_0")  # from nf4 to q8_0
    with pytest.raises(PeftError):
        model.export(tmp_path / "no" / "such" / "folder.gguf", dtype="q8_0")


@pytest.mark.skipif(not REAL_MODEL.exists(), reason="the real model was not fetched (scripts/fetch_inputs.py smollm2)")
def test_others_read_it(tmp_path):
    gguf = pytest.importorskip("gguf")
    model = Model.from_pretrained(REAL_MODEL, dtype="float32")
    model.export(tmp_path / "again.gguf")
    model.export(tmp_path / "mixed.gguf", dtype="Q4_K_M")
    before, after, mixed = (gguf.GGUFReader(path) for path in (REAL_MODEL, tmp_path / "again.gguf", tmp_path / "mixed.gguf"))
    theirs = {t.name: t for t in before.tensors}
    assert sorted(theirs) == sorted(t.name for t in after.tensors)
    for tensor in after.tensors:
        assert tensor.tensor_type == theirs[tensor.name].tensor_type and np.array_equal(tensor.data, theirs[tensor.name].data), tensor.name
    assert set(before.fields) - {"general.alignment"} <= set(after.fields) | {"general.file_type"}
    types = {t.name: t.tensor_type.name for t in mixed.tensors}
    assert types["blk.0.ffn_down.weight"] == "Q6_K" and types["blk.4.ffn_down.weight"] == "Q4_K" and types["blk.0.attn_q.weight"] == "Q5_0"
    assert os.path.getsize(tmp_path / "mixed.gguf") < 1.2 * os.path.getsize(REAL_MODEL)
