"""A golden Llama as a GGUF file: a few kilobytes to read, cut and damage."""

import struct

import numpy as np

NAMES = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
GLOBALS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def gguf_name(name):
    module, kind = name.rsplit(".", 1)
    if module in GLOBALS:
        return f"{GLOBALS[module]}.{kind}"
    _, _, layer, rest = module.split(".", 3)
    return f"blk.{layer}.{NAMES[rest]}.{kind}"


def paired_rows(w, heads):
    """llama.cpp's order: the two rows that are rotated together are neighbours."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(w.shape)


def q8_0(w):
    """Blocks of 32 values: an f16 scale and 32 signed bytes."""
    blocks = w.reshape(-1, 32)
    scale = (np.abs(blocks).max(1, keepdims=True) / 127).astype(np.float16)
    codes = np.rint(blocks / np.where(scale == 0, 1, scale).astype(np.float32)).astype(np.int8)
    return b"".join(s.tobytes() + c.tobytes() for s, c in zip(scale, codes))


def text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def value(item):
    """Type number and bytes of a metadata value."""
    if isinstance(item, bool):
        return struct.pack("<I?", 7, item)
    if isinstance(item, int):
        return struct.pack("<II", 4, item)
    if isinstance(item, float):
        return struct.pack("<If", 6, item)
    if isinstance(item, str):
        return struct.pack("<I", 8) + text(item)
    kind, pack = (8, text) if isinstance(item[0], str) else (5, lambda i: struct.pack("<i", i))
    return struct.pack("<IIQ", 9, kind, len(item)) + b"".join(map(pack, item))


def metadata(config, tokens):
    return {
        "general.architecture": "llama", "general.alignment": 32, "general.name": "tiny", "llama.block_count": config["num_hidden_layers"],
        "llama.embedding_length": config["hidden_size"], "llama.feed_forward_length": config["intermediate_size"],
        "llama.context_length": config["max_position_embeddings"], "llama.attention.head_count": config["num_attention_heads"],
        "llama.attention.head_count_kv": config["num_key_value_heads"], "llama.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "llama.rope.freq_base": config["rope_parameters"]["rope_theta"], "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": [3 if t.startswith("<") and len(t) > 1 else 1 for t in tokens],
        "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 95,
    }


def write(path, config, tensors, tokens, quantised=False, **changes):
    """`changes` replace metadata by key with "__" for "."; None leaves one out."""
    info, data, fields = [], b"", metadata(config, tokens)
    fields.update({k.replace("__", "."): v for k, v in changes.items()})
    fields = {k: v for k, v in fields.items() if v is not None}
    for name, w in tensors.items():
        if "q_proj" in name:
            w = paired_rows(w, config["num_attention_heads"])
        if "k_proj" in name:
            w = paired_rows(w, config["num_key_value_heads"])
        is_q8 = quantised and w.ndim == 2
        info.append(text(gguf_name(name)) + struct.pack("<I", w.ndim) + struct.pack(f"<{w.ndim}Q", *w.shape[::-1]) + struct.pack("<IQ", 8 if is_q8 else 0, len(data)))
        payload = q8_0(w) if is_q8 else np.ascontiguousarray(w, np.float32).tobytes()
        data += payload + b"\0" * (-len(payload) % 32)
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(info), len(fields)) + b"".join(text(k) + value(v) for k, v in fields.items()) + b"".join(info)
    path.write_bytes(head + b"\0" * (-len(head) % 32) + data)
    return path
