"""Models become GGUF files: as they are, in other types, with adapters merged."""

import json
import os
import shutil

import numpy as np
import pytest

import tiny_gguf
from conftest import CHARACTERS, GOLDEN, LORA, REAL_MODEL, stir
from peftswift import Model, PeftError
from test_quantization import save, tensors

FIXTURES = GOLDEN.parents[1] / "Fixtures" / "Models"
TOKENIZERS = GOLDEN.parents[1] / "Fixtures" / "Tokenizers"


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


def folder_with_words(folder, base, **changes):
    """A tiny model with a byte-level tokenizer of its 96 (or 80) rows, two of which no token has."""
    source = GOLDEN / "bases" / base
    shutil.copytree(source if source.exists() else FIXTURES / base, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    count = min(config["vocab_size"], 96) - 4
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": count + 1} | changes))
    vocabulary = {("Ġ" if c == " " else c): i for i, c in enumerate(CHARACTERS[:count])} | {"ab": count}
    (folder / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "normalizer": None, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None, "decoder": {"type": "ByteLevel"}, "model": {"type": "BPE", "vocab": vocabulary, "merges": [["a", "b"]]},
        "added_tokens": [{"id": count + 1, "content": "<|end|>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}]}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "chat_template": "{{ messages[0]['content'] }}"}))
    return folder


#: What a file cannot say of the tiny models (how far the scores of Gemma are divided, which of its layers slide).
FAMILIES = [
    ("gemma", {}), ("gemma2", {"query_pre_attn_scalar": 8}), ("gemma3", {"query_pre_attn_scalar": 8, "layer_types": ["sliding_attention"] * 3, "final_logit_softcapping": 2.0}),
    ("phi3", {"sliding_window": 256}), ("mixtral", {"sliding_window": None}), ("phi3_long", {"max_position_embeddings": 512, "original_max_position_embeddings": 256, "rope_parameters": {
        "long_factor": [1.2, 2.0, 3.0, 5.0], "short_factor": [1.0, 1.1, 1.3, 1.5], "rope_theta": 10000.0, "rope_type": "longrope", "original_max_position_embeddings": 256}}),
]
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@pytest.mark.parametrize("base, changes", [
    ("llama", {}), ("llama_tied", {}), ("llama3l", {}), ("llama_bf16", {}), ("qwen2", {}), ("qwen3", {}), ("mistral", {"sliding_window": None}),
    ("llama", {"rope_parameters": LLAMA3}), ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}}),
    ("qwen2", {"rope_parameters": YARN}), *FAMILIES,
])
def test_a_folder_becomes_a_file(base, changes, ids, tmp_path):
    model = Model.from_pretrained(folder_with_words(tmp_path / "folder", base, **changes), dtype="float32")
    model.export(tmp_path / "made.gguf")
    made = Model.from_pretrained(tmp_path / "made.gguf", dtype="float32")
    ids = ids % model.config["vocab_size"]
    got, want = made(input_ids=ids).logits, model(input_ids=ids).logits
    assert np.abs(got - want).max() <= (2e-6 * np.abs(want).max() if base.startswith("gemma") else 0)  # norms are 1 + w in files
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size", "max_position_embeddings", "vocab_size", "eos_token_id"):
        assert made.config[key] == model.config[key], key
    text = "abab cab<|end|>a"
    assert made.tokenizer.encode(text) == model.tokenizer.encode(text) and model.config["vocab_size"] - 4 in made.tokenizer.encode(text)
    assert made.tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False) == "ab"
    made.export(tmp_path / "again.gguf")  # and on from there
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "made.gguf").read_bytes()
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(tmp_path / "made.gguf")
    family = "llama" if base.startswith(("llama", "mi")) else base.removesuffix("_long")
    assert reader.fields["general.architecture"].contents() == family
    assert reader.fields["tokenizer.ggml.tokens"].contents()[-4:] == ["ab", "<|end|>", *(f"[PAD{model.config['vocab_size'] - i}]" for i in (2, 1))]
    assert reader.fields["tokenizer.ggml.token_type"].contents()[-5:] == [1, 1, 3, 5, 5]


@pytest.mark.parametrize("base, tokenizer, changes", [
    ("llama", "smollm", {}), ("llama", "llama2", {"rope_parameters": LLAMA3}), ("llama", "gpt2", {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}}),
    ("llama_tied", "llama3", {}), ("llama_bf16", "gpt2", {}), ("qwen2", "qwen2", {}), ("qwen3", "qwen2", {}), ("qwen2", "qwen2", {"rope_parameters": YARN}),
    *((base, "gemma" if base.startswith("gemma") else "llama2", changes) for base, changes in FAMILIES),
])
def test_llama_cpp_says_the_same(base, tokenizer, changes, tmp_path):
    """The file of a folder with a real kind of tokenizer and an adapter merged into it, in llama.cpp: the same tokens of a text, and the same
    forty after them (f32)."""
    llama_cpp = pytest.importorskip("llama_cpp")
    definition = json.loads((TOKENIZERS / f"{tokenizer}.json").read_text())
    if "vocab" not in definition["model"]:
        definition["model"] |= {key: json.loads((TOKENIZERS / "sentencepiece.model.json").read_text())[key] for key in ("vocab", "merges")}
    count = 3 + max([*definition["model"]["vocab"].values(), *(token["id"] for token in definition["added_tokens"])])
    folder = folder_with_words(tmp_path / "folder", base, **{"vocab_size": count, "max_position_embeddings": 256, "eos_token_id": None, **changes})
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"} if tokenizer in ("llama2", "gemma") else {}))
    random, arrays = np.random.default_rng(1), tensors(folder)
    save(folder, {name: (random.normal(size=(count, array.shape[1])) / 2).astype(np.float32) if "embed_tokens" in name or "lm_head" in name else array
                  for name, array in arrays.items()})
    model = Model.from_pretrained(folder, dtype="float32")
    model.add_adapter("default", {"peft_type": "LORA", "r": 2, "target_modules": "all-linear"})
    stir(model)
    model.merge_adapter()
    model.export(tmp_path / "made.gguf", dtype="f32")
    text = "The quick brown fox, 1234 jumps! déjà vu\n  ok don't"
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    theirs = llama_cpp.Llama(str(tmp_path / "made.gguf"), n_ctx=128, verbose=False, n_threads=1, logits_all=True, type_k=0, type_v=0)  # f32
    assert theirs.tokenize(text.encode(), add_bos=False, special=True) == list(ids)
    theirs.eval(list(ids))
    for token in model.session(ignore_eos=True, context_length=128).append(ids).tokens(40):
        assert int(np.argmax(theirs.scores[theirs.n_tokens - 1])) == token
        theirs.eval([token])


@pytest.mark.parametrize("base, changes, words", [
    ("gemma", {"hidden_activation": "relu"}, "hidden_activation"), ("gemma2", {}, "query_pre_attn_scalar"), ("gemma3", {"query_pre_attn_scalar": 8}, "layer_types"),
    ("gemma2", {"query_pre_attn_scalar": 8, "attn_logit_softcapping": None}, "attn_logit_softcapping"), ("mixtral", {"sliding_window": 5}, "sliding_window"),
    ("gemma3", {**FAMILIES[2][1], "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6}, "sliding_attention": {"rope_type": "default", "rope_theta": 5e3}}}, "10000"),
    ("gemma3", {**FAMILIES[2][1], "attn_logit_softcapping": 5.0}, "attn_logit_softcapping"),
])
def test_settings_without_a_word(base, changes, words, tmp_path):
    model = Model.from_pretrained(folder_with_words(tmp_path / "folder", base, **changes), dtype="float32")
    with pytest.raises(PeftError, match=words):
        model.export(tmp_path / "never.gguf")
    assert not (tmp_path / "never.gguf").exists()


def test_folders_that_no_file_can_be(base_folder, tmp_path):
    for folder, words in (
        (base_folder, "tokenizer.json"), (folder_with_words(tmp_path / "window", "mistral"), "sliding_window"), (folder_with_words(tmp_path / "encoder", "bert"), "bert"),
        (folder_with_words(tmp_path / "part", "llama", partial_rotary_factor=0.5), "partial_rotary_factor"),
    ):
        with pytest.raises(PeftError, match=words):
            Model.from_pretrained(folder, dtype="float32").export(tmp_path / "never.gguf")
    folder = folder_with_words(tmp_path / "split", "llama")
    definition = json.loads((folder / "tokenizer.json").read_text())
    definition["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": "x+"}, "behavior": "Isolated", "invert": False},
                                                                          {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]}
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    with pytest.raises(PeftError, match="pre-tokenizer"):
        Model.from_pretrained(folder).export(tmp_path / "never.gguf")
    definition["model"]["vocab"]["c"] = 96
    definition["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    with pytest.raises(PeftError, match="96"):
        Model.from_pretrained(folder).export(tmp_path / "never.gguf")
    assert not (tmp_path / "never.gguf").exists()


def test_what_cannot_be_written(source, tmp_path):
    weights = {"up.weight": np.ones((4, 32), np.float32)}
    with pytest.raises(PeftError, match="GGUF"):
        Model.from_arrays({"model_type": "graph", "layers": [{"name": "up", "kind": "Linear"}]}, weights).export(tmp_path / "never.gguf")
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
